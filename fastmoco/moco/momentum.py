"""One set of tensors that follows another: the momentum update (arXiv:1911.05722, Eq. 2)."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn


def momentum_at(start: float, end: float, progress: float) -> float:
    """Half a cosine: ``m = end - (end - start) (cos(pi progress) + 1) / 2``.

    Args:
        start: m at the first step.
        end: m once all steps are done.
        progress: Fraction of the run's steps that are done, in [0, 1].
    """
    return end - (end - start) * (math.cos(math.pi * progress) + 1) / 2


class KeyMomentum(nn.Module):
    """m of a key encoder: constant, or moving from `start` to `end` over the run (`momentum_at`).

    Attributes:
        start: m at the first step.
        end: m at the end.
        value: Float64 scalar on the device, m of the next update if it moves: a CUDA graph reads it
            in each replay. Not in the state: it is a function of the run's progress.
    """

    value: Tensor

    def __init__(self, start: float, end: float | None = None) -> None:
        """Set both ends, in [0, 1]; without an end m is constant."""
        super().__init__()
        self.start, self.end = start, start if end is None else end
        self.register_buffer("value", torch.tensor(start, dtype=torch.float64), persistent=False)

    @property
    def moves(self) -> bool:
        """Whether m is not the same in all steps."""
        return self.start != self.end

    @property
    def step(self) -> float | Tensor:
        """1 - m of the next update, for `follow`."""
        return 1 - self.value if self.moves else float(1 - self.start)

    def set_progress(self, progress: float) -> None:
        """Set m for the fraction of the run's steps that are done, in [0, 1]."""
        if self.moves:
            self.value.fill_(momentum_at(self.start, self.end, progress))

    def left_after(self, steps: int, total: int) -> float:
        """Fraction of the first key encoder that is left after some of a run's steps."""
        if not self.moves:
            return self.start**steps
        return math.prod(momentum_at(self.start, self.end, n / total) for n in range(steps))

    def describe(self) -> str:
        """``, momentum 0.99 to 1`` for the run's header; empty if m is constant."""
        return f", momentum {self.start:g} to {self.end:g}" if self.moves else ""


@torch.no_grad()
def follow(
    key: Iterable[Tensor],
    query: Iterable[Tensor],
    step: float | Tensor,
    learned: Tensor | None = None,
) -> None:
    """``k <- k + step (q - k)``, which is ``m k + (1 - m) q`` for a step of 1 - m; in place.

    Args:
        key: Floating tensors that change.
        query: Tensors to follow, of the same shapes.
        step: In [0, 1]; or a floating scalar on the device.
        learned: Bool scalar on the device; where it is False nothing changes. None is True.
    """
    keys, queries = list(key), list(query)
    if keys[0].is_cuda:
        follow_by_sgd(keys, queries, step, learned)
        return
    if learned is not None:
        step = learned.to(queries[0].dtype) * step
    if isinstance(step, float):
        torch._foreach_lerp_(keys, queries, step)
        return
    # The same bits as with a number. On a GPU it would be one launch for each tensor.
    torch._foreach_lerp_(keys, queries, [step.to(queries[0].dtype)] * len(keys))


@torch.no_grad()
def follow_by_sgd(
    keys: list[Tensor], queries: list[Tensor], step: float | Tensor, learned: Tensor | None
) -> None:
    """`follow` by one pass over memory, whose mask and step are on the device.

    It is the fused kernel of SGD: with the gradient -q and a weight decay of 1, a learning rate of
    `step` gives ``k <- k - step (k - q)``. ``torch.lerp`` for many tensors takes the same step for
    all as a number of the host only, and sub, mul and add are three passes. Keys and queries need
    equal dtypes and strides, as a fused optimizer does.
    """
    skipped = None
    if learned is not None:
        skipped = torch.logical_not(learned, out=learned.new_empty((), dtype=torch.float32))
    torch._fused_sgd_(
        keys,
        queries,
        [],
        weight_decay=1.0,
        momentum=0.0,
        lr=step if isinstance(step, float) else step.to(torch.float32),
        dampening=0.0,
        nesterov=False,
        maximize=True,
        is_first_step=False,
        found_inf=skipped,
    )
