"""Steps of runs on a played GPU: all of it on the device, in the right format, without host reads.

The device is played by a library (tests/played_cuda), so that this is held on every machine.
"""

from pathlib import Path
from typing import Any

import pytest

from tests.played_cuda.played import play, play_together
from tests.played_cuda.presets import CARDS

NARROW = ["model.encoder=alexnet"]
V3 = ["moco.mechanism=moco_v3", "moco.hidden_dim=64", "optimizer.name=adamw", *NARROW]
VIT = [*V3[:-1], "pipeline.view_size=224", "model.stem=imagenet", "model.width=64"]
VIT.append("model.encoder=timm:vit_tiny_patch16_224")
PATCHES = ["moco.mechanism=fast_moco", "moco.hidden_dim=64", "optimizer.clip_gradient_norm=1.0"]
STEPS: dict[str, tuple[Any, ...]] = {
    "as it comes, captured": ([], 5),
    "while another device is current": ([*NARROW, "train.cuda_graph=never"], 2, 0),
    "float32": (["precision=float32", *NARROW],),
    "fp16": (["precision=fp16", *NARROW],),
    "reproducible": (["train.reproducible=true", *NARROW],),
    "adam": (["optimizer.name=adam", *NARROW], 2),
    "adamw, fp16": (["optimizer.name=adamw", "precision=fp16", *NARROW], 2),
    "lars, fp16": (["optimizer.name=lars", "precision=fp16", *NARROW], 2),
    "views by planes": (["pipeline.augmentation=planes", *NARROW],),
    "unlike views": (["policy=moco_v3", *NARROW],),
    "plain loss": (["moco.loss=plain", *NARROW],),
    "chunked loss": (["moco.loss=chunked", *NARROW],),
    "eman": (["moco.batch_norm=eman"],),
    "synchronized, momentum that moves": (
        ["moco.batch_norm=synchronized", "moco.final_momentum=1.0"],
    ),
    "symmetric, split": (["moco.symmetric=true", "moco.batch_norm_splits=4"],),
    "symmetric, in parts, adam": (
        ["moco.symmetric=true", "train.accumulate=2", "optimizer.name=adam", *NARROW],
    ),
    "end to end": (["moco.mechanism=end_to_end", *NARROW],),
    "memory bank": (["moco.mechanism=memory_bank", *NARROW],),
    "MoCo v3, fp16": (["precision=fp16", *V3],),
    "Fast-MoCo, clipped": (PATCHES,),
    "recomputed": (["model.activation_checkpointing=true"],),
    "halves": (["moco.pretext=cross_channel", "model.encoder=halves:alexnet", "policy=moco_v1"],),
    "binary NCE": (["moco.objective=binary_nce", *NARROW],),
    "vit": (VIT,),
}


OTHER_LOSSES = {"plain loss": "plain", "chunked loss": "chunked", "binary NCE": "plain"}
DTYPES = {"bf16": "bfloat16", "fp16": "float16", "float32": "float32"}
LOADERS = ["beton", "foreign", "resident", "torchvision"]
COMPILED = {
    "ResNet-18": [],
    "ResNet-18, fp16, symmetric, split": [
        "precision=fp16",
        "moco.symmetric=true",
        "moco.batch_norm_splits=4",
    ],
    "ResNet-50, float32": ["precision=float32", "model.encoder=resnet50", "model.width=64"],
}
ROOT = Path(__file__).parents[2]


QUICK = [  # of each kind: a card, a format, an optimizer's kernel, views, batch norm, a mechanism
    "as it comes, captured",
    "while another device is current",
    "float32",
    "lars, fp16",
    "views by planes",
    "synchronized, momentum that moves",
    "symmetric, split",
    "memory bank",
    "MoCo v3, fp16",
    "halves",
    "binary NCE",
]
EVERY = [name if name in QUICK else pytest.param(name, marks=pytest.mark.full) for name in STEPS]


@pytest.fixture(scope="module")
def steps(request: pytest.FixtureRequest) -> dict[str, dict[str, Any]]:
    """What a process with two H100s says of each of `STEPS`, or of the quick ones."""
    names = STEPS if request.config.getoption("--full") else QUICK
    calls = {name: ("tests.played_cuda.step:run", *STEPS[name]) for name in names}
    return play_together(calls)


@pytest.fixture(scope="module")
def others() -> dict[str, dict[str, Any]]:
    """What a process says of loaders, presets and the compiled step."""
    calls = {
        "loaders": ("tests.played_cuda.loaders:run", LOADERS),
        "presets": ("tests.played_cuda.presets:table",),
        "compiled": ("tests.played_cuda.generated:graphs", NARROW),
    }
    return play_together(calls, capabilities=[90, 90, *CARDS])


def result_of(found: dict[str, dict[str, Any]], name: str) -> Any:
    assert found[name].get("error", "") == ""
    return found[name]["result"]


@pytest.mark.parametrize("name", EVERY)
def test_a_step_stays_on_its_device_and_reads_nothing(steps, name) -> None:
    assert result_of(steps, name)["faults"] == []


@pytest.mark.parametrize("name", EVERY)
def test_a_run_has_the_loss_the_memory_and_the_formats_of_a_gpu(steps, name) -> None:
    result = result_of(steps, name)
    in_batch = any(part in name for part in ("v3", "Fast", "end to end", "vit"))
    assert result["memory"] == ([] if in_batch else ["torch.float16"])
    assert result["loss"] == ("plain" if in_batch else OTHER_LOSSES.get(name, "fused"))
    assert result["precision"] == next((p for p in DTYPES if p in name), "bf16")
    if not result["captured"]:
        assert set(result["convolutions"]) == {f"{DTYPES[result['precision']]} nhwc"}


def test_a_captured_step_starts_nothing_but_its_graph(steps) -> None:
    """Its inputs, the learning rate and the metrics' sum are written; all else is replayed."""
    result = result_of(steps, "as it comes, captured")
    assert result["captured"]
    assert sum(result["operations"].values()) < 25


def assert_is_one_graph_in_channels_last(result: dict[str, Any], dtype: str) -> None:
    assert result["graphs"] == 1
    for part in (result["forward"], result["backward"]):
        assert len(part) == 1
        assert part[0]["other_devices"] == []
        assert set(part[0]["convolutions"]) == {f"{dtype} nhwc"}


def test_a_compiled_step_is_one_graph_in_channels_last(others) -> None:
    assert_is_one_graph_in_channels_last(result_of(others, "compiled"), "bfloat16")


@pytest.mark.parametrize("name", LOADERS)
def test_a_loader_hands_out_what_is_on_the_device(others, name) -> None:
    seen = result_of(others, "loaders")[name]
    assert seen["faults"] == []
    assert seen["facts"]
    assert seen["pixels"] or name == "resident"  # its crops are computed, and here are not
    assert seen["growth"] <= 0
    if name in ("beton", "foreign"):
        assert (seen["addresses"], seen["uploads"], seen["pinned"]) == (2, 6, True)


def test_the_table_of_presets_is_what_they_become(others) -> None:
    expected = "\n".join(result_of(others, "presets"))
    assert expected in (ROOT / "docs/devices.md").read_text(), f"put this there:\n{expected}"


@pytest.mark.full
@pytest.mark.parametrize("name", COMPILED)
def test_the_code_for_an_h100_is_written(name) -> None:
    result = play("tests.played_cuda.generated:generated", COMPILED[name])
    precision = next((p for p in DTYPES if p in name), "bf16")
    assert_is_one_graph_in_channels_last(result, DTYPES[precision])
    for part in (result["forward"], result["backward"]):
        assert sum(part[0]["kernels"].values()) > 0
