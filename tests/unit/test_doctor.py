"""`fastmoco doctor` with each part of a machine taken away in turn."""

import errno
import json
import os
import re
import resource
import sys
import tomllib
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastmoco import cli, device, kept_checks
from fastmoco.data import images
from fastmoco.doctor import captured_step, child, dali_pixels, device_checks, examine, system_checks
from fastmoco.doctor.finding import NO_GPU, Finding, State
from fastmoco.kept_checks import recall
from fastmoco.moco import loss_choice
from fastmoco.moco.settings import Precision
from fastmoco.train import compilation
from tests.optional import require
from tests.recording import TapeRecording
from tests.steps import tensors_of

CPU = torch.device("cpu")
WORKS, WITHOUT, BROKEN, SKIPPED = State


@pytest.fixture
def gpu(monkeypatch):
    """A machine with an H100, whose driver and torch fit, as far as torch is asked about it."""
    machine = SimpleNamespace(available=True, driver_cuda=13000, built="13.2", archs=["sm_90"])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: machine.available)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA H100")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(torch.cuda, "get_arch_list", lambda: machine.archs)
    monkeypatch.setattr(device, "has_nvidia_gpu", lambda: True)
    for module in (device, device_checks):
        monkeypatch.setattr(module, "driver_cuda", lambda: machine.driver_cuda)
        monkeypatch.setattr(module, "driver_version", lambda: "580.65.06")
    monkeypatch.setattr(torch.version, "cuda", machine.built)
    return machine


@pytest.fixture
def kept(tmp_path, monkeypatch):
    monkeypatch.setattr(kept_checks, "kept_folder", lambda: tmp_path / "cache")


def refuse(*_, **__):
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_here_everything_that_must_work_works():
    for check in (system_checks.python, system_checks.libjpeg_turbo, device_checks.torch_itself):
        assert check().state is WORKS, check
    assert device_checks.driver() == device_checks.card() or torch.cuda.is_available()


@pytest.mark.parametrize(
    ("found", "state"), [((3, 10), BROKEN), ((3, 13), WORKS), ((3, 14), BROKEN)]
)
def test_python(monkeypatch, found, state):
    monkeypatch.setattr(system_checks, "sys", SimpleNamespace(version_info=found, executable="py"))
    assert system_checks.python().state is state


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    found = system_checks.compiler()
    assert (found.state, found.fix) == (WITHOUT, "sudo apt install g++")


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize(
    ("fault", "path", "fix"),
    [
        ("", "", ""),
        ("fatal error: Python.h: No such file", None, "sudo apt install python3-dev"),
        ("No working C++ compiler", "", "sudo apt install g++"),
        ("Read-only file system", None, "train.compile=never starts at once"),
    ],
)
def test_a_compiler_that_does_not_work(monkeypatch, fault, path, fix):
    monkeypatch.setattr(compilation, "compile_failure", lambda _: fault)
    if path is not None:
        monkeypatch.setenv("PATH", path)
    found = device_checks.compilation()
    assert (found.state, found.fix) == (WITHOUT if fault else WORKS, fix)
    assert fault in found.text
    assert recall(kept_checks.COMPILE, CPU) == fault


@pytest.mark.parametrize("fault", ["missing", "damaged", "wrong"])
def test_libjpeg_turbo(monkeypatch, fault):
    if fault == "missing":
        monkeypatch.setitem(sys.modules, "fastmoco.data.images", None)
    elif fault == "damaged":
        monkeypatch.setattr(images, "decode_jpeg", refuse)
    else:
        monkeypatch.setattr(images, "decode_jpeg", lambda _: np.zeros((32, 48, 3), np.uint8))
    found = system_checks.libjpeg_turbo()
    assert found.state is BROKEN
    assert found.fix == "pip install --force-reinstall 'simplejpeg>=1.8.2'"


@pytest.mark.parametrize(
    ("module", "package"), [("ffcv", "ffcv"), ("nvidia.dali", "nvidia-dali-cuda130")]
)
def test_optional_packages_are_not_needed(monkeypatch, module, package):
    def missing(name):
        assert name == module
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(system_checks, "find_spec", missing)
    found = examine._optional(module, "none", package)()
    assert (found.state, found.fix) == (WITHOUT, f"pip install {package}")


