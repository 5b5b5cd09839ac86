"""The dictionary: a first-in first-out queue of keys (arXiv:1911.05722, section 3.2)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Queue(nn.Module):
    """K unit-norm keys of past batches, the oldest overwritten first.

    Attributes:
        keys: Buffer ``(K, C)``, row-major; starts as random unit vectors, as in the official code.
        pointer: Buffer, int64 scalar on the device: the row that the next key overwrites.
    """

    keys: Tensor
    pointer: Tensor

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

    @torch.no_grad()
    def enqueue(self, keys: Tensor, learned: Tensor | None = None) -> None:
        """Overwrite the N oldest keys in place; wraps, so K need not be a multiple of N.

        Args:
            keys: ``(N, C)``, unit norm, N <= K.
            learned: Bool scalar on the device; where it is False nothing changes, whatever `keys`
                holds. None is True.

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
        if learned is None:
            self.pointer.add_(count).remainder_(len(self.keys))
        else:
            keys = torch.where(learned, keys, self.keys[rows])
            self.pointer.add_(learned * count).remainder_(len(self.keys))
        self.keys.index_copy_(0, rows, keys)
