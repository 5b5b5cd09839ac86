"""fastmoco's model and step as `build_trainer` makes them, for benchmarks that have no run."""

import torch
from torch import Tensor

from fastmoco.moco.build import build_model
from fastmoco.moco.model import MoCo
from fastmoco.pipelines.policies import Policy
from fastmoco.schema import MocoConfig, ModelConfig, OptimizerConfig, Precision
from fastmoco.train.optimizers import build_optimizer
from fastmoco.train.step import TrainStep

LEARNING_RATE = 0.03


def built_model(model: ModelConfig, moco: MocoConfig, device: torch.device) -> MoCo:
    """The same weights at each call."""
    torch.manual_seed(0)
    built = build_model(model, moco).to(device)
    assert isinstance(built, MoCo)
    built.settle(device, moco.loss)
    return built


def training_step(
    model: ModelConfig,
    moco: MocoConfig,
    *,
    policy: Policy,
    device: torch.device,
    precision: Precision,
    compiled: bool,
) -> TrainStep:
    """A step with SGD, on channels_last weights."""
    built = built_model(model, moco, device).to(memory_format=torch.channels_last)
    mean, std = statistics(device)
    return TrainStep(
        built,
        build_optimizer(built.query_encoder.parameters(), OptimizerConfig()),
        policy=policy,
        mean=mean,
        std=std,
        precision=precision,
        compiled=compiled,
    )


def feed_step(encoder: str, policy: Policy, device: torch.device) -> TrainStep:
    """The step that a data path feeds: MoCo v2 in bf16; compiled on a GPU."""
    return training_step(
        ModelConfig(encoder=encoder),
        MocoConfig(),
        policy=policy,
        device=device,
        precision=Precision.bf16,
        compiled=device.type == "cuda",
    )


def statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    """Some channel mean and deviation."""
    return torch.full((3,), 0.5, device=device), torch.full((3,), 0.25, device=device)
