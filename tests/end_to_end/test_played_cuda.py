"""Steps of runs on a played GPU: all of it on the device, in the right format, without host reads.

The device is played by a library (tests/played_cuda), so that this is held on every machine.
"""

from typing import Any

import pytest

from tests.played_cuda.played import play_together

NARROW = ["model.encoder=alexnet"]
V3 = ["moco.mechanism=moco_v3", "moco.hidden_dim=64", "optimizer.name=adamw", *NARROW]
VIT = [*V3[:-1], "pipeline.view_size=224", "model.stem=imagenet", "model.width=64"]
VIT.append("model.encoder=timm:vit_tiny_patch16_224")
STEPS: dict[str, tuple[Any, ...]] = {
    "as it comes, captured": ([], 5),
    "while another device is current": (NARROW, 2, 0),
    "float32": (["precision=float32"],),
    "fp16": (["precision=fp16"],),
    "reproducible": (["train.reproducible=true", *NARROW],),
    "adam": (["optimizer.name=adam", *NARROW], 2),
    "adamw, fp16": (["optimizer.name=adamw", "precision=fp16", *NARROW], 2),
    "lars, fp16": (["optimizer.name=lars", "precision=fp16", *NARROW], 2),
    "plain loss": (["moco.loss=plain", *NARROW],),
    "chunked loss": (["moco.loss=chunked", *NARROW],),
    "eman": (["moco.batch_norm=eman"],),
    "momentum that moves": (["moco.final_momentum=1.0", *NARROW],),
    "symmetric, split": (["moco.symmetric=true", "moco.batch_norm_splits=4"],),
    "symmetric, in parts, adam": (
        ["moco.symmetric=true", "train.accumulate=2", "optimizer.name=adam", *NARROW],
    ),
    "end to end": (["moco.mechanism=end_to_end", *NARROW],),
    "memory bank": (["moco.mechanism=memory_bank", *NARROW],),
    "MoCo v3, fp16": (["precision=fp16", *V3],),
    "recomputed": (["model.activation_checkpointing=true"],),
    "halves": (["moco.pretext=cross_channel", "model.encoder=halves:alexnet", "policy=moco_v1"],),
    "vit": (VIT,),
}


@pytest.fixture(scope="module")
def found() -> dict[str, dict[str, Any]]:
    """What `tests.played_cuda.step.run` says of each of `STEPS`."""
    return play_together({n: ("tests.played_cuda.step:run", *a) for n, a in STEPS.items()})


@pytest.mark.parametrize("name", STEPS)
def test_a_step_stays_on_its_device_and_reads_nothing(found, name) -> None:
    assert found[name].get("error", "") == ""
    assert found[name]["result"]["faults"] == []
