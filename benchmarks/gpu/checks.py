"""What a card is, and whether what runs on it is right: the loss, the graph, the marked tests."""

import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.child import LAST_LINES
from benchmarks.gpu.job import TOY, Job
from benchmarks.harness import Timer, summarize
from benchmarks.limits import copy_rate, matrix_rate
from benchmarks.report import ROOT, Report, Row
from benchmarks.step_subject import noise_batch, training_step
from fastmoco.moco.loss_choice import fault_of_fused, resolve_loss
from fastmoco.moco.settings import Loss, MocoConfig, ModelConfig, Precision, Stem
from fastmoco.optim.precision import choose_precision
from fastmoco.pipelines.policies import POLICIES
from fastmoco.train.acceleration import WARM_UP_STEPS, CudaRecording, GraphedStep, Recording
from fastmoco.train.step import TrainStep

PACKAGES = ("triton", "numba", "kornia", "nvidia.dali", "ffcv", "timm", "simplejpeg")
SUBJECT = "what is there, and whether it is right"
LAUNCHES = 1_000


def facts(job: Job, report: Report) -> None:
    """The card, the packages, and the rates that bound everything else."""
    report.subject, report.peers = SUBJECT, ("triton", "kornia", "numba", "nvidia-dali-cuda130")
    device = job.device
    there = [name for name in PACKAGES if _is_there(name)]
    missing = [name for name in PACKAGES if name not in there]
    note = f"there: {', '.join(there)}; missing: {', '.join(missing) or 'none'}"
    report.rows.append(_count("packages", len(there), note))
    if job.on_gpu:
        report.rows += _card_rows(device)
    report.rows.append(_figure("copy on the device", "GB/s", copy_rate(device) / 1e9))
    for dtype in () if job.scale == TOY else (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.") + (" (TF32)" if dtype == torch.float32 else "")
        rate = matrix_rate(device, dtype) / 1e12
        report.rows.append(_figure(f"matrix products in {name}", "TFLOP/s", rate))
    report.rows += _transfer_rows(job)


def _is_there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def _card_rows(device: torch.device) -> list[Row]:
    found = torch.cuda.get_device_properties(device)
    capability = f"{found.major}.{found.minor}"
    built_for = ", ".join(torch.cuda.get_arch_list())
    note = (
        f"{found.name}, compute capability {capability}; torch is built for CUDA "
        f"{torch.version.cuda} and {built_for}"
    )
    memory = found.total_memory / 1e9
    return [
        _count("multiprocessors", found.multi_processor_count, note),
        _figure("memory of the device", "GB", memory),
    ]


def _transfer_rows(job: Job) -> list[Row]:
    """Copies from and to pinned memory, and what the start of a kernel costs the host."""
    device, size = job.device, job.pick(1 << 20, 1 << 28)
    host = torch.randint(256, (size,), dtype=torch.uint8, pin_memory=job.on_gpu)
    there, timer = host.to(device), job.timer
    works: dict[str, Callable[[], object]] = {
        "copy from pinned memory": lambda: there.copy_(host, non_blocking=True),
        "copy to pinned memory": lambda: host.copy_(there, non_blocking=True),
    }
    rows = []
    for name, work in works.items():
        work()
        rates = [size * 5 / timer(work, 5) / 1e9 for _ in range(3)]
        rows.append(Row(what=name, unit="GB/s", value=summarize(rates)))
    return [*rows, _launch_row(timer, device)]


def _launch_row(timer: Timer, device: torch.device) -> Row:
    small = torch.zeros(1, device=device)
    timer(lambda: small.add_(1), LAUNCHES)
    micros = [1e6 * timer(lambda: small.add_(1), LAUNCHES) / LAUNCHES for _ in range(3)]
    return Row(what="a kernel of one number, eager", unit="us", value=summarize(micros))


def strict_loss(job: Job, report: Report) -> None:
    """The fused kernel against its plain twin, at every C that it takes.

    Raises:
        AssertionError: If it differs, or cannot be compiled or launched.
    """
    report.subject, faults = SUBJECT, {}
    for dim in (64,) if job.scale == TOY else (64, 128, 256, 512):
        fault = fault_of_fused(job.device, dim) if job.on_gpu else "not on a GPU"
        right = not fault or not job.on_gpu
        form = resolve_loss(Loss.auto, job.device, dim)
        note = f"auto is {form.value}; {fault or 'loss, gradient and ranks agree'}"
        report.rows.append(_count(f"fused loss, C = {dim}, right", int(right), note))
        if not right:
            faults[dim] = fault
    assert not faults, f"the fused loss is not used: {faults}"


def replay(job: Job, report: Report) -> None:
    """Steps of a CUDA graph against the same steps launched one by one, bit for bit.

    Raises:
        AssertionError: If metrics, weights, queue or optimizer differ.
    """
    report.subject, differing = SUBJECT, {}
    usual = choose_precision(job.device)[0]
    cases = {
        f"{usual.value}, compiled": (usual, job.compiled),
        "fp16, eager": (Precision.fp16, False),
    }
    deterministic, torch.backends.cudnn.deterministic = torch.backends.cudnn.deterministic, True
    try:
        for name, (precision, compiled) in cases.items():
            found = _differing(job, precision, compiled=compiled)
            what = f"{name}: tensors that differ between replay and launch"
            report.rows.append(_count(what, len(found), ", ".join(found[:5])))
            if found:
                differing[name] = found[:5]
    finally:
        torch.backends.cudnn.deterministic = deterministic
    assert not differing, f"replayed and launched steps differ: {differing}"


class HostRecording:
    """In the place of a CUDA graph where there is none: does the recorded work again."""

    def warm_up(self, work: Callable[[], Tensor]) -> Tensor:
        """Run the work."""
        return work()

    def record(self, work: Callable[[], Tensor]) -> None:
        """Keep the work."""
        self._work = work

    def replay(self) -> Tensor:
        """Run the work that was kept."""
        return self._work()

    def abandon(self) -> None:
        """Nothing was changed."""


def recording(device: torch.device) -> Recording:
    """A CUDA graph, or its stand-in."""
    return CudaRecording(device) if device.type == "cuda" else HostRecording()


def _differing(job: Job, precision: Precision, *, compiled: bool) -> list[str]:
    """Names of what differs after some steps."""
    plain, step = (_small_step(job, precision, compiled=compiled) for _ in range(2))
    graphed = GraphedStep(step, recording(job.device), required=True)
    metrics = []
    for number in range(WARM_UP_STEPS + job.pick(2, 9)):
        batch = noise_batch(job.pick(8, 128), job.pick(16, 32), job.device)
        batch.draw_key += number  # other views in every step
        metrics += [(graphed(batch, 0.03).clone(), plain(batch, 0.03).clone())]
    found = [f"metrics {i}" for i, pair in enumerate(metrics) if not torch.equal(*pair)]
    ours, theirs = _tensors(step), _tensors(plain)
    return found + [name for name, value in ours.items() if not torch.equal(value, theirs[name])]


def _small_step(job: Job, precision: Precision, *, compiled: bool) -> TrainStep:
    return training_step(
        ModelConfig(encoder="resnet18", stem=Stem.small, width=job.pick(4, 64)),
        MocoConfig(queue_size=job.pick(20, 4096), batch_norm_splits=2),
        policy=POLICIES["moco_v2"],
        device=job.device,
        precision=precision,
        compiled=compiled,
    )


def _tensors(step: TrainStep) -> Mapping[str, Tensor]:
    found: dict[str, Tensor] = dict(step.model.state_dict())
    for number, state in enumerate(step.optimizer.state.values()):
        found |= {f"optimizer {number} {k}": v for k, v in state.items() if torch.is_tensor(v)}
    return found


def gpu_tests(job: Job, report: Report) -> None:
    """The tests marked ``gpu``, in several processes where pytest-xdist is there.

    Raises:
        AssertionError: If some fail, or the time is over before the last one.
    """
    report.subject = SUBJECT
    marked = sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "tests").rglob("test_*.py")
        if "mark.gpu" in path.read_text(encoding="utf-8")
    )
    files = marked[:1] if job.scale == TOY else marked
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "-rN", "-p", "no:cacheprovider"]
    if not _is_there("pytest_timeout"):  # its option is in pyproject.toml
        command += ["-p", "benchmarks.gpu.no_timeout"]
    if _is_there("xdist") and job.scale != TOY:
        command += [f"--numprocesses={max(1, min(8, (os.cpu_count() or 1) // 2))}"]
    output, is_over = _output_of([*command, *files], job.scratch, job.seconds - 10)
    lines = [line for line in output.splitlines() if "::" in line]
    counts = {
        word: sum(bool(re.search(rf"\b{word}\b", line)) for line in lines)
        for word in ("PASSED", "FAILED", "ERROR", "SKIPPED")
    }
    for word, count in counts.items():
        report.rows.append(_count(f"gpu tests {word.lower()}", count, f"of {len(files)} files"))
    end = "\n".join(output.strip().splitlines()[-LAST_LINES:])
    assert not is_over, f"not done after {job.seconds - 10:.0f} s:\n{end}"
    assert not counts["FAILED"] + counts["ERROR"], end
    assert counts["PASSED"] + counts["SKIPPED"], f"no test ran:\n{end}"


def _output_of(command: list[str], scratch: Path, seconds: float) -> tuple[str, bool]:
    """What a command prints, and whether it was killed for the time."""
    path, is_over = scratch / "gpu_tests.txt", False
    with path.open("w") as file:
        try:
            subprocess.run(command, cwd=ROOT, timeout=seconds, stdout=file, stderr=file)
        except subprocess.TimeoutExpired:
            is_over = True
    return path.read_text(errors="replace"), is_over


def _count(what: str, count: int, note: str = "") -> Row:
    return Row(what=what, unit="count", value=summarize([float(count)]), note=note)


def _figure(what: str, unit: str, value: float) -> Row:
    return Row(what=what, unit=unit, value=summarize([value]))
