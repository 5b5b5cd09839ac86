"""One set of tensors that follows another: the momentum update (arXiv:1911.05722, Eq. 2)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


def momentum_at(start: float, end: float, progress: float) -> float:
    """Half a cosine: ``m = end - (end - start) (cos(pi progress) + 1) / 2``.

    Args:
        start: m at the first step.
        end: m once all steps are done.
        progress: Share of the run's steps that are done, in [0, 1].
    """
    return end - (end - start) * (math.cos(math.pi * progress) + 1) / 2


class KeyMomentum(nn.Module):
    """m of a key encoder: a number, or moving from one to another over the run (`momentum_at`).

    Attributes:
        start: m at the first step.
        end: m at the end.
        value: Float64 scalar on the device, m of the next update where it moves: a captured step
            reads it anew. Not in the state: it is a function of the run's progress.
    """

    value: Tensor

    def __init__(self, start: float, end: float | None = None) -> None:
        """Take both ends, in [0, 1]; without an end m stays as it is."""
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
        """Move m to where it is once that share of the run's steps is done."""
        if self.moves:
            self.value.fill_(momentum_at(self.start, self.end, progress))

    def describe(self) -> str:
        """For the run's header: ``, momentum 0.99 to 1``; nothing where it does not move."""
        return f", momentum {self.start:g} to {self.end:g}" if self.moves else ""


@torch.no_grad()
def follow(
    key: Sequence[Tensor],
    query: Sequence[Tensor],
    step: float | Tensor,
    learned: Tensor | None = None,
) -> None:
    """``k <- k + step (q - k)``, which is ``m k + (1 - m) q`` for a step of 1 - m; in place.

    Args:
        key: What follows; floating.
        query: What is followed, of the same shapes.
        step: In [0, 1]; or a floating scalar on the device.
        learned: Bool scalar on the device; where it is False nothing changes. None is True.
    """
    if learned is None and isinstance(step, float):
        torch._foreach_lerp_(list(key), list(query), step)
        return
    # A weight on the device, which lerp takes for one tensor only.
    if learned is not None:
        step = learned.to(query[0].dtype) * step
    assert isinstance(step, Tensor)
    way = torch._foreach_sub(list(query), list(key))
    torch._foreach_mul_(way, step.to(query[0].dtype))
    torch._foreach_add_(list(key), way)
