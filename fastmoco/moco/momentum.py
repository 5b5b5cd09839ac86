"""One set of tensors that follows another: the momentum update (arXiv:1911.05722, Eq. 2)."""

from collections.abc import Sequence

import torch
from torch import Tensor


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
