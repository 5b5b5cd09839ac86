"""Steps that `bench_step` times beside each other: ours, the official one, and lightly's."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.harness import Work
from benchmarks.peers.official_step import MOMENTUM, TEMPERATURE, OfficialStep
from benchmarks.step_subject import LEARNING_RATE, built_model, statistics, training_step
from fastmoco.moco.model import MoCo
from fastmoco.moco.settings import MocoConfig, ModelConfig, Precision, Stem
from fastmoco.optim.precision import choose_precision, dtype_of
from fastmoco.pipelines.augment import normalized
from fastmoco.pipelines.contract import Batch
from fastmoco.pipelines.policies import POLICIES
from fastmoco.train.acceleration import CudaRecording, GraphedStep

OFFICIAL, TUNED = "official", "official + AMP + channels_last + foreach"
TUNED_COMPILED, LIGHTLY = f"{TUNED}, compiled", "lightly"
OURS, OURS_EAGER, OURS_UNGRAPHED = "fastmoco", "fastmoco, eager", "fastmoco, no CUDA graph"
OURS_FP32, OURS_FP32_EAGER = "fastmoco, float32", "fastmoco, float32, eager"
OURS_FP16, OURS_PLAIN = "fastmoco, fp16", "fastmoco, eager, no CUDA graph"
# On a GPU the convolutions of float32 run in TF32, torch's default.
FLOAT32 = (OFFICIAL, LIGHTLY, OURS_FP32, OURS_FP32_EAGER)
NO_AUGMENTATION = replace(
    POLICIES["moco_v2"],
    jitter_probability=0.0,
    grayscale_probability=0.0,
    blur_probability=0.0,
    flip_probability=0.0,
)


class Parts(NamedTuple):
    """What all contenders are built of."""

    model: ModelConfig
    queue_size: int
    device: torch.device


def step_builders(
    parts: Parts, batch: Batch, *, everything: bool, compiled: bool = True
) -> dict[str, Callable[[], Work]]:
    """What builds each step, by name.

    Args:
        parts: Model, queue and device.
        batch: Of all of them.
        everything: Also those whose compiling takes a minute on a CPU and shows little there.
        compiled: Whether ours are compiled, but for those that are named eager.
    """
    on_cuda, reduced = parts.device.type == "cuda", amp_dtype(parts.device)
    official = partial(_official, parts, batch)
    ours = partial(_ours, parts, batch, compiled=compiled)
    precision = choose_precision(parts.device)[0] if on_cuda else Precision.bf16
    found: dict[str, Callable[[], Work]] = {
        OFFICIAL: official,
        TUNED: partial(official, reduced),
        OURS: partial(ours, precision),
        OURS_EAGER: partial(ours, precision, compiled=False),
        OURS_FP32_EAGER: partial(ours, Precision.float32, compiled=False),
    }
    if parts.model.stem is Stem.small:
        found[LIGHTLY] = partial(_lightly, parts, batch)
    if everything:
        found[TUNED_COMPILED] = partial(official, reduced, compiled=compiled)
        found[OURS_FP32] = partial(ours, Precision.float32)
    if on_cuda:
        found[OURS_UNGRAPHED] = partial(ours, precision, graphed=False)
        found[OURS_PLAIN] = partial(ours, precision, compiled=False, graphed=False)
        found[OURS_FP16] = partial(ours, Precision.fp16)
    return found


def amp_dtype(device: torch.device) -> torch.dtype:
    """What ``precision=auto`` takes on a GPU."""
    return dtype_of(Precision.auto, device) if device.type == "cuda" else torch.bfloat16


def _moco(queue_size: int) -> MocoConfig:
    return MocoConfig(queue_size=queue_size, momentum=MOMENTUM, temperature=TEMPERATURE)


def plain_model(parts: Parts) -> MoCo:
    """The model that all steps train, with the same weights at each call."""
    return built_model(parts.model, _moco(parts.queue_size), parts.device)


def _views(parts: Parts, batch: Batch) -> list[Tensor]:
    """Both views as the peers take them, channels_last."""
    return [
        normalized(batch.crops[:, view : view + 1], *statistics(parts.device), torch.float32)
        for view in range(2)
    ]


def _official(
    parts: Parts, batch: Batch, dtype: torch.dtype | None = None, *, compiled: bool = False
) -> Work:
    model = plain_model(parts)
    step = OfficialStep(model.query_encoder, model.queue.keys.float(), LEARNING_RATE)
    views = _views(parts, batch)
    if dtype is None:
        views = [view.contiguous() for view in views]
    else:
        step.tune(dtype)
    if compiled:
        step.compile()
    return lambda: step(views[0], views[1])


def _lightly(parts: Parts, batch: Batch) -> Work:
    """Its example on the same backbone.

    Raises:
        ImportError: If it is not installed.
    """
    from benchmarks.peers.lightly_peer import LightlyStep

    backbone = plain_model(parts).query_encoder.backbone
    step = LightlyStep(backbone, backbone.feature_dim, parts.queue_size, LEARNING_RATE)
    views = [view.contiguous() for view in _views(parts, batch)]
    return lambda: step(views[0], views[1])


def _ours(
    parts: Parts,
    batch: Batch,
    precision: Precision,
    *,
    compiled: bool = True,
    graphed: bool = True,
) -> Work:
    """A step as ``fastmoco train`` does it: on a GPU, a CUDA graph."""
    step = training_step(
        parts.model,
        _moco(parts.queue_size),
        policy=NO_AUGMENTATION,
        device=parts.device,
        precision=precision,
        compiled=compiled,
    )
    if parts.device.type == "cuda" and graphed:
        replayed = GraphedStep(step, CudaRecording(parts.device), required=True)
        return lambda: replayed(batch, LEARNING_RATE)
    return lambda: step(batch, LEARNING_RATE)
