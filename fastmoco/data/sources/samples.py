"""What every kind of source gives: a list of samples, and a function that loads one of them."""

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.jpeg_markers import ImageError

EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif"}
    | {".ppm", ".pgm"}
)
MAX_FILE_BYTES = 1 << 29

Loaded = bytes | NDArray[np.uint8]


@dataclass(kw_only=True, slots=True)
class SourceOptions:
    """What can be said of a source beside its name."""

    split: str = ""
    """Which part of a source that has splits; empty means ``train``."""

    labels: str = ""
    """File of labels: one per line, .npy or .pt, for images by number; FILE.csv:COLUMN by path."""

    root: str = ""
    """Folder in which torchvision's sets lie; empty means ``data``."""

    download: bool = False
    """Get what is missing of torchvision's sets from the internet."""


def _no_stamps() -> NDArray[np.int64]:
    return np.empty((0, 2), np.int64)


@dataclass(kw_only=True, slots=True)
class SampleSet:
    """The samples of a source, in the order in which they are written.

    Attributes:
        names: Relative name of each, unique.
        labels: Class of each, ``(n,)`` int64; -1 where unlabeled.
        classes: Class names; ``[]`` if unlabeled.
        load: Takes a key, gives an encoded image's bytes or ``(H, W, 3)`` uint8 RGB; picklable.
            It raises ImageError or OSError where there is nothing to be had.
        keys: What ``load`` takes, one of each sample; the names where nothing else is given.
        stamps: Size in bytes and mtime in ns, ``(n, 2)`` int64 of each sample's file (-1 where
            it is missing) or ``(m, 2)`` of the files that hold them all; none for made images.
        num_ignored: Files passed over because they are hidden or of no image's extension.
    """

    names: list[str]
    labels: NDArray[np.int64]
    classes: list[str]
    load: Callable[[Any], Loaded]
    keys: Sequence[Any] = ()
    stamps: NDArray[np.int64] = field(default_factory=_no_stamps)
    num_ignored: int = 0

    def __post_init__(self) -> None:
        """Makes the names the keys where no others are given."""
        if not self.keys:
            self.keys = self.names


def read_image_file(root: str, name: str) -> bytes:
    """The bytes of an image file.

    Raises:
        ImageError: If it is empty, or too large to be an image.
        OSError: If it cannot be read; ENODEV if nothing can, since the folder is gone.
    """
    # Not by pathlib or os.path, which take longer than all else that happens to a small image. A
    # pipe that a manifest names must not be waited for.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    path = name if name.startswith("/") else f"{root}/{name}"
    try:
        descriptor = os.open(path, flags)
    except OSError:
        _expect_folder(root)
        raise
    try:
        size = os.fstat(descriptor).st_size
        check_file_bytes(size)
        data = os.read(descriptor, size)
        while len(data) < size and (more := os.read(descriptor, size - len(data))):
            data += more
        return data
    finally:
        os.close(descriptor)


def _expect_folder(root: str) -> None:
    """Tells a missing image from a disk that was unplugged, whose mount point is gone or empty."""
    try:
        with os.scandir(root) as entries:
            is_there = any(entries)
    except PermissionError:  # it is there, but may not be listed
        is_there = True
    except OSError:
        is_there = False
    if not is_there:
        raise OSError(errno.ENODEV, "the folder is gone or empty", root)


def check_file_bytes(size: int) -> None:
    """Refuses what is empty or too large to be an image.

    Raises:
        ImageError: If it is.
    """
    if not 0 < size <= MAX_FILE_BYTES:
        raise ImageError(f"{size} bytes are refused (1 to {MAX_FILE_BYTES})")


def stamps_of(paths: Iterable[str | Path]) -> NDArray[np.int64]:
    """Size in bytes and mtime in ns of each file, ``(n, 2)`` int64; -1 where there is none."""
    rows = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            rows.append((-1, -1))
        else:
            rows.append((status.st_size, status.st_mtime_ns))
    return np.array(rows, np.int64).reshape(-1, 2)
