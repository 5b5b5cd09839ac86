"""Exact search for the k most similar rows.

A chunk of similarities is one matrix product. On a CPU one `topk` over all rows would cost as much
as that product. So the rows are dealt into G groups. Only the k groups with the greatest maxima can
hold any of the k nearest, and two short `topk` replace the long one.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

CHUNK_ELEMENTS = 1 << 24
"""Similarities at a time: 64 MB of float32."""
MIN_QUERIES = 256
"""Least queries at a time, however large the bank: fewer would read all of it for little work."""


@torch.no_grad()
def nearest(
    bank: Tensor, queries: Tensor, k: int, *, leave_one_out: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """Find the k rows of a bank that are most similar to each query, by cosine.

    Args:
        bank: ``(n, D)`` float32, rows of any norm above 0; this makes a normalized copy.
        queries: ``(m, D)``, on the same device.
        k: At most n; with `leave_one_out` at most n - 1.
        leave_one_out: Query i is row i of the bank and is left out of its own neighbors.

    Yields:
        For each chunk of c queries in order: similarities ``(c, k)``, descending, and rows
        ``(c, k)`` int64. Ties are broken arbitrarily.
    """
    count = len(bank)
    # The two `topk` read G + k n / G values, which is least at G = sqrt(k n).
    size = max(1, int(math.sqrt(count / k))) if bank.device.type == "cpu" else 1
    groups = -(-count // size)
    columns = bank.new_zeros(groups * size, bank.shape[1])
    F.normalize(bank, dim=1, out=columns[:count])
    rows = max(MIN_QUERIES, CHUNK_ELEMENTS // len(columns))
    for start in range(0, len(queries), rows):
        similarity = F.normalize(queries[start : start + rows], dim=1) @ columns.T
        similarity[:, count:] = -math.inf
        if leave_one_out:
            similarity.diagonal(start).fill_(-math.inf)
        yield _best(similarity.view(-1, size, groups), k)


def _best(similarity: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k greatest of ``(c, size, groups)``, descending, and their indices in the flat bank."""
    _, size, groups = similarity.shape
    if size == 1:
        found: tuple[Tensor, Tensor] = similarity[:, 0].topk(k, dim=1)
        return found
    best = similarity.amax(dim=1).topk(k, dim=1, sorted=False).indices
    candidates = similarity.gather(2, best[:, None].expand(-1, size, -1))  # (c, size, k)
    values, indices = candidates.flatten(1).topk(k, dim=1)
    return values, indices // k * groups + best.gather(1, indices % k)