def test_packages_of_the_other_extras_are_listed(monkeypatch):
    def version(name):
        if name.startswith("onnx"):
            raise PackageNotFoundError(name)
        return "1.2"

    monkeypatch.setattr(system_checks, "version", version)
    found = system_checks.other_packages()
    assert found.text.startswith("timm 1.2, pillow-heif 1.2, wandb 1.2, faster")
    assert found.text.endswith("; not installed, and not needed: onnx, onnxruntime, onnxscript")
    assert (found.state, found.fix) == (WITHOUT, "pip install onnx onnxruntime onnxscript")
    with (Path(__file__).parents[2] / "pyproject.toml").open("rb") as file:
        extras = tomllib.load(file)["project"]["optional-dependencies"]
    names = ("timm", "heic", "wandb", "onnx", "eval", "remote")
    listed = [one for name in names for one in extras[name]]
    assert [re.match(r"[\w-]+", one)[0] for one in listed] == [*system_checks.OTHERS]


def test_an_ffcv_that_cannot_be_loaded(monkeypatch):
    monkeypatch.setitem(sys.modules, "fastmoco.pipelines.ffcv_runtime", None)
    found = device_checks.ffcv()
    assert found.state is WITHOUT
    assert "pipeline.name=beton" in found.fix


def test_a_full_disk_and_one_that_is_read_only(monkeypatch):
    monkeypatch.setattr(system_checks.shutil, "disk_usage", lambda _: SimpleNamespace(free=10**8))
    assert system_checks.disk().state is BROKEN
    monkeypatch.setattr(system_checks.tempfile, "TemporaryFile", refuse)
    found = system_checks.disk()
    assert (found.state, "run_dir=" in found.fix) == (WITHOUT, True)


def test_shared_memory_as_small_as_dockers(monkeypatch, tmp_path):
    assert system_checks.shared_memory(tmp_path / "none").state is WITHOUT
    for total, state in ((1 << 26, WITHOUT), (1 << 33, WORKS)):
        usage = SimpleNamespace(total=total)
        monkeypatch.setattr(system_checks.shutil, "disk_usage", lambda _, usage=usage: usage)
        found = system_checks.shared_memory(tmp_path)
        assert (found.state, "--shm-size" in found.fix) == (state, state is WITHOUT)


def test_few_open_files():
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
        found = system_checks.file_limit()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert (found.state, found.text) == (WITHOUT, "only 256 files may be open at a time")
    assert found.fix.startswith("ulimit -n ")


def test_caches_that_cannot_be_written(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    for folder, state in ((tmp_path / "new", WORKS), (None, WITHOUT)):
        monkeypatch.setattr(system_checks, "kept_folder", lambda folder=folder: folder)
        assert system_checks.caches().state is state
    monkeypatch.setattr(system_checks.tempfile, "TemporaryFile", refuse)
    found = system_checks.caches()
    assert (found.state, "TMPDIR=" in found.fix) == (WITHOUT, True)
    assert str(tmp_path) in found.text


def test_a_driver_and_a_card_that_fit(gpu):
    text = "580.65.06, for CUDA 13.0; torch is built for 13.2"
    assert device_checks.driver() == Finding(WORKS, text)
    assert device_checks.card() == Finding(WORKS, "NVIDIA H100 (9.0)")
    assert gpu.available


@pytest.mark.parametrize(
    ("driver_cuda", "built", "reason", "fix"),
    [
        (11040, "13.2", "driver 580.65.06 is for CUDA 11.4 and torch", "driver for CUDA 13.2"),
        (0, "13.2", "there is no NVIDIA driver here", "driver for CUDA 13.2"),
        (13000, "13.2", "CUDA cannot be started", "driver for CUDA 13.2"),
        (13000, None, "was built without CUDA", "pip install --force-reinstall torch"),
    ],
)
def test_a_gpu_that_torch_cannot_use(gpu, monkeypatch, driver_cuda, built, reason, fix):
    gpu.available, gpu.driver_cuda = False, driver_cuda
    monkeypatch.setattr(torch.version, "cuda", built)
    found = device_checks.driver()
    assert found.state is (BROKEN if driver_cuda else WITHOUT)
    assert reason in found.text
    assert fix in found.fix
    assert device_checks.card() == NO_GPU
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # hidden on purpose
    assert device_checks.driver() == NO_GPU


def test_a_gpu_is_seen_on_the_pci_bus_also_without_a_driver(tmp_path):
    assert not device.has_nvidia_gpu(tmp_path)
    for number, (vendor, kind) in enumerate([("0x8086", "0x030000"), ("0x10de", "0x040300")]):
        folder = tmp_path / f"sys/bus/pci/devices/{number}"
        folder.mkdir(parents=True)
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "class").write_text(f"{kind}\n")
    assert not device.has_nvidia_gpu(tmp_path)  # another maker's; the sound of a card
    (folder / "class").write_text("0x030200\n")
    assert device.has_nvidia_gpu(tmp_path)
    (tmp_path / "dev").mkdir()
    (tmp_path / "dev/nvidia0").touch()
    folder.rename(tmp_path / "gone")
    assert device.has_nvidia_gpu(tmp_path)


