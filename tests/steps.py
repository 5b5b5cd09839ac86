"""A small training step and its batches, for tests of the step itself."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmoco.configuration import load_config
from fastmoco.data.dataset import Dataset
from fastmoco.draws.host import draw_keys
from fastmoco.moco.build import build_model
from fastmoco.moco.settings import MocoConfig, ModelConfig, Stem
from fastmoco.optim.optimizers import build_optimizer
from fastmoco.optim.settings import OptimizerConfig
from fastmoco.pipelines.contract import Batch
from fastmoco.pipelines.policies import POLICIES
from fastmoco.ranks import ALONE, Ranks
from fastmoco.runs.run_folder import RunFolder
from fastmoco.train.checks import check_config
from fastmoco.train.device_rules import with_augmentation
from fastmoco.train.number_format import with_precision
from fastmoco.train.settings import TrainConfig
from fastmoco.train.step import TrainStep
from fastmoco.train.trainer import Trainer

BATCH = 8
NUM_SAMPLES = 400  # of the batches that are numbered below 50


def make_step(
    *,
    optimizer: OptimizerConfig | None = None,
    moco: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    dtype: torch.dtype = torch.float32,
    accumulate: int = 1,
    ranks: Ranks = ALONE,
    device: str = "cpu",
    policy: str = "moco_v2",
    **settings: Any,
) -> TrainStep:
    """A ResNet-18 of width 4 on images of 16 pixels; the same weights at each call."""
    torch.manual_seed(0)
    size = {"encoder": "resnet18", "stem": Stem.small_stride2, "width": 4, **(model or {})}
    # The queue wraps: 28 is no multiple of 8.
    method = {"dim": 16, "queue_size": 28, "momentum": 0.9, **(moco or {})}
    built = build_model(
        ModelConfig(**size), MocoConfig(**method), ranks, accumulate, num_samples=NUM_SAMPLES
    )
    built = built.to(device=device, dtype=dtype, memory_format=torch.channels_last)
    mean, std = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.25])
    return TrainStep(
        built,
        build_optimizer(built.learnable(), optimizer or OptimizerConfig()),
        policy=POLICIES[policy],
        mean=mean.to(device),
        std=std.to(device),
        accumulate=accumulate,
        **settings,
    )


TINY_RUN = (
    "data.train=none.beton",
    "global_batch_size=8",
    "pipeline.view_size=16",
    "model.encoder=resnet18",
    "model.stem=small_stride2",
    "model.width=4",
    "moco.dim=16",
    "moco.queue_size=28",
    "moco.momentum=0.9",
    "train.compile=never",
)
"""`make_step` with its defaults, as options of a run."""


class NoImages:
    """As much of a dataset as a trainer needs whose batches come from elsewhere."""

    path = Path("none.beton")
    fingerprint = "none"

    def __init__(self, count: int) -> None:
        self.count, self.facts = count, {}

    def __len__(self) -> int:
        return self.count


def make_trainer(
    overrides: Iterable[str], *, num_samples: int = NUM_SAMPLES, dataset: Dataset | None = None
) -> Trainer:
    """What `train` builds for a configuration: loss, queue and precision as a run has them."""
    cfg = load_config(TrainConfig, list(overrides))
    device = check_config(cfg)
    run = RunFolder(Path("none"))
    cfg = with_augmentation(with_precision(cfg, device, run), device, run)
    return Trainer(cfg, run, dataset or NoImages(num_samples), device)


def make_batch(number: int, *, size: int = BATCH, device: str = "cpu") -> Batch:
    """The batch of a step, a function of its number."""
    ids = torch.arange(size) + size * number
    generator = torch.Generator().manual_seed(number)
    crops = torch.randint(256, (size, 2, 16, 16, 3), generator=generator).to(torch.uint8)
    return Batch(
        crops=crops.to(device),
        boxes=torch.zeros(size, 2, 4, dtype=torch.int32),
        sample_id=ids.to(device),
        draw_key=torch.from_numpy(draw_keys(3, 0, ids.numpy())).to(device),
        label=torch.full((size,), -1),
        data_wait_seconds=0.0,
    )


def tensors_of(step: TrainStep) -> dict[str, Tensor]:
    """All that a step changes, by name; the tensors themselves."""
    found = dict(step.model.state_dict(keep_vars=True))
    found |= {f"scaler.{name}": getattr(step.scaler, name) for name in ("scale", "growth_tracker")}
    for group in step.optimizer.param_groups:
        for index, parameter in enumerate(group["params"]):
            for name, value in step.optimizer.state[parameter].items():
                found[f"optimizer.{len(group['params'])}.{index}.{name}"] = value
    return {name: value.detach() for name, value in found.items()}


def differing(step: TrainStep, other: TrainStep) -> list[str]:
    """Names of tensors that are not bit-equal."""
    theirs = tensors_of(other)
    ours = tensors_of(step)
    assert ours.keys() == theirs.keys()
    return [name for name, value in ours.items() if not torch.equal(value, theirs[name])]
