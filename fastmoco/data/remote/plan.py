"""What is still to be read of each shard of a set, and when: a few epochs of known order."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

from fastmoco.draws.streams import INT64

NEVER = np.iinfo(np.int64).max
"""Position of a use that is not planned."""
EPOCHS_AHEAD = 2
"""Epochs that are planned at a time: the present one, and what follows it."""


@dataclass(slots=True)
class _Epoch:
    """What an epoch still reads of each shard."""

    pending: npt.NDArray[np.bool_]  # (n,): samples that are still to be read
    left: INT64  # (S,): how many of each shard
    first: INT64  # (S,): position of the first; `NEVER` if the epoch reads none

    @classmethod
    def of(cls, ids: INT64, shard_ends: INT64) -> Self:
        """Plan an epoch that reads ``ids`` in this order."""
        shards = np.searchsorted(shard_ends, ids, side="right")
        pending = np.zeros(int(shard_ends[-1]), np.bool_)
        pending[ids] = True
        first = np.full(len(shard_ends), NEVER)
        first[shards[::-1]] = np.arange(len(ids))[::-1]
        return cls(pending, np.bincount(shards, minlength=len(shard_ends)), first)


class ReadingPlan:
    """The reads of some epochs, of which a few are computed at a time."""

    def __init__(self, epochs: Iterator[INT64], shard_ends: INT64) -> None:
        """Compute the first epochs.

        Args:
            epochs: Sample ids in the order of reading, of each epoch.
            shard_ends: End of each shard's sample ids, ``(S,)``.
        """
        self._to_come, self._shard_ends = epochs, shard_ends
        self._epochs: deque[_Epoch] = deque()
        self.go_on()

    def go_on(self) -> None:
        """Forget epochs that were read, and compute those that follow."""
        while self._epochs and not self._epochs[0].left.any():
            self._epochs.popleft()
        while len(self._epochs) < EPOCHS_AHEAD:
            if (ids := next(self._to_come, None)) is None:
                return
            if len(ids):  # a run may continue at the end of an epoch
                self._epochs.append(_Epoch.of(ids, self._shard_ends))

    def count(self, sample_id: int) -> int | None:
        """Note that a sample was read; return its shard if the epoch reads no more of that."""
        epoch = next((one for one in self._epochs if one.pending[sample_id]), None)
        if epoch is None:
            return None
        number = int(np.searchsorted(self._shard_ends, sample_id, side="right"))
        epoch.pending[sample_id] = False
        epoch.left[number] -= 1
        return None if epoch.left[number] else number

    def shards_within(self, count: int) -> int:
        """Number of shards that the first reads of the present epoch need."""
        return int((self._epochs[0].first < count).sum()) if self._epochs else 0

    def needs(self) -> INT64:
        """Position of each shard's next use, ``(S,)``; of one that was begun, of its first."""
        needs = np.full(len(self._shard_ends), NEVER)
        for number, epoch in reversed([*enumerate(self._epochs)]):
            is_used = epoch.left > 0
            needs[is_used] = epoch.first[is_used] + number * self._shard_ends[-1]
        return needs