@pytest.mark.parametrize(
    ("capability", "runs"),
    [((6, 1), False), ((7, 5), True), ((8, 9), True), ((9, 0), False), ((12, 0), True)],
)
def test_a_card_runs_its_own_generation_and_older_intermediate_code(capability, runs):
    archs = ["sm_75", "sm_80", "sm_100a", "compute_120"]
    assert device_checks.has_code_for(capability, archs) is runs
    assert not device_checks.has_code_for(capability, [])


def test_a_card_without_code(gpu):
    gpu.archs = ["sm_100", "sm_120"]
    found = device_checks.card()
    assert found.state is BROKEN
    assert "code for sm_100 sm_120 only" in found.text


@pytest.mark.usefixtures("kept", "gpu")
def test_a_loss_that_is_wrong_is_kept_as_wrong_also_if_the_check_crashes(monkeypatch):
    monkeypatch.setattr(device_checks, "resolve_device", lambda _: CPU)
    name = loss_choice.check_name(128)

    def fault_of_fused(*_):
        assert recall(name, CPU) == "the check did not end"
        return "the rank of exact vectors differs"

    monkeypatch.setattr(loss_choice, "fault_of_fused", fault_of_fused)
    found = device_checks.fused_loss()
    assert (found.state, found.fix) == (WITHOUT, "moco.loss=chunked")
    assert recall(name, CPU) == "the rank of exact vectors differs"
    monkeypatch.setattr(loss_choice, "fault_of_fused", lambda *_: "")
    assert device_checks.fused_loss().state is WORKS
    assert recall(name, CPU) == ""


@pytest.mark.usefixtures("kept", "gpu")
def test_a_lack_of_memory_is_told_and_not_kept(monkeypatch):
    """Another program's memory may be free when the next run starts."""
    monkeypatch.setattr(device_checks, "resolve_device", lambda _: CPU)
    text = "CUDA out of memory. Tried to allocate 2.00 GiB"
    monkeypatch.setattr(loss_choice, "fault_of_fused", lambda *_: text)
    assert device_checks.fused_loss().state is WITHOUT
    assert recall(loss_choice.check_name(128), CPU) is None


