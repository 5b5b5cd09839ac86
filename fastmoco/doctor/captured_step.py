"""A small training step, captured as a CUDA graph, against the same step without one."""

from collections.abc import Callable

import torch
from torch import Tensor

from fastmoco.device import algorithms
from fastmoco.moco.build import build_model
from fastmoco.moco.settings import MocoConfig, ModelConfig, Precision, Stem
from fastmoco.optim.optimizers import build_optimizer
from fastmoco.optim.precision import resolve_precision
from fastmoco.optim.settings import OptimizerConfig
from fastmoco.pipelines.contract import Batch
from fastmoco.pipelines.policies import POLICIES
from fastmoco.train.acceleration import WARM_UP_STEPS, GraphedStep, Recording
from fastmoco.train.step import TrainStep

IMAGES, SIDE = 16, 32
STEPS = WARM_UP_STEPS + 3
LARGEST_ERROR = 1e-3
"""Of metrics: the kernels are the same, and only libraries may choose others while capturing."""


def graph_fault(device: torch.device, make_recording: Callable[[TrainStep], Recording]) -> str:
    """The reason why a step cannot be captured, or what differs then; "" if nothing does.

    Args:
        device: A GPU.
        make_recording: Makes what records a step.
    """
    with algorithms(device, reproducible=True):
        expected = _metrics(_step(device), device)
        step = _step(device)
        captured = GraphedStep(step, make_recording(step), required=True)
        try:
            found = _metrics(captured, device)
        except ValueError as error:
            return str(error).partition("; set ")[0]
    if torch.allclose(found, expected, rtol=LARGEST_ERROR, atol=LARGEST_ERROR):
        return ""
    return "loss or gradients of a captured step differ from those of an eager one"


def _step(device: torch.device) -> TrainStep:
    """A ResNet-18 of width 8, with the same weights at each call."""
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(encoder="resnet18", stem=Stem.small_stride2, width=8),
        MocoConfig(dim=16, queue_size=64),
        num_samples=IMAGES * STEPS,
    )
    model = model.to(device).to(memory_format=torch.channels_last)
    statistics = (torch.full((3,), value, device=device) for value in (0.5, 0.25))
    return TrainStep(
        model,
        build_optimizer(model.learnable(), OptimizerConfig()),
        policy=POLICIES["moco_v2"],
        mean=next(statistics),
        std=next(statistics),
        precision=resolve_precision(Precision.auto, device),
    )


def _metrics(step: Callable[[Batch, float], Tensor], device: torch.device) -> Tensor:
    """Metrics of each step, ``(STEPS, metrics)``."""
    return torch.stack([step(_batch(i, device), 0.03).clone() for i in range(STEPS)])


def _batch(number: int, device: torch.device) -> Batch:
    generator = torch.Generator().manual_seed(number)
    shape = (IMAGES, 2, SIDE, SIDE, 3)
    ids = torch.arange(IMAGES) + IMAGES * number
    return Batch(
        crops=torch.randint(256, shape, generator=generator).to(torch.uint8).to(device),
        boxes=torch.zeros(IMAGES, 2, 4, dtype=torch.int32),
        sample_id=ids.to(device),
        draw_key=(ids * 0x9E3779B9 + 1).to(device),
        label=torch.full((IMAGES,), -1),
        data_wait_seconds=0.0,
    )
