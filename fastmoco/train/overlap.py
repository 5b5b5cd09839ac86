"""Gradients averaged by PyTorch's DistributedDataParallel, in buckets, during the backward pass.

Trade-off: the network works while the device computes, so a slow one costs less; but the step is
eager. A compiled backward pass gives all gradients at its end, unless it is cut into a graph for
each bucket, which was not tried here. The twin is `TrainStep`'s flat average.
"""

from collections.abc import Callable, Sequence
from typing import Any

from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import bf16_compress_hook
from torch.nn.parallel import DistributedDataParallel

from fastmoco.train.settings import Gradients

BUCKET_MEGABYTES: int | None = None
"""Most gradients in one message; None is torch's default: 25, and 1 in the first message."""


class _Forward(nn.Module):
    """The forward pass of a step as a module, as DistributedDataParallel takes it.

    It holds what is averaged and nothing else, such as the buffers of batch norm.
    """

    def __init__(self, weights: Sequence[nn.Parameter]) -> None:
        super().__init__()
        self.weights = nn.ParameterList(weights)
        self.function: Callable[..., Any] | None = None

    def forward(self, *arguments: Any, **named: Any) -> Any:
        assert self.function is not None
        return self.function(*arguments, **named)


class OverlappedGradients:
    """Averages gradients over all ranks while a backward pass makes them."""

    def __init__(self, weights: Sequence[nn.Parameter], gradients: Gradients) -> None:
        """Set hooks at the weights, for as long as this lives; on all ranks.

        Args:
            weights: What is trained, on its device, equal on all ranks.
            gradients: Not ``flat``.
        """
        self._forward = _Forward(weights)
        # Otherwise the messages of a process's first step differ from those that follow, and so do
        # the rounded sums of three ranks: a resumed run would not end with the same bits. Torch
        # says once that it found no unused parameters.
        self._wrapped = DistributedDataParallel(
            self._forward,
            gradient_as_bucket_view=True,
            bucket_cap_mb=BUCKET_MEGABYTES,
            find_unused_parameters=True,
        )
        if gradients is Gradients.ddp_bf16:
            self._wrapped.register_comm_hook(None, bf16_compress_hook)

    def around(self, forward: Callable[..., Any]) -> Callable[..., Any]:
        """Wrap the forward pass whose backward pass is averaged; once."""
        self._forward.function = forward
        return self._wrapped