@pytest.mark.usefixtures("kept")
@pytest.mark.parametrize("before", [None, "", "no g++"])
def test_ctrl_c_leaves_the_results_as_they_were(monkeypatch, before):
    def interrupted(_):
        raise KeyboardInterrupt

    kept_checks.keep(kept_checks.COMPILE, before, CPU)
    monkeypatch.setattr(compilation, "compile_failure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        device_checks.compilation()
    assert recall(kept_checks.COMPILE, CPU) == before


def recording(step):
    return TapeRecording(lambda: tensors_of(step).values())


def test_a_captured_step_is_compared_with_an_eager_one(monkeypatch):
    for name, value in {"IMAGES": 4, "SIDE": 8, "STEPS": 5}.items():
        monkeypatch.setattr(captured_step, name, value)
    monkeypatch.setattr(captured_step, "resolve_precision", lambda *_: Precision.float32)
    assert captured_step.graph_fault(CPU, recording) == ""

    class Refusing(TapeRecording):
        def record(self, _):
            raise AttributeError("no such stream")

    fault = captured_step.graph_fault(CPU, lambda _: Refusing(list))
    assert fault == "the step cannot be captured as a CUDA graph (no such stream)"
    monkeypatch.setattr(TapeRecording, "replay", lambda self: self.output)
    assert "differ from those of an eager one" in captured_step.graph_fault(CPU, recording)


def test_dalis_pixels_are_compared_with_the_cpus(monkeypatch):
    """The comparison itself is in tests/equivalence/test_gpu_decoding.py."""
    require("nvidia.dali")
    monkeypatch.setattr(dali_pixels, "IMAGES", 8)
    assert dali_pixels.dali_fault(CPU) == ""
    monkeypatch.setattr(dali_pixels, "IMAGE_LEVELS", 0.01)
    assert re.match(r"batch 0: image of sample \d differs by 0\.\d", dali_pixels.dali_fault(CPU))
    monkeypatch.setattr(dali_pixels, "is_installed", lambda _: False)
    assert dali_pixels.dali_fault(CPU) == "DALI is not installed"


@pytest.mark.parametrize(
    ("program", "seconds", "text"),
    [
        ("import os; os.abort()", 60, "crashed (exit code -6: no reason given)"),
        ("raise SystemError('bad')", 60, "crashed (exit code 1: SystemError: bad)"),
        ("import time; time.sleep(60)", 0.2, "took more than 0.2 s"),
        ("print('[3]')", 60, "crashed (exit code 0: no reason given)"),
    ],
)
def test_a_check_that_crashes_or_hangs_is_a_finding(monkeypatch, program, seconds, text):
    monkeypatch.setattr(child, "PROGRAM", program)
    found = child.in_child(("a", "b"), BROKEN, seconds=seconds)
    assert [one.state for one in found] == [BROKEN, BROKEN]
    assert all(text in one.text for one in found)


def test_what_a_child_finds_comes_back(monkeypatch, capsys):
    monkeypatch.setattr(device_checks, "driver", lambda: NO_GPU)
    monkeypatch.setattr(device_checks, "card", lambda: Finding(BROKEN, "ä\n", "do"))
    monkeypatch.setattr("fastmoco.caches.prepare_caches", lambda: None)
    child.main("driver", "card")
    line = capsys.readouterr().out.splitlines()[-1]
    monkeypatch.setattr(child, "PROGRAM", f"print('noise'); print({line!r})")
    assert child.in_child(("driver", "card"), WITHOUT, seconds=60) == [
        NO_GPU,
        Finding(BROKEN, "ä\n", "do"),
    ]


@pytest.fixture
def without_children(monkeypatch, tmp_path):
    """Checks in this process, the slow ones played."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        examine,
        "in_child",
        lambda checks, *_, **__: [getattr(device_checks, check)() for check in checks],
    )
    for check in ("compilation", "dali", "ffcv"):
        monkeypatch.setattr(device_checks, check, lambda: Finding(WORKS, "played"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
@pytest.mark.usefixtures("without_children")
def test_on_a_machine_without_a_gpu_training_can_run(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["can_train"]
    assert len(found["parts"]) == 19
    for part in ("driver", "GPU", *examine.GPU_PARTS):
        assert found["parts"][part] == {"state": "skipped", "text": "no NVIDIA GPU here", "fix": ""}


@pytest.mark.usefixtures("without_children")
def test_what_training_needs_and_lacks_is_exit_code_1(capsys, monkeypatch):
    """A check that fails itself stops no other."""
    monkeypatch.setattr(system_checks, "python", lambda: Finding(BROKEN, "3.9", "use 3.12"))
    monkeypatch.setattr(system_checks, "disk", refuse)
    assert cli.main(["doctor"]) == 1
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[:2] == ["Python          broken   3.9", " " * 25 + "fix: use 3.12"]
    assert "the check failed ([Errno 30] Read-only file system)" in printed.out
    assert lines[-1].startswith("caches")
    assert printed.err == "fastmoco: training cannot run as it should: Python\n"


@pytest.mark.usefixtures("without_children")
def test_each_line_is_printed_as_soon_as_its_check_is_done(capsys, monkeypatch):
    printed_before = []

    def disk():
        printed_before.append(capsys.readouterr().out)
        return Finding(WORKS, "large")

    monkeypatch.setattr(system_checks, "disk", disk)
    assert cli.main(["doctor"]) == 0
    assert printed_before[0].splitlines()[0].startswith("Python ")
    assert capsys.readouterr().out.startswith("disk            works    large\n")


def test_each_gpu_check_without_a_gpu_is_no_failure():
    if not torch.cuda.is_available():
        for check in examine.GPU_PARTS.values():
            assert getattr(device_checks, check)() == NO_GPU
