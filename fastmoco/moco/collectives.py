"""Collectives within a step: gathering and exchange of rows, averages of tensors.

Gathering and exchange are custom operators, opaque to `torch.compile` like the loss: the compiled
step keeps one graph, and every rank runs the same graph, hence the same collectives in the same
order. With one rank every other function here is the identity.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist

from fastmoco.ranks import Ranks


def gather_rows(rows: Tensor, ranks: Ranks) -> Tensor:
    """Gather the rows of all ranks, in the order of ranks, on each of them; gradients flow.

    The gradient is that of the sum of all ranks' losses, so averaging the parameters' gradients
    over ranks afterwards gives that of the mean loss.

    Args:
        rows: ``(N, ...)``, of the same shape on all ranks; any dtype.
        ranks: Ranks that take part.

    Returns:
        ``(world_size * N, ...)``; `rows` itself if there is one rank.
    """
    if not ranks.several:
        return rows
    gathered: Tensor = _gather(rows, ranks.rank, ranks.world_size)
    return gathered


def own_rows(rows: Tensor, ranks: Ranks) -> Tensor:
    """Select this rank's rows among those of `gather_rows`, as a view."""
    return rows.tensor_split(ranks.world_size)[ranks.rank] if ranks.several else rows


def own_indices(rows: Tensor, ranks: Ranks) -> Tensor:
    """Indices that this rank's rows ``(N, ...)`` have in `gather_rows`, ``(N,)`` int64."""
    return ranks.rank * len(rows) + torch.arange(len(rows), device=rows.device)


@torch.no_grad()
def gather_on_first(rows: Tensor, ranks: Ranks) -> Tensor | None:
    """Gather the rows of all ranks on the first one, in the order of ranks.

    Args:
        rows: ``(N, ...)``, of the same shape on all ranks; any dtype.
        ranks: Ranks that take part.

    Returns:
        ``(world_size, N, ...)`` on the first rank, None on the others.
    """
    if not ranks.several:
        return rows[None]
    gathered = rows.new_empty((ranks.world_size, *rows.shape)) if ranks.is_first else None
    parts = None if gathered is None else list(gathered.unbind())
    with naming_a_lost_rank():
        dist.gather(rows.contiguous(), parts, dst=0)
    return gathered


@torch.no_grad()
def average_over_ranks(tensors: Sequence[Tensor], ranks: Ranks) -> None:
    """Replace each tensor, in place, by its mean over ranks; by one collective for all.

    The sum is bit-equal on all ranks, so ranks that start equal stay equal.

    Args:
        tensors: Floating tensors, of the same shapes on all ranks.
        ranks: Ranks that take part.
    """
    if not ranks.several:
        return
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    with naming_a_lost_rank():
        dist.all_reduce(flat)
    means = torch.split(flat.div_(ranks.world_size), [tensor.numel() for tensor in tensors])
    for tensor, mean in zip(tensors, means, strict=True):
        tensor.copy_(mean.view(tensor.shape))


def on_any_rank(flag: bool, device: torch.device, ranks: Ranks) -> bool:
    """Whether the flag is set on any rank; reads the device if there are several."""
    if not ranks.several:
        return flag
    found = torch.tensor(int(flag), device=device)
    with naming_a_lost_rank():
        dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


@contextmanager
def naming_a_lost_rank() -> Iterator[None]:
    """Turn the error of a backend that lost a peer into one line.

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
def _gather(rows: Tensor, rank: int, world_size: int) -> Tensor:  # noqa: ARG001 (for the gradient)
    gathered = rows.new_empty((world_size * len(rows), *rows.shape[1:]))
    with naming_a_lost_rank():
        dist.all_gather_into_tensor(gathered, rows.contiguous())
    return gathered


@_gather.register_fake
def _(rows: Tensor, _rank: int, world_size: int) -> Tensor:
    return rows.new_empty((world_size * len(rows), *rows.shape[1:]))


@torch.library.custom_op("fastmoco::exchange_rows", mutates_args=())
def exchange_rows(rows: Tensor, counts: Tensor, back: bool) -> Tensor:
    """Send each row to one rank, and receive as many; without gradient.

    Args:
        rows: ``(N, ...)``, those for rank 0 first; any dtype.
        counts: ``(2, world_size)`` int64 in the host's memory: rows that this rank sends to each
            rank and receives from each. A tensor, since a compiled step would be compiled again for
            other numbers.
        back: Whether rows go the other way: the second line of `counts` is sent.

    Returns:
        ``(N, ...)``, contiguous; those from rank 0 first.
    """
    sent, received = counts.flip(0).tolist() if back else counts.tolist()
    found = torch.empty_like(rows, memory_format=torch.contiguous_format)
    with naming_a_lost_rank():
        dist.all_to_all_single(found, rows.contiguous(), received, sent)
    return found


@exchange_rows.register_fake
def _(rows: Tensor, _counts: Tensor, _back: bool) -> Tensor:
    return torch.empty_like(rows, memory_format=torch.contiguous_format)


@torch.library.custom_op("fastmoco::sum_over_ranks", mutates_args=())
def _sum(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    with naming_a_lost_rank():
        dist.all_reduce(total)
    return total


@_sum.register_fake
def _(values: Tensor) -> Tensor:
    return torch.empty_like(values, memory_format=torch.contiguous_format)


def _keep_ranks(ctx: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:  # noqa: ARG001
    ctx.ranks = Ranks(*inputs[1:])


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
    return own_rows(_sum(gradient), ctx.ranks).clone(), None, None


_gather.register_autograd(_backward, setup_context=_keep_ranks)
