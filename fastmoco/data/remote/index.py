"""The index of a dataset file elsewhere: all of it but the pages of its images, some 1%.

It is kept as a file of full length with a hole for the pages, so that the reader of files checks
and reads it as any other.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from fastmoco.data.beton_format import HEAD, METADATA, BetonError, Handle
from fastmoco.data.remote.cache import CachedSet
from fastmoco.data.remote.fetch import patiently
from fastmoco.data.remote.storage import RemoteObject, Storage
from fastmoco.files import atomic_path

FIRST_BYTES = 1 << 16
"""Bytes that are read first: the head, and the metadata of 2,600 images."""
MOST_BYTES = 1 << 30
"""Longest index."""

Span = tuple[int, int]
"""First byte of a part of a file, and the byte after it."""
Read = Callable[[Sequence[Span]], list[bytes]]
"""Function that reads spans."""


def bring_index(storage: Storage, known: RemoteObject, place: CachedSet) -> None:
    """Bring the index of an object to the cache, from the file itself if that is there.

    Raises:
        RemoteError: If the object cannot be read.
        BetonError: If it is no dataset file.
        OSError: If the disk is full or fails.
    """
    if (here := place.path(known)).exists():
        handle = Handle(here, os.open(here, os.O_RDONLY | os.O_CLOEXEC), here.stat().st_size)
        try:
            _copy(
                lambda spans: [handle.read(a, b - a) for a, b in spans],
                handle.num_bytes,
                known,
                place,
            )
        finally:
            handle.close()
        return
    assert known.num_bytes is not None

    def read(spans: Sequence[Span]) -> list[bytes]:
        parts: list[bytes] = []
        while left := spans[len(parts) :]:
            parts += patiently(partial(storage.ranges, known.address, left))
        return parts

    _copy(read, known.num_bytes, known, place)


def _copy(read: Read, num_bytes: int, known: RemoteObject, place: CachedSet) -> None:
    (first,) = read([(0, min(FIRST_BYTES, num_bytes))])
    spans = [(0, len(first))]
    if len(first) >= HEAD.itemsize:  # else the reader of files says what is wrong
        start, end = _pages(first)
        if not HEAD.itemsize <= start <= end <= num_bytes or start + num_bytes - end > MOST_BYTES:
            raise BetonError(
                f"{known.address}: is damaged there, or is no dataset file: put a good copy there, "
                "made by `fastmoco convert`"
            )
        spans += [(at, stop) for at, stop in ((len(first), start), (end, num_bytes)) if at < stop]
    parts = [first, *read(spans[1:])]
    with atomic_path(place.index(known)) as path, path.open("wb") as file:
        for (at, _), part in zip(spans, parts, strict=True):
            file.seek(at)
            file.write(part)
        file.truncate(num_bytes)


def _pages(first: bytes) -> Span:
    """The pages of a file, by its first bytes."""
    head = np.frombuffer(first[: HEAD.itemsize], HEAD)[0]
    start = HEAD.itemsize + METADATA.itemsize * int(head["header"]["num_samples"])
    section = int(head["image"]["arguments"]["pointer"])
    return start, section or int(head["header"]["table_pointer"])


@dataclass(slots=True)
class StreamedHandle(Handle):
    """A file whose index is here, and whose pages come when they are read.

    Errors name the address. Few files are open at a time: the index's is opened for each read.
    """

    index: Path
    pages: Span
    shard: Callable[[], AbstractContextManager[Handle]]
    """Brings the complete file, and keeps it within the block."""

    @classmethod
    def of(
        cls,
        known: RemoteObject,
        index: Path,
        shard: Callable[[], AbstractContextManager[Handle]],
    ) -> "StreamedHandle":
        """The handle of an object whose index is in the cache."""
        with index.open("rb") as file:
            first = file.read(HEAD.itemsize)
            num_bytes = os.fstat(file.fileno()).st_size
        pages = _pages(first) if len(first) == HEAD.itemsize else (0, 0)
        return cls(known.address, -1, num_bytes, index, pages, shard)

    def problem(self, what: str, byte: int, sample: str = "") -> BetonError:
        """See `Handle.problem`; a shard was sound when it was fetched, so its copy is damaged."""
        reason = str(Handle.problem(self, what, byte, sample)).rpartition("; ")[0]
        copy = str(self.index).removesuffix(".index")
        return BetonError(f"{reason}; remove {copy} and give the same command again")

    def read(self, offset: int, size: int) -> bytes:
        """See `Handle.read`; waits for the pages.

        Raises:
            BetonError: As `Handle.read`.
            RemoteError: If the pages cannot be brought.
        """
        start, end = self.pages
        if size and offset < end and offset + size > start:
            with self.shard() as complete:
                return complete.read(offset, size)
        descriptor = os.open(self.index, os.O_RDONLY | os.O_CLOEXEC)
        part = Handle(self.path, descriptor, self.num_bytes)
        try:
            return part.read(offset, size)
        finally:
            part.close()
