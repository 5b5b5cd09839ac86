"""What ranks tell each other within a step: rows gathered, tensors averaged.

Gathering is an operator of its own, opaque to `torch.compile` like the loss: the compiled step
keeps one graph, and every rank runs the same graph, hence the same collectives in the same order.
Alone, all of it is the identity.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from fastmoco.ranks import Ranks


def gather_rows(rows: Tensor, ranks: Ranks) -> Tensor:
    """The rows of all ranks, in the order of ranks, on each of them; gradients flow.

    The gradient is that of the sum of all ranks' losses, so averaging the parameters' gradients
    over ranks afterwards gives that of the mean loss.

    Args:
        rows: ``(N, ...)``, of the same shape on all ranks; any dtype.
        ranks: Who takes part.

    Returns:
        ``(world_size * N, ...)``; `rows` itself where there is one rank.
    """
    if not ranks.several:
        return rows
    gathered: Tensor = _gather(rows, ranks.rank, ranks.world_size)
    return gathered


def own_rows(rows: Tensor, ranks: Ranks) -> Tensor:
    """This rank's part of what `gather_rows` gave, as a view."""
    return rows.tensor_split(ranks.world_size)[ranks.rank] if ranks.several else rows


@torch.no_grad()
def average_over_ranks(tensors: Sequence[Tensor], ranks: Ranks) -> None:
    """Replace each tensor, in place, by its mean over ranks; by one collective for all.

    The sum is bit-equal on all ranks, so ranks that start equal stay equal.

    Args:
        tensors: Floating, of the same shapes on all ranks.
        ranks: Who takes part.
    """
    if not ranks.several:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with naming_a_lost_rank():
        dist.all_reduce(flat)
    means = torch.split(flat.div_(ranks.world_size), [tensor.numel() for tensor in tensors])
    for tensor, mean in zip(tensors, means, strict=True):
        tensor.copy_(mean.view(tensor.shape))


@contextmanager
def naming_a_lost_rank() -> Iterator[None]:
    """Turn what a backend raises when a peer is gone into one line.

    Raises:
        ConnectionError: If another rank ended or does not answer.
    """
    try:
        yield
    except RuntimeError as error:
        raise ConnectionError(
            "the process of another device ended or does not answer; its own message says why. "
            f"The last checkpoint stays, the same command resumes ({str(error).splitlines()[0]})"
        ) from error


@torch.library.custom_op("fastmoco::gather_rows", mutates_args=())
def _gather(rows: Tensor, rank: int, world_size: int) -> Tensor:
    del rank  # of the gradient
    gathered = rows.new_empty((world_size * len(rows), *rows.shape[1:]))
    with naming_a_lost_rank():
        dist.all_gather_into_tensor(gathered, rows.contiguous())
    return gathered


@_gather.register_fake
def _(rows: Tensor, rank: int, world_size: int) -> Tensor:
    del rank
    return rows.new_empty((world_size * len(rows), *rows.shape[1:]))


@torch.library.custom_op("fastmoco::sum_over_ranks", mutates_args=())
def _sum(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    with naming_a_lost_rank():
        dist.all_reduce(total)
    return total


@_sum.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def _keep_ranks(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
    del output
    ctx.ranks = Ranks(*inputs[1:])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return own_rows(_sum(gradient), ctx.ranks).clone(), None, None


_gather.register_autograd(_backward, setup_context=_keep_ranks)
