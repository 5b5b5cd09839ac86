"""What is fast learns as what is plain: 50 or 200 steps of the loss, side by side.

Plain: PIL's loader, float32, the textbook loss, eager. Fast: decode once, channels_last, the
chunked loss; `make full` adds bfloat16 and torch.compile. Trajectories part after some steps, as
those of any two roundings do (docs/log.md, "Step"), so the curves are compared and not the weights.
"""

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fastmoco.configuration import load_config
from fastmoco.data.convert import ConvertConfig, Encoding, convert
from fastmoco.runs.metrics_file import read_metrics
from fastmoco.train.loop import train
from fastmoco.train.settings import TrainConfig
from tests.compiling import require_compiler

STEPS = 200
PLAIN = [
    "pipeline.name=torchvision",
    "precision=float32",
    "moco.loss=plain",
    "train.compile=never",
]
FAST = ["pipeline.name=beton", "moco.loss=chunked"]
EAGER = [*FAST, "precision=float32", "train.compile=never"]
COMPILED = [*FAST, "precision=bf16", "train.compile=always"]
OPTIONS = [
    "policy=cifar",
    "global_batch_size=32",
    "pipeline.view_size=32",
    "model.encoder=resnet18",
    "model.stem=small_stride2",
    "model.width=8",
    "moco.dim=32",
    "moco.queue_size=256",
    "moco.momentum=0.99",
    "moco.batch_norm_splits=4",
    "optimizer.learning_rate=0.06",
    "optimizer.warmup_epochs=1",
    "train.log_every_steps=1",
    "checkpoint.every_steps=1000",
]
SAME_SEED_NATS = 0.02
"""How far two runs of one seed may be apart, on the mean over all steps."""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("textures") / "train.beton"
    convert("builtin:textures", path, ConvertConfig(encoding=Encoding.raw, workers=1))
    return path


def _losses(
    dataset: Path, folder: Path, seed: int, options: list[str], steps: int
) -> npt.NDArray[np.float64]:
    name = f"{folder}/{seed}"
    overrides = [*OPTIONS, *options, f"seed={seed}", f"data.train={dataset}", f"run_dir={name}"]
    overrides.append(f"train.max_steps={steps}")
    run = train(load_config(TrainConfig, overrides))
    losses = np.array([row["loss"] for row in read_metrics(run / "metrics.jsonl")])
    assert losses.shape == (steps,)
    return losses


def _means(losses: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    return losses.reshape(-1, 10).mean(axis=1)


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        pytest.param(EAGER, STEPS // 4, id="eager, a quarter"),
        pytest.param(EAGER, STEPS, id="eager", marks=pytest.mark.full),
        pytest.param(
            COMPILED, STEPS, id="compiled", marks=[pytest.mark.full, pytest.mark.timeout(1200)]
        ),
    ],
)
def test_fast_path_learns_as_the_plain_one(
    dataset: Path, tmp_path: Path, full_curves: bool, options: list[str], steps: int
) -> None:
    if options is COMPILED:
        require_compiler()
    seeds = range(3) if full_curves else range(1)
    plain = [_losses(dataset, tmp_path / "plain", seed, PLAIN, steps) for seed in seeds]
    fast = _losses(dataset, tmp_path / "fast", 0, options, steps)
    difference = (fast - plain[0]).mean()
    assert abs(difference) <= SAME_SEED_NATS
    if not full_curves:
        return
    means = np.stack([_means(losses) for losses in plain])
    # Seed 0 is the least or the greatest of the three in most windows, so that its twin may pass by
    # the little that the two differ.
    assert (_means(fast) >= means.min(axis=0) - SAME_SEED_NATS).all()
    assert (_means(fast) <= means.max(axis=0) + SAME_SEED_NATS).all()
    inside = (_means(fast) >= means.min(axis=0)) & (_means(fast) <= means.max(axis=0))
    print(f"fast - plain, seed 0: {difference:+.4f} nats on the mean of {steps} steps;")
    print(f"{inside.sum()} of {len(inside)} 10-step means inside the range of 3 plain seeds")
