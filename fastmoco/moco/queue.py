"""The dictionary: a first-in first-out queue of keys (arXiv:1911.05722, section 3.2)."""

from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmoco.draws.streams import INT64

Ids = TypeVar("Ids", Tensor, INT64)

UNKNOWN = -1
"""Sample id of a row whose image is not known: one of the random vectors at the start."""


def of_first_view(sample_id: Ids) -> Ids:
    """Mark ids whose key is of the first view: ids 0, 1, ... become -2, -3, ...; and back."""
    return -2 - sample_id


class Queue(nn.Module):
    """K unit-norm keys of past batches, the oldest overwritten first.

    Attributes:
        keys: Buffer ``(K, C)``, row-major; starts as random unit vectors, as in the official code.
        pointer: Buffer, int64 scalar on the device: the row that the next key overwrites.
        source: Buffer ``(K, 2)`` int64: sample id and draw key of each row's image, from which its
            key can be made again. The id is `UNKNOWN` at the start; a symmetric loss also enqueues
            keys of first views (`of_first_view`).
    """

    YOUNGER: ClassVar[tuple[str, ...]] = ("source",)
    """Buffers that states of older versions lack."""

    keys: Tensor
    pointer: Tensor
    source: Tensor

    def __init__(
        self, queue_size: int, dim: int, *, generator: torch.Generator | None = None
    ) -> None:
        """Fill the queue with random unit vectors.

        Args:
            queue_size: K.
            dim: C.
            generator: Source of the random vectors; torch's global one if None.
        """
        super().__init__()
        self.register_buffer("keys", F.normalize(torch.randn(queue_size, dim, generator=generator)))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.int64))
        self.register_buffer("source", torch.full((queue_size, 2), UNKNOWN))

    @torch.no_grad()
    def enqueue(
        self, keys: Tensor, learned: Tensor | None = None, *, source: Tensor | None = None
    ) -> None:
        """Overwrite the N oldest keys in place; wraps, so K need not be a multiple of N.

        Args:
            keys: ``(N, C)``, unit norm, N <= K.
            learned: Bool scalar on the device; where it is False nothing changes, whatever `keys`
                holds. None is True.
            source: Sample id and draw key of each, ``(N, 2)`` int64; None: not known.

        Raises:
            ValueError: If N > K: part of the batch would be overwritten at once.
        """
        if len(keys) > len(self.keys):
            raise ValueError(
                f"queue_size={len(self.keys)} is smaller than a batch of {len(keys)}; "
                f"set moco.queue_size={len(keys)} or more"
            )
        rows = (self.pointer + torch.arange(len(keys), device=keys.device)) % len(self.keys)
        keys, count = keys.to(self.keys.dtype), len(keys)
        if source is None:
            source = self.source.new_full((count, 2), UNKNOWN)
        if learned is None:
            self.pointer.add_(count).remainder_(len(self.keys))
        else:
            keys = torch.where(learned, keys, self.keys[rows])
            source = torch.where(learned, source, self.source[rows])
            self.pointer.add_(learned, alpha=count).remainder_(len(self.keys))
        self.keys.index_copy_(0, rows, keys)
        self.source.index_copy_(0, rows, source)
