"""Which shards of a set are here: those that are read next are brought, those read long ago go.

One thread brings a shard after the other. What a reader waits for comes first; then what the plan
reads next. Where the limit of the cache leaves no room, the shard goes whose next use is farthest
(Belady's rule, IBM Systems Journal 5, 1966). Processes that share a cache do not know each other's
plans: a shard that is being read is locked, so none removes it from another, and a process that
reads ahead removes others only for `Arrivals.ahead` shards.
"""

import math
import os
import threading
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from fastmoco.addresses import Address
from fastmoco.data.beton_format import BetonError, Handle
from fastmoco.data.remote.cache import LIMIT_VARIABLE, CachedSet, DataCache, remove_unheld
from fastmoco.data.remote.fetch import fetch
from fastmoco.data.remote.storage import RemoteError, Storage
from fastmoco.draws.host import NUM_STREAMS
from fastmoco.draws.streams import INT64
from fastmoco.files import lock_descriptor
from fastmoco.ranks import environment_ranks, local_ranks
from fastmoco.waiting import announced

NEVER = np.iinfo(np.int64).max
"""Position of a use that is not planned."""
RETRY_SECONDS = 1.0
"""Pause before room is looked for again: another process may have made some."""


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


class Arrivals:
    """The shards of a set on this disk; any number of threads may read."""

    def __init__(self, storage: Storage, cache: DataCache, place: CachedSet) -> None:
        """Bring nothing yet.

        Args:
            storage: Where the set is.
            cache: The cache, whose limit is kept.
            place: The set's part of it, which the caller keeps.
        """
        self._storage, self._cache, self._place = storage, cache, place
        self._changed = threading.Condition()
        self._open: dict[int, Handle] = {}
        self._readers: Counter[int] = Counter()  # of each shard that is being read
        self._begun: set[int] = set()  # shards of which the plan has read a part
        self._read: set[int] = set()  # shards that the plan has read
        self._here: set[int] = set()  # shards that were here when this process looked
        self._asked: deque[int] = deque()
        self._failed: dict[int, Exception] = {}
        self._left_out: set[int] = set()  # could not be brought ahead; whoever reads them asks
        self._shard_ends: INT64 = np.zeros(len(place.objects), np.int64)
        self._epochs: deque[_Epoch] = deque()
        self._to_come: Iterator[INT64] = iter(())
        self._closed = self._has_waited = False
        self._thread: threading.Thread | None = None
        self.ahead = 0
        """Shards of the plan for whose sake others are removed before a reader waits for them."""
        self.waiting = 0
        """Threads that wait for a shard."""

    def plan(self, epochs: Iterator[INT64], shard_ends: INT64, at_once: int) -> None:
        """Bring shards ahead of the reads of some epochs.

        Args:
            epochs: Sample ids in the order of reading, of each epoch. They are computed when
                needed, one epoch ahead.
            shard_ends: End of each shard's sample ids, ``(S,)``.
            at_once: Samples of a batch.

        Raises:
            RemoteError: If the cache's limit is too low for the shards of a batch.
        """
        with self._changed:
            self._shard_ends, self._to_come = shard_ends, epochs
            self._epochs.clear()
            self._begun.clear()
            self._read.clear()
            self._go_on()
            if self._epochs:
                self._check_limit(int((self._epochs[0].first < at_once).sum()))
            self._start()
            self._changed.notify_all()

    def _check_limit(self, shards: int) -> None:
        """Refuse a limit below what the ranks of this machine read at the same time."""
        largest = max(known.num_bytes or 0 for known in self._place.objects)
        # The ranks of this machine share the cache. Beside each batch comes what is next.
        kept = min(len(self._place.objects), (shards + 2) * local_ranks().world_size)
        if kept * largest > self._cache.limit_bytes:
            raise RemoteError(
                f"{self._place.objects[0].address.parent}: {kept:,} shards are read at the same "
                f"time, more than the limit of the cache {self._cache.folder}; set "
                f"{LIMIT_VARIABLE}={math.ceil(kept * largest / 1e9)} or more, make smaller shards, "
                f"or make global_batch_size a multiple of {NUM_STREAMS}"
            )
        self.ahead = 2 * shards  # those of this batch, and as many that follow

    def count_read(self, sample_id: int) -> None:
        """Note that a sample was read."""
        with self._changed:
            epoch = next((one for one in self._epochs if one.pending[sample_id]), None)
            if epoch is None:
                return
            number = int(np.searchsorted(self._shard_ends, sample_id, side="right"))
            epoch.pending[sample_id] = False
            epoch.left[number] -= 1
            if epoch.left[number]:
                self._begun.add(number)
                self._read.discard(number)
            else:
                self._begun.discard(number)
                self._read.add(number)
                self._let_go(number)
                self._changed.notify_all()

    @contextmanager
    def shard(self, number: int) -> Iterator[Handle]:
        """Wait for a shard, and keep it within the block.

        Raises:
            RemoteError: If it cannot be brought.
            BetonError: If it is damaged, or the set is closed.
        """
        known = self._place.objects[number]
        with self._changed:
            while not (handle := self._open.get(number)):
                if self._closed:
                    raise BetonError(f"{known.address}: is closed; open it again")
                if number in self._failed:
                    raise self._failed.pop(number)
                if handle := _held(self._place.path(known), known.address):
                    self._open[number] = handle
                    if self._epochs and self._epochs[0].left[number]:
                        self._begun.add(number)
                else:
                    self._here.discard(number)
                    self._wait_for(number)
            self._readers[number] += 1
        try:
            yield handle
        finally:
            with self._changed:
                self._readers[number] -= 1
                self._let_go(number)

    def _let_go(self, number: int) -> None:
        """Close a shard that nobody reads, so that any process may remove it."""
        if not self._readers[number]:
            del self._readers[number]
            if number not in self._begun and (handle := self._open.pop(number, None)):
                handle.close()

    def close(self) -> None:
        """End the thread, and let go of all shards; they stay in the cache."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            for handle in self._open.values():
                handle.close()
            self._open.clear()

    def _wait_for(self, number: int) -> None:
        """Ask for a shard, and wait until something changes."""
        if number not in self._asked:
            self._asked.append(number)
        self._start()
        self._changed.notify_all()
        tells = not self._has_waited and environment_ranks().is_first
        self._has_waited = True
        self.waiting += 1
        try:
            text = f"waiting for {self._place.objects[number].address}"
            with announced(text) if tells else nullcontext():
                self._changed.wait()
        finally:
            self.waiting -= 1

    def _start(self) -> None:
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._work, name="fastmoco-arrivals", daemon=True
            )
            self._thread.start()

    def _work(self) -> None:
        while (job := self._next()) is not None:
            number, is_asked = job
            is_here, error = False, None
            try:
                is_here = self._bring(number, is_asked=is_asked)
            except Exception as caught:
                error = caught
            with self._changed:
                if is_here:
                    self._here.add(number)
                    self._left_out.discard(number)
                elif error is None:  # there is no room now
                    self._changed.wait(RETRY_SECONDS)
                    self._asked.extend([number] * (is_asked and number not in self._asked))
                elif is_asked:
                    self._failed[number] = error
                else:
                    self._left_out.add(number)
                self._changed.notify_all()

    def _next(self) -> tuple[int, bool] | None:
        """Wait for a shard to bring, and whether a reader waits for it; None at the end."""
        with self._changed:
            while not self._closed:
                if self._asked:
                    return self._asked.popleft(), True
                self._go_on()
                needs = self._needs()
                needs[[*self._here, *self._left_out]] = NEVER
                if needs.min() < NEVER:
                    return int(needs.argmin()), False
                self._changed.wait()
        return None

    def _go_on(self) -> None:
        """Forget epochs that were read, and plan up to two."""
        while self._epochs and not self._epochs[0].left.any():
            self._epochs.popleft()
        while len(self._epochs) < 2 and (ids := next(self._to_come, None)) is not None:
            self._epochs.append(_Epoch.of(ids, self._shard_ends))

    def _needs(self) -> INT64:
        """Position of the next planned use of each shard, ``(S,)``."""
        needs = np.full(len(self._shard_ends), NEVER)
        for number, epoch in reversed([*enumerate(self._epochs)]):
            is_used = epoch.left > 0
            needs[is_used] = epoch.first[is_used] + number * self._shard_ends[-1]
        return needs

    def _bring(self, number: int, *, is_asked: bool) -> bool:
        """Fetch a shard unless it is here; False without room for it."""
        known = self._place.objects[number]
        path = self._place.path(known)
        if path.exists():
            return True
        with self._place.filling():  # one process at a time, so that the limit holds
            if not path.exists():
                if not self._has_room(number, is_asked=is_asked):
                    return False
                fetch(self._storage, known, self._place, lambda _: None)
        return True

    def _has_room(self, number: int, *, is_asked: bool) -> bool:
        """Make room for a shard.

        Raises:
            RemoteError: If a reader waits for it, and other processes leave no room.
        """
        known = self._place.objects[number]
        victims = self._victims(number, is_asked=is_asked)
        here = self._place.partial(known)
        needed = (known.num_bytes or 0) - (here.stat().st_size if here.exists() else 0)
        lacking = self._cache.make_room_in(
            self._place, needed, lambda: any(map(self._remove, victims))
        )
        with self._changed:
            if lacking and is_asked and not self._readers:
                raise RemoteError(
                    f"{self._cache.folder}: has no room for {known.address.name}, since other "
                    "processes use what is there, or its disk is full; wait for them, free some "
                    f"space, or set {LIMIT_VARIABLE} to more"
                )
        return not lacking

    def _victims(self, number: int, *, is_asked: bool) -> Iterator[int]:
        """Shards that may go for one, first what was read, then what is needed last."""
        with self._changed:
            needs = self._needs()
            sooner = int((needs[[*self._here]] < needs[number]).sum())
            if not is_asked and sooner >= self.ahead:
                return iter(())
            latest = -1 if is_asked else needs[number]
            was_read = np.zeros(len(needs), np.bool_)
            was_read[[*self._read]] = True
            order = np.lexsort((-needs, ~(was_read & (needs > latest))))
            return iter([one for one in order.tolist() if needs[one] > latest])

    def _remove(self, number: int) -> bool:
        """Remove a shard unless somebody reads or holds it; whether it was removed."""
        with self._changed:
            if number in self._readers or number in self._asked:
                return False
            self._here.discard(number)
            if handle := self._open.pop(number, None):
                handle.close()
        return remove_unheld(self._place.path(self._place.objects[number]))


def _held(path: Path, address: Address) -> Handle | None:
    """Open a shard and share a lock on it, which keeps it here; None if it is not here."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    handle = Handle(address, descriptor, os.fstat(descriptor).st_size)
    with suppress(BlockingIOError):  # another process is removing it
        lock_descriptor(descriptor, path, wait=False, shared=True)
        if path.exists():
            return handle
    handle.close()
    return None
