"""One object into one checked file, whatever the connection does meanwhile.

Parts are read several at a time and appended in order, so what is on the disk is always a beginning
of the object, which a later attempt continues. A server that sends no parts is read anew each time.
"""

import os
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from fastmoco.data.beton import BetonError, BetonFile
from fastmoco.data.remote.cache import FOLDER_VARIABLE, CachedSet
from fastmoco.data.remote.storage import (
    RemoteError,
    RemoteObject,
    Storage,
    UnreachableError,
)
from fastmoco.files import sync_folder

ATTEMPTS = 6
"""Failures in a row, without a byte in between, after which a download ends."""
RETRY_SECONDS = 1.0
"""Pause after the first failure; it doubles with each that follows."""
PARTS = 4
"""Parts that are read at the same time."""
PART_BYTES = 1 << 20
"""Length of the first parts."""
PART_BYTES_RANGE = (1 << 16, 1 << 23)
"""Shortest and longest part: failures shorten parts, so that a bad connection brings some too.
Parts of 32 MB took twice the CPU time of 4 MB (310 MB, 1.2 and 0.6 s, a busy Xeon)."""
PART_SECONDS = 1.0
"""Parts that take less become longer."""

Result = TypeVar("Result")
Advance = Callable[[int], None]
"""Called with the number of bytes that were written."""


def fetch(storage: Storage, known: RemoteObject, place: CachedSet, advance: Advance) -> None:
    """Bring an object to its place in the cache, where it appears in one step.

    Every image is checked by its checksum first. What was fetched is kept if this fails, and the
    next call continues it.

    Args:
        storage: Where it comes from.
        known: The object, as `Storage.look` described it.
        place: Its set, which this process is `filling`.
        advance: Called as bytes come, also with those that an earlier call has fetched.

    Raises:
        RemoteError: If the object cannot be read, or changes meanwhile.
        BetonError: If it is damaged.
        OSError: If the disk is full or fails.
    """
    partial = place.partial(known)
    begun = partial.exists()
    try:
        _complete(storage, known, partial, advance)
        _check(known, partial)
    except BetonError:
        partial.unlink(missing_ok=True)
        if not begun:
            raise
        # A machine that lost power may have left zeros in what an earlier call fetched.
        _complete(storage, known, partial, advance)
        try:
            _check(known, partial)
        except BetonError:
            partial.unlink(missing_ok=True)
            raise
    partial.replace(place.path(known))
    sync_folder(place.folder)


def patiently(action: Callable[[], Result], attempts: int = ATTEMPTS) -> Result:
    """Call an action again after failures, with pauses.

    Args:
        action: Called until it returns; its result is returned.
        attempts: Failures that end it.

    Raises:
        UnreachableError: After the last of these failures.
    """
    for attempt in range(1, attempts):
        with suppress(UnreachableError):
            return action()
        time.sleep(RETRY_SECONDS * 2 ** (attempt - 1))
    return action()


def _complete(storage: Storage, known: RemoteObject, partial: Path, advance: Advance) -> None:
    """Append what is missing to the beginning of an object."""
    with partial.open("ab", buffering=0) as file:
        download = _Download(storage, known, file.fileno(), partial, advance)
        advance(download.done)
        while patiently(download.step):
            pass
        with _written(partial):
            os.fsync(file.fileno())
    patiently(lambda: _refuse_change(storage, known))


@contextmanager
def _written(partial: Path) -> Iterator[None]:
    """Explain errors of the disk, such as a full one.

    Raises:
        RemoteError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise RemoteError(
            f"{partial}: {(error.strerror or str(error)).lower()}; free some space, or set "
            f"{FOLDER_VARIABLE}=FOLDER on another disk; what was fetched is kept"
        ) from error


def _refuse_change(storage: Storage, known: RemoteObject) -> None:
    """Raise RemoteError if an object is no longer what it was."""
    if storage.look(known.address).version != known.version:
        raise RemoteError(
            f"{known.address}: changed while it was read; give the same command again, which "
            "fetches it as it is now"
        )


class _Download:
    """Appends to a file what it lacks of an object."""

    def __init__(
        self,
        storage: Storage,
        known: RemoteObject,
        descriptor: int,
        path: Path,
        advance: Advance,
    ) -> None:
        self._storage, self._known, self._descriptor = storage, known, descriptor
        self._path, self._advance = path, advance
        self._part_bytes = PART_BYTES
        self._has_ranges: bool | None = None  # not asked yet
        self._failed = False
        self.done = os.fstat(descriptor).st_size

    def step(self) -> int:
        """Bring some parts; returns their bytes, 0 where nothing is missing.

        Raises:
            UnreachableError: If nothing came.
            RemoteError: If the object has changed.
        """
        if self._failed:  # perhaps because it is another by now
            _refuse_change(self._storage, self._known)
        size, self._failed = self._known.num_bytes, True
        if self._has_ranges is None:
            self._has_ranges = self._storage.sends_ranges(self._known)
        if size is not None and self.done > size:
            self._restart()
        if size is not None and self.done == size:
            return 0
        if not self._has_ranges:
            self._stream()
            return 0
        assert size is not None
        brought = self._parts(size)
        self._failed = False
        return brought

    def _parts(self, size: int) -> int:
        starts = [self.done + i * self._part_bytes for i in range(PARTS)]
        bounds = [(at, min(at + self._part_bytes, size)) for at in starts if at < size]
        shortest, longest = PART_BYTES_RANGE
        began = time.monotonic()
        try:
            parts = self._storage.ranges(self._known.address, bounds)
        except UnreachableError:
            self._part_bytes = max(self._part_bytes // 4, shortest)
            raise
        if len(parts) < len(bounds):
            self._part_bytes = max(self._part_bytes // 4, shortest)
        elif time.monotonic() - began < PART_SECONDS:
            self._part_bytes = min(self._part_bytes * 2, longest)
        return sum(self._append(part) for part in parts)

    def _stream(self) -> None:
        """Read the object from its beginning.

        Raises:
            UnreachableError: If it ends before its length.
        """
        self._restart()
        for part in self._storage.stream(self._known.address):
            self._append(part)
        if self._known.num_bytes not in (None, self.done):
            reason = f"it ended after {self.done:,} of {self._known.num_bytes:,} bytes"
            raise UnreachableError.of(self._known.address, reason)

    def _restart(self) -> None:
        os.ftruncate(self._descriptor, 0)
        self._advance(-self.done)
        self.done = 0

    def _append(self, part: bytes) -> int:
        """Write a part behind the others; after a full disk what fits of it stays."""
        view = memoryview(part)
        while view:
            with _written(self._path):
                written = os.write(self._descriptor, view)
            self.done += written
            self._advance(written)
            view = view[written:]
        return len(part)


def _check(known: RemoteObject, partial: Path) -> None:
    """Check the index and the checksum of every image.

    Raises:
        BetonError: If one is wrong.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a file of FFCV: said again where it is opened
            opened = BetonFile.open(partial)
        with opened as beton:
            for sample_id in range(len(beton)):
                beton.blob(sample_id)
    except BetonError as error:
        reason = str(error).removeprefix(f"{partial}: ").partition("; ")[0]
        raise BetonError(
            f"{known.address}: {reason}; it is damaged there, or is no dataset file: "
            "put a good copy there, made by `fastmoco convert`"
        ) from error
