"""InfoNCE's pass over the queue as one Triton kernel: no N x K matrix, in memory or in traffic.

It is attention with V = K (arXiv:2205.14135), the queue cut into parts that run side by side, since
N alone is too small to fill a GPU. Each program keeps the running maximum, sum and weighted mean of
its part; the parts are merged afterwards. Its plain twin is `loss.partial_sums`.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

BLOCK_QUERIES = 64
BLOCK_KEYS = 64


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    query, queue, positive, maximum, total, mean, rank,
    num_queries, num_keys, dim, scale,
    part_keys: tl.constexpr, block_queries: tl.constexpr, block_keys: tl.constexpr,
    block_dim: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """One block of queries against one part of the queue; rows and columns beyond are masked."""
    part = tl.program_id(1)
    rows = tl.program_id(0) * block_queries + tl.arange(0, block_queries)
    columns = tl.arange(0, block_dim)
    in_rows, in_columns = rows < num_queries, columns < dim
    offset = rows[:, None] * dim + columns[None, :]
    inside = in_rows[:, None] & in_columns[None, :]
    q = tl.load(query + offset, mask=inside, other=0.0)
    threshold = tl.load(positive + rows, mask=in_rows, other=0.0)
    m = tl.full((block_queries,), float("-inf"), tl.float32)
    s = tl.zeros((block_queries,), tl.float32)
    weighted = tl.zeros((block_queries, block_dim), tl.float32)
    above = tl.zeros((block_queries,), tl.int32)
    for start in range(part * part_keys, (part + 1) * part_keys, block_keys):
        keys = start + tl.arange(0, block_keys)
        in_keys = keys < num_keys
        k = tl.load(
            queue + keys[:, None] * dim + columns[None, :],
            mask=in_keys[:, None] & in_columns[None, :],
            other=0.0,
        )
        logits = tl.dot(q, tl.trans(k), input_precision=precision) * scale
        logits = tl.where(in_keys[None, :], logits, float("-inf"))
        above += tl.sum((logits > threshold[:, None]).to(tl.int32), axis=1)
        # A part can be empty: its maximum stays -inf, which must not become nan below.
        larger = tl.maximum(m, tl.max(logits, axis=1))
        base = tl.where(larger == float("-inf"), 0.0, larger)
        shrink = tl.exp(m - base)
        p = tl.exp(logits - base[:, None])
        s = s * shrink + tl.sum(p, axis=1)
        weighted = weighted * shrink[:, None] + tl.dot(p.to(k.dtype), k, input_precision=precision)
        m = larger
    out = part * num_queries + rows
    tl.store(maximum + out, m, mask=in_rows)
    tl.store(total + out, s, mask=in_rows)
    tl.store(rank + out, above, mask=in_rows)
    tl.store(mean + part * num_queries * dim + offset, weighted, mask=inside)


def partial_sums(
    query: Tensor, queue: Tensor, positive: Tensor, scale: float, parts: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Compute `loss.partial_sums` on a GPU.

    Args:
        query: ``(N, C)``, contiguous; cast to the queue's dtype, products are summed in float32.
        queue: ``(K, C)``, contiguous, float16, bfloat16 or float32.
        positive: Logits of the positives, ``(N,)`` float32.
        scale: 1 / temperature.
        parts: Number of parts that the queue is cut into.

    Returns:
        For each part: the largest logit, ``(parts, N)``; ``sum exp(logit - largest)``,
        ``(parts, N)``; ``sum exp(logit - largest) key``, ``(parts, N, C)``, all float32; and the
        number of logits above the positive, ``(parts, N)`` int32.
    """
    (count, dim), num_keys = query.shape, len(queue)
    query = query.to(queue.dtype).contiguous()
    part_keys = triton.cdiv(triton.cdiv(num_keys, parts), BLOCK_KEYS) * BLOCK_KEYS
    maximum = query.new_empty((parts, count), dtype=torch.float32)
    total, mean = torch.empty_like(maximum), maximum.new_empty((parts, count, dim))
    rank = maximum.new_empty((parts, count), dtype=torch.int32)
    _kernel[(triton.cdiv(count, BLOCK_QUERIES), parts)](
        query, queue, positive, maximum, total, mean, rank,
        count, num_keys, dim, scale,
        part_keys=part_keys, block_queries=BLOCK_QUERIES, block_keys=BLOCK_KEYS,
        block_dim=max(16, triton.next_power_of_2(dim)),
        precision="ieee" if queue.dtype is torch.float32 else "tf32",
    )  # fmt: skip
    return maximum, total, mean, rank
