"""Which shards of a set are here: those that are read next are brought, those read long ago go.

One thread brings a shard after the other. What a reader waits for comes first; then what the plan
reads next. Where the limit of the cache leaves no room, the shard goes whose next use is farthest
(Belady's rule, IBM Systems Journal 5, 1966). Processes that share a cache do not know each other's
plans: a shard that is being read is locked, so none removes it from another, and a process that
reads ahead removes others only for `Arrivals.ahead` shards. Between reads a process keeps no more
of them locked than its share of the limit.
"""

import math
import os
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from copy import copy
from pathlib import Path

import numpy as np

from fastmoco.addresses import Address
from fastmoco.data.beton_format import BetonError, Handle
from fastmoco.data.remote.cache import LIMIT_VARIABLE, CachedSet, DataCache, remove_unheld
from fastmoco.data.remote.fetch import fetch
from fastmoco.data.remote.plan import NEVER, ReadingPlan
from fastmoco.data.remote.storage import RemoteError, Storage, UnreachableError
from fastmoco.draws.host import NUM_STREAMS
from fastmoco.draws.streams import INT64
from fastmoco.files import lock_descriptor
from fastmoco.ranks import environment_ranks, local_ranks
from fastmoco.waiting import announced

RETRY_SECONDS = 1.0
"""Pause before room is looked for again: another process may have made some."""
ROOM_SECONDS = 10.0
"""Longest wait for room, after which a reader gets an error."""
REFUSAL_SECONDS = 10.0
"""A shard that could not be brought is not asked for again so soon, nor is any other if the server
did not answer: all images of a batch fail at once, where each would wait for six attempts."""


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
        self._open: dict[int, Handle] = {}  # that unused for the longest time first
        self._readers: Counter[int] = Counter()  # of each shard that is being read
        self._read: set[int] = set()  # shards that the plan has read
        self._here: set[int] = set()  # shards that were here when this process looked
        self._asked: deque[int] = deque()
        # What a shard's last failure was, and when; None: that of all of them.
        self._failed: dict[int | None, tuple[BaseException, float]] = {}
        self._lacks_room_since = math.inf
        self._left_out: set[int] = set()  # could not be brought ahead; whoever reads them asks
        self._plan = ReadingPlan(iter(()), np.zeros(len(place.objects), np.int64))
        self._closed = self._has_waited = False
        self._thread: threading.Thread | None = None
        self._kept = 0  # shards that stay open between reads
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
            self._plan = ReadingPlan(epochs, shard_ends)
            self._read.clear()
            if shards := self._plan.shards_within(at_once):
                self._check_limit(shards)
            self._let_go()
            self._start()
            self._changed.notify_all()

    def _check_limit(self, shards: int) -> None:
        """Refuse a limit below what the ranks of this machine read at the same time."""
        largest = max(known.num_bytes or 0 for known in self._place.objects)
        indexes = self._place.index_bytes
        # The ranks of this machine share the cache. Beside each batch comes what is next.
        kept = min(len(self._place.objects), (shards + 2) * local_ranks().world_size)
        if kept * largest + indexes > self._cache.limit_bytes:
            raise RemoteError(
                f"{self._place.objects[0].address.parent}: {kept:,} shards are read at the same "
                f"time, more than the limit of the cache {self._cache.folder}; set "
                f"{LIMIT_VARIABLE}={math.ceil((kept * largest + indexes) / 1e9)} or more, make "
                f"smaller shards, or pretrain with a global_batch_size that {NUM_STREAMS} divides"
            )
        self.ahead = 2 * shards  # those of this batch, and as many that follow
        self._kept = shards + 1

    def count_read(self, sample_id: int) -> None:
        """Note that a sample was read."""
        with self._changed:
            if (finished := self._plan.count(sample_id)) is not None:
                self._read.add(finished)
                self._let_go()
                self._changed.notify_all()

    @contextmanager
    def shard(self, number: int) -> Iterator[Handle]:
        """Wait for a shard, and keep it within the block.

        Raises:
            RemoteError: If it cannot be brought.
            BetonError: If it is damaged, or the set is closed.
        """
        known, since = self._place.objects[number], time.monotonic()
        with self._changed:
            while not (handle := self._open.pop(number, None)):
                if self._closed:
                    raise BetonError(f"{known.address}: is closed; open it again")
                if handle := _held(self._place.path(known), known.address):
                    break
                self._raise_failure(number, since)
                self._here.discard(number)
                self._wait_for(number)
            self._open[number] = handle
            self._readers[number] += 1
            self._read.discard(number)
        try:
            yield handle
        finally:
            with self._changed:
                self._readers[number] -= 1
                self._readers += Counter()  # without those of 0
                self._let_go()

    def _raise_failure(self, number: int, since: float) -> None:
        """Raise the error of a shard for a read that began at ``since``, if there is one."""
        for key in (number, None):
            error, when = self._failed.get(key, (None, 0.0))
            if error is not None and since < when + REFUSAL_SECONDS:
                raise copy(error)  # each thread adds notes to its own

    def _let_go(self) -> None:
        """Close shards that the plan has read, or that are too many: any process may remove them.

        Those that are being read stay open.
        """
        for number in [*self._open]:
            too_many = self._closed or len(self._open) > self._kept
            if number not in self._readers and (too_many or number in self._read):
                self._open.pop(number).close()

    def close(self) -> None:
        """End the thread, and let go of all shards; they stay in the cache."""
        with self._changed:
            self._closed = True
            self._let_go()
            self._changed.notify_all()

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
        try:
            while (job := self._next()) is not None:
                self._do(*job)
        except BaseException as error:  # of the plan; who waits would wait for ever
            with self._changed:
                self._failed[None] = error, math.inf
                self._changed.notify_all()

    def _do(self, number: int, is_asked: bool) -> None:
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
                # Looking costs 50 ms for 2,000 shards; a shard that the plan has read wakes it too.
                self._changed.wait(RETRY_SECONDS * (1 if is_asked else 10))
                self._asked.extend([number] * (is_asked and number not in self._asked))
            elif is_asked:
                concerned = None if isinstance(error, UnreachableError) else number
                self._failed[concerned] = error, time.monotonic()
                if concerned is None:
                    self._asked.clear()  # whoever waits gets this error
            else:
                self._left_out.add(number)
            self._changed.notify_all()

    def _next(self) -> tuple[int, bool] | None:
        """Wait for a shard to bring, and whether a reader waits for it; None at the end."""
        with self._changed:
            while not self._closed:
                if self._asked:
                    return self._asked.popleft(), True
                self._plan.go_on()
                needs = self._plan.needs()
                needs[[*self._here, *self._left_out]] = NEVER
                if (needs < NEVER).any():
                    return int(needs.argmin()), False
                self._changed.wait()
        return None

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
                fetch(self._storage, known, self._place, self._refuse_closed)
        return True

    def _refuse_closed(self, _: int) -> None:
        """End a download that nobody waits for; what has come is kept."""
        if self._closed:
            raise RemoteError(f"{self._place.folder}: is closed")

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
            self._place, needed, lambda: any(map(self._remove, victims)), of_all=is_asked
        )
        if not is_asked or not lacking:
            self._lacks_room_since = math.inf
            return not lacking
        self._lacks_room_since = min(time.monotonic(), self._lacks_room_since)
        if time.monotonic() - self._lacks_room_since < ROOM_SECONDS:
            return False
        raise RemoteError(
            f"{self._cache.folder}: has no room for {known.address.name}, since other processes "
            "use what is there, or its disk is full; wait for them, free some space, or set "
            f"{LIMIT_VARIABLE} to more"
        )

    def _victims(self, number: int, *, is_asked: bool) -> Iterator[int]:
        """Shards that may go for one, first what was read, then what is needed last."""
        with self._changed:
            needs = self._plan.needs()
            sooner = int((needs[[*self._here]] < needs[number]).sum())
            if not is_asked and sooner >= self.ahead:
                return iter(())
            latest = -1 if is_asked else needs[number]
            was_read = np.zeros(len(needs), np.bool_)
            was_read[[*self._read]] = True
            order = np.lexsort((-needs, ~was_read))
            return iter([one for one in order.tolist() if needs[one] > latest and one != number])

    def _remove(self, number: int) -> bool:
        """Remove what is here of a shard, unless somebody reads it; whether anything was."""
        known = self._place.objects[number]
        with self._changed:
            if number in self._readers or number in self._asked:
                return False
            self._here.discard(number)
            if handle := self._open.pop(number, None):
                handle.close()
        begun = self._place.partial(known)
        had_begun = begun.exists()
        begun.unlink(missing_ok=True)
        return remove_unheld(self._place.path(known)) or had_begun


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
