"""InfoNCE as two Triton kernels: no N x K matrix, in memory or in traffic.

The first is attention with V = K (arXiv:2205.14135), the queue cut into parts that run side by
side, since N alone is too small to fill a GPU. Each program keeps the running maximum, sum and
weighted mean of its part. The second merges the parts in a fixed order. The plain twin is
`loss.chunked_pass`.
"""

from functools import cache
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

FUSION = {"enable_fp_fusion": True}
"""Multiply and add in one instruction; Triton 3.9 warns where it is not given."""


class Tile(NamedTuple):
    """Size of a program of the first kernel."""

    queries: int
    keys: int
    warps: int
    stages: int
    """Blocks of keys that are loaded ahead."""


TILES = ((128, Tile(64, 64, 4, 2)), (256, Tile(64, 64, 8, 2)), (512, Tile(32, 32, 8, 2)))
"""Largest C, and the tile for a queue of 16 bits. Compiled for sm_80 to sm_120 none of them spills
registers or needs more shared memory than the card has (docs/step.md)."""
FLOAT32_TILES = ((256, Tile(32, 32, 8, 2)),)
PROGRAMS_PER_PROCESSOR = 2
"""Programs for each multiprocessor of the GPU; three would fit. Not measured on a GPU."""
BLOCKS_PER_PART = 4
"""Fewest blocks of keys in a part: its sums are written and read again."""
MERGED_PARTS = 8
"""Parts that the second kernel adds at a time."""


def tile_for(dim: int, dtype: torch.dtype) -> Tile:
    """The tile for C and the queue's dtype.

    Raises:
        ValueError: If C is too large: a block of queries would not fit the registers.
    """
    tiles = FLOAT32_TILES if dtype is torch.float32 else TILES
    for largest, tile in tiles:
        if dim <= largest:
            return tile
    raise ValueError(f"C = {dim} is larger than {tiles[-1][0]} with a queue of {dtype}")


def num_parts(count: int, num_keys: int, tile: Tile, processors: int) -> int:
    """Parts that the queue is cut into: enough programs for the GPU, none of them tiny."""
    blocks = triton.cdiv(count, tile.queries)
    longest = triton.cdiv(num_keys, BLOCKS_PER_PART * tile.keys)
    return int(max(1, min(PROGRAMS_PER_PROCESSOR * processors // blocks, longest)))


@cache
def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


@triton.jit  # type: ignore[untyped-decorator]
def sums_kernel(  # type: ignore[no-untyped-def]
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


@triton.jit  # type: ignore[untyped-decorator]
def merge_kernel(  # type: ignore[no-untyped-def]
    maximum, total, mean, rank, positive, key, value, above, gradient,
    num_queries, dim, factor,
    parts: tl.constexpr, block_parts: tl.constexpr, step: tl.constexpr, block_dim: tl.constexpr,
):  # fmt: skip
    """Loss, rank and gradient of one query, from its sums over the parts."""
    row = tl.program_id(0)
    columns = tl.arange(0, block_dim)
    inside = columns < dim
    every = tl.arange(0, block_parts)
    own = tl.load(positive + row)
    largest = tl.load(maximum + every * num_queries + row, mask=every < parts, other=float("-inf"))
    largest = tl.maximum(tl.max(largest, axis=0), own)
    k = tl.load(key + row * dim + columns, mask=inside, other=0.0)
    normalizer = tl.exp(own - largest)
    weighted = k * normalizer
    count = tl.zeros((), tl.int64)
    for start in range(0, parts, step):
        part = start + tl.arange(0, step)
        valid = part < parts
        at = part * num_queries + row
        correction = tl.exp(tl.load(maximum + at, mask=valid, other=float("-inf")) - largest)
        normalizer += tl.sum(correction * tl.load(total + at, mask=valid, other=0.0), axis=0)
        sums = tl.load(
            mean + at[:, None] * dim + columns[None, :],
            mask=valid[:, None] & inside[None, :],
            other=0.0,
        )
        weighted += tl.sum(correction[:, None] * sums, axis=0)
        count += tl.sum(tl.load(rank + at, mask=valid, other=0).to(tl.int64), axis=0)
    tl.store(value + row, largest + tl.log(normalizer) - own)
    tl.store(above + row, count)
    tl.store(gradient + row * dim + columns, (weighted / normalizer - k) * factor, mask=inside)


def fused_pass(
    query: Tensor, key: Tensor, queue: Tensor, scale: float, parts: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute `loss.chunked_pass` on a GPU.

    Args:
        query: ``(N, C)`` float32; cast to the queue's dtype, products are summed in float32.
        key: ``(N, C)`` float32.
        queue: ``(K, C)``, contiguous, float16, bfloat16 or float32.
        scale: 1 / temperature.
        parts: Number of parts that the queue is cut into; None: `num_parts` for the GPU.

    Returns:
        Scalar mean loss, rank ``(N,)`` int64, and gradient ``(N, C)`` float32.

    Raises:
        ValueError: If C is too large.
    """
    (count, dim), num_keys = query.shape, len(queue)
    tile = tile_for(dim, queue.dtype)
    if parts is None:
        parts = num_parts(count, num_keys, tile, _processors(queue.device))
    key, block_dim = key.contiguous(), max(16, triton.next_power_of_2(dim))
    positive = (query * key).sum(dim=1) * scale
    maximum = query.new_empty((parts, count))
    total, mean = torch.empty_like(maximum), query.new_empty((parts, count, dim))
    rank = torch.empty_like(maximum, dtype=torch.int32)
    options: dict[str, Any] = {"num_warps": tile.warps, "num_stages": tile.stages}
    sums_kernel[(triton.cdiv(count, tile.queries), parts)](
        query.to(queue.dtype).contiguous(), queue, positive, maximum, total, mean, rank,
        count, num_keys, dim, scale,
        part_keys=triton.cdiv(triton.cdiv(num_keys, parts), tile.keys) * tile.keys,
        block_queries=tile.queries, block_keys=tile.keys, block_dim=block_dim,
        precision="ieee" if queue.dtype is torch.float32 else "tf32",
        **options, **FUSION,
    )  # fmt: skip
    value = torch.empty_like(positive)
    above = torch.empty_like(positive, dtype=torch.int64)
    gradient = torch.empty_like(key)
    merge_kernel[(count,)](
        maximum, total, mean, rank, positive, key, value, above, gradient,
        count, dim, scale / count,
        parts=parts, block_parts=triton.next_power_of_2(parts), step=MERGED_PARTS,
        block_dim=block_dim, **FUSION,
    )  # fmt: skip
    return value.mean(), above, gradient
