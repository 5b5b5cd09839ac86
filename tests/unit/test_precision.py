"""`precision=auto`: one rule for each kind of device, chosen once for a run."""

from pathlib import Path

import pytest
import torch

from fastmoco.configuration import load_config
from fastmoco.moco.settings import Precision
from fastmoco.optim import precision
from fastmoco.optim.precision import choose_precision, dtype_of
from fastmoco.runs.run_folder import RunFolder, RunIdentity
from fastmoco.train.number_format import with_precision
from fastmoco.train.settings import FREE_KEYS, TrainConfig

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
ROOT = Path(__file__).parents[2]
PRESETS = sorted(path.stem for path in (ROOT / "configs/experiment").glob("*.yaml"))
PUBLISHED = {
    "cifar10_colab": "float32",
    "cifar10_colab_symmetric": "float32",
    "cifar10_lightly": "float32",
    "cifar10_solo": "fp16",
    "fast_moco": "float32",
    "imagenette_lightly": "float32",
    "moco_v1": "float32",
    "moco_v2": "float32",
    "moco_v3": "fp16",
    "moco_v3_100": "fp16",
    "moco_v3_1000": "fp16",
    "moco_v3_vit": "fp16",
    # Not published: figures of this project.
    "cifar10_cpu": "float32",
    "demo": "float32",
}


@pytest.fixture
def flags(monkeypatch):
    """Sets the instruction sets of the CPU."""

    def set_flags(text: str) -> None:
        monkeypatch.setattr(precision, "_cpu_flags", lambda: frozenset(text.split()))

    return set_flags


@pytest.fixture
def capability(monkeypatch):
    """Sets the compute capability of every GPU."""

    def set_capability(*numbers: int) -> None:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _=None: numbers)

    return set_capability


@pytest.mark.parametrize(
    ("numbers", "chosen"),
    [
        ((6, 1), "float32"),
        ((7, 0), "fp16"),
        ((7, 5), "fp16"),
        ((8, 0), "bf16"),
        ((8, 9), "bf16"),
        ((9, 0), "bf16"),
        ((12, 0), "bf16"),
    ],
)
def test_a_gpu_computes_in_what_it_has_matrix_units_for(capability, numbers, chosen):
    capability(*numbers)
    assert choose_precision(GPU) == (chosen, f"compute capability {numbers[0]}.{numbers[1]}")


@pytest.mark.parametrize(
    ("text", "chosen", "reason"),
    [
        ("fpu avx2 avx512f avx512_bf16", "bf16", "this CPU has avx512_bf16"),
        ("avx512_bf16 amx_bf16 amx_tile", "bf16", "this CPU has amx_bf16"),
        ("fpu avx2 avx512f avx512_vnni", "float32", "this CPU has no instructions for bf16"),
        ("", "float32", "this CPU has no instructions for bf16"),
    ],
)
def test_a_cpu_computes_in_bf16_if_it_has_instructions_for_it(flags, text, chosen, reason):
    flags(text)
    assert choose_precision(CPU) == (chosen, reason)


def test_the_flags_are_those_of_this_processor():
    found = precision._cpu_flags()
    assert found
    assert all(flag in Path("/proc/cpuinfo").read_text() for flag in found)


def test_a_given_format_stays(flags):
    flags("avx512_bf16")
    cfg = load_config(TrainConfig, ["precision=fp16"])
    assert with_precision(cfg, CPU) is cfg
    assert dtype_of(Precision.float32, CPU) is torch.float32
    assert dtype_of(Precision.auto, CPU) is torch.bfloat16


def test_the_choice_and_its_reason_are_part_of_the_configuration(flags):
    flags("avx512_bf16")
    given = load_config(TrainConfig, [])
    cfg = with_precision(given, CPU)
    assert given.precision is Precision.auto
    assert (cfg.precision, cfg.advice) == ("bf16", ["precision=bf16: this CPU has avx512_bf16"])
    assert with_precision(cfg, CPU) is cfg


@pytest.mark.parametrize("stored", ["float32", "fp16", "bf16", None], ids=str)
def test_a_resumed_run_keeps_its_format(flags, tmp_path, stored):
    """None: a run of a version that had the option, but whose file lacks it."""
    flags("avx512_bf16")
    before = load_config(TrainConfig, [f"precision={stored or 'float32'}"])
    run = RunFolder(tmp_path)
    text = RunIdentity(before, FREE_KEYS).to_yaml()
    run.config.write_text(text if stored else text.replace("precision: float32\n", ""))
    cfg = with_precision(load_config(TrainConfig, []), CPU, run)
    assert cfg.precision is Precision.bf16  # no checkpoint yet: chosen anew
    run.checkpoints.mkdir()
    (run.checkpoints / "step-00000001.json").touch()
    cfg = with_precision(load_config(TrainConfig, []), CPU, run)
    assert (cfg.precision, cfg.advice) == (stored or "float32", [])
    if stored:
        assert RunIdentity(cfg, FREE_KEYS).differences(run.config) == []


def test_a_resumed_run_keeps_the_reason(flags, tmp_path):
    flags("avx512_bf16")
    run = RunFolder(tmp_path)
    first = with_precision(load_config(TrainConfig, []), CPU, run)
    run.config.write_text(RunIdentity(first, FREE_KEYS).to_yaml())
    run.checkpoints.mkdir()
    (run.checkpoints / "step-00000001.json").touch()
    flags("avx2")  # on another machine
    again = with_precision(load_config(TrainConfig, []), CPU, run)
    assert (again.precision, again.advice) == (first.precision, first.advice)


@pytest.mark.parametrize("preset", [name for name in PRESETS if name != "own"])
def test_presets_keep_a_published_format_and_else_choose(capability, preset):
    cfg = load_config(TrainConfig, [f"experiment={preset}"])
    for numbers, chosen in {(7, 5): "fp16", (9, 0): "bf16"}.items():
        capability(*numbers)
        assert with_precision(cfg, GPU).precision == PUBLISHED.get(preset, chosen)


DEVICES = (
    ("a GPU from compute capability 8.0 on (A100, RTX 30, L4, H100, ...)", (8, 0), ""),
    ("a GPU of 7.0 to 7.5 (V100, T4, RTX 20)", (7, 0), ""),
    ("an older GPU", (6, 1), ""),
    ("a CPU with `avx512_bf16` or `amx_bf16` in `/proc/cpuinfo`", None, "avx512_bf16"),
    ("another CPU", None, "avx2"),
)


def test_the_table_of_the_page_is_what_the_rule_gives(capability, flags):
    lines = ["| device | `precision=auto` |", "|---|---|"]
    for name, numbers, text in DEVICES:
        flags(text)
        capability(*(numbers or (0, 0)))
        lines.append(f"| {name} | {choose_precision(GPU if numbers else CPU)[0].value} |")
    expected = "\n".join(lines)
    assert expected in (ROOT / "docs/devices.md").read_text(), f"put this there:\n{expected}"
