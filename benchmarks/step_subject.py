"""fastmoco's model and step as `Trainer` makes them, for benchmarks that have no run."""

import time

import torch
from torch import Tensor

from benchmarks.harness import random_images
from fastmoco.draws.host import draw_keys
from fastmoco.moco.build import build_model
from fastmoco.moco.mechanism import ContrastiveModel
from fastmoco.moco.model import MoCo
from fastmoco.moco.settings import MocoConfig, ModelConfig, Precision, Stem
from fastmoco.optim.optimizers import build_optimizer
from fastmoco.optim.settings import OptimizerConfig
from fastmoco.pipelines.contract import Batch
from fastmoco.pipelines.policies import POLICIES, Policy
from fastmoco.train.step import TrainStep

LEARNING_RATE = 0.03


def built(
    model: ModelConfig, moco: MocoConfig, device: torch.device, *, num_samples: int = 0
) -> ContrastiveModel:
    """The same weights at each call; `num_samples` is for a memory bank."""
    torch.manual_seed(0)
    found = build_model(model, moco, num_samples=num_samples).to(device)
    found.prepare_for_device(device, moco.loss)
    return found


def built_model(model: ModelConfig, moco: MocoConfig, device: torch.device) -> MoCo:
    """The same weights at each call."""
    found = built(model, moco, device)
    assert isinstance(found, MoCo)
    return found


def training_step(
    model: ModelConfig,
    moco: MocoConfig,
    *,
    policy: Policy,
    device: torch.device,
    precision: Precision,
    compiled: bool,
    num_samples: int = 0,
) -> TrainStep:
    """A step with SGD, on channels_last weights."""
    found = built(model, moco, device, num_samples=num_samples)
    found = found.to(memory_format=torch.channels_last)
    mean, std = statistics(device)
    return TrainStep(
        found,
        build_optimizer(found.learnable(), OptimizerConfig()),
        policy=policy,
        mean=mean,
        std=std,
        precision=precision,
        compiled=compiled,
    )


def feed_step(
    model: ModelConfig, policy: Policy, device: torch.device, queue_size: int = 65_536
) -> TrainStep:
    """The step that a data path feeds: MoCo v2 in bf16; compiled on a GPU."""
    return training_step(
        model,
        MocoConfig(queue_size=queue_size),
        policy=policy,
        device=device,
        precision=Precision.bf16,
        compiled=device.type == "cuda",
    )


def seconds_a_step(seconds: float) -> dict[str, float]:
    """Times steps of a small ResNet-18 on the CPU for this long, after 2 untimed ones."""
    device = torch.device("cpu")
    step = training_step(
        ModelConfig(encoder="resnet18", stem=Stem.small_stride2, width=16),
        MocoConfig(queue_size=4096, batch_norm_splits=4),
        policy=POLICIES["cifar"],
        device=device,
        precision=Precision.float32,
        compiled=False,
    )
    batch, count = noise_batch(64, 32, device), 0
    for _ in range(2):
        step(batch, LEARNING_RATE)
    start = time.perf_counter()
    while time.perf_counter() < start + seconds:
        step(batch, LEARNING_RATE)
        count += 1
    return {"seconds": (time.perf_counter() - start) / count}


def noise_batch(batch_size: int, view_size: int, device: torch.device) -> Batch:
    """A batch of random crops, as a loader gives it."""
    ids = torch.arange(batch_size)
    keys = torch.from_numpy(draw_keys(0, 0, ids.numpy())).to(device)
    return Batch(
        crops=random_images((batch_size, 2, view_size, view_size, 3), device),
        boxes=torch.zeros(batch_size, 2, 4, dtype=torch.int32, device=device),
        sample_id=ids.to(device),
        draw_key=keys,
        label=torch.full((batch_size,), -1, device=device),
        data_wait_seconds=0.0,
    )


def statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Some channel mean and deviation."""
    return torch.full((3,), 0.5, device=device), torch.full((3,), 0.25, device=device)
