"""Launches of a step on a played device, by part: what Inductor generates, and what stays eager."""

from collections.abc import Sequence
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch._inductor.compile_fx import compile_fx

from fastmoco.pipelines.device_crops import crop_and_resize
from tests.played_cuda.generated import _counted, _play_triton, generated
from tests.played_cuda.step import Watch, build, played_batch, without_numbers

NOT_LAUNCHED = ("empty", "empty_like", "empty_strided", "new_empty", "device", "detach")
"""Operations that start nothing on the device."""


def launches(overrides: Sequence[str], eager_overrides: Sequence[str]) -> dict[str, int]:
    """Count the launches of a step.

    Args:
        overrides: Options of the run whose step is compiled.
        eager_overrides: Options of the run whose step is counted after its backward pass.

    Returns:
        ``forward`` and ``backward``: of the compiled graphs, libraries included; ``rest``: eager
        calls after them, of which a call for many tensors is one; ``crops``: of a resident set's
        crops, which are part of the forward graph; ``graphs`` of the step.
    """
    found = generated(overrides)
    parts = {part: _sum(found[part]) for part in ("forward", "backward")}
    rest, crops = eager(eager_overrides), compiled_crops()
    return {**parts, "rest": sum(rest.values()), "crops": crops, "graphs": found["graphs"]}


def eager(overrides: Sequence[str]) -> dict[str, int]:
    """Count the operations of a step outside forward and backward pass, by name."""
    with without_numbers():
        trainer = build(overrides)
        batch, step = played_batch(trainer), trainer.step
        trainer.take(batch, trainer.learning_rate)
        step.optimizer.zero_grad(set_to_none=True)
        with step.counters.held():
            result = step._differentiate(batch)
        with (
            mock.patch.object(step, "_differentiate", return_value=result),
            mock.patch.object(step.optimizer, "zero_grad"),
            Watch(trainer.device) as watch,
        ):
            step.learn(batch)
    found = watch.operations.items()
    return {n: c for n, c in found if n not in NOT_LAUNCHED and "record_function" not in n}


def compiled_crops() -> int:
    """Count the launches of two crops of 16 images of a set on the device."""
    found: dict[str, list[dict[str, Any]]] = {"forward": []}
    backend = partial(compile_fx, inner_compile=partial(_counted, found, True))

    def cut(images: torch.Tensor, ids: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        return crop_and_resize(images[ids], boxes, 32)

    _play_triton()
    with without_numbers(), torch.device("cuda"):
        images = torch.empty(50, 32, 32, 3, dtype=torch.uint8)
        boxes = torch.empty(16, 2, 4, dtype=torch.int32)
        compiled = torch.compile(cut, backend=backend, dynamic=False, fullgraph=True)
        compiled(images, torch.empty(16, dtype=torch.int64), boxes)
    return _sum(found["forward"])


def _sum(graphs: Sequence[dict[str, Any]]) -> int:
    return sum(sum(g[kind].values()) for g in graphs for kind in ("kernels", "external"))
