"""The result of every source: a list of samples, and a function that loads one of them."""

import errno
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.jpeg_markers import ImageError
from fastmoco.data.sources.passed_over import PassedOver

MAX_FILE_BYTES = 1 << 29

Loaded = bytes | NDArray[np.uint8]

BROKEN_LINK = "is a link to a file that does not exist"
NOWHERE = (errno.ENOENT, errno.ELOOP, errno.EACCES, errno.ENOTDIR, errno.ENAMETOOLONG)
"""Error numbers of a file that is missing or may not be read, however healthy the disk is."""


class Place(NamedTuple):
    """Location of an image's bytes in a file."""

    path: str
    offset: int
    size: int
    fault: str = ""
    """Why they cannot be read."""


@dataclass(kw_only=True, slots=True)
class SourceOptions:
    """Options of a source besides its name."""

    split: str = ""
    """Split of a source that has splits; empty means ``train``."""
    labels: str = ""
    """File of labels: by number one per line, .npy or .pt; by path FILE.csv:COLUMN, or lines of a
    path and a label."""
    root: str = ""
    """Folder of torchvision's datasets; empty means ``data``."""
    download: bool = False
    """Download missing files of torchvision's datasets."""


def _no_stamps() -> NDArray[np.int64]:
    return np.empty((0, 2), np.int64)


@dataclass(kw_only=True, slots=True)
class SampleSet:
    """Samples of a source, in the order of the file to write."""

    names: list[str]
    """Relative name of each sample, unique."""
    labels: NDArray[np.int64]
    """Class of each sample, ``(n,)`` int64; -1 where unlabeled."""
    classes: list[str]
    """Class names; ``[]`` if unlabeled."""
    load: Callable[[Any], Loaded]
    """Loads a sample by its key: an encoded image's bytes, or ``(H, W, 3)`` uint8 RGB; picklable.
    Raises ImageError or OSError if that fails."""
    keys: Sequence[Any] = ()
    """Argument of ``load`` for each sample; default: the names."""
    stamps: NDArray[np.int64] = field(default_factory=_no_stamps)
    """Size in bytes and mtime in ns, ``(n, 2)`` int64 of each sample's file (-1 if it is missing),
    or ``(m, 2)`` of the files that hold all samples; empty for generated images."""
    passed_over: PassedOver = field(default_factory=PassedOver)
    """Files of the source that are no samples."""

    def __post_init__(self) -> None:
        if not self.keys:
            self.keys = self.names


def read_image_file(root: str, name: str) -> bytes:
    """Read the bytes of an image file.

    Raises:
        ImageError: If it is empty, too large to be an image, or a link to nothing.
        OSError: If it cannot be read; ENODEV if no file can, because the folder is gone.
    """
    # pathlib and os.path would take longer than all other work on a small image. O_NONBLOCK: do
    # not wait for a pipe that a manifest names.
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
    path = name if name.startswith("/") else f"{root}/{name}"
    try:
        descriptor = os.open(path, flags)
    except OSError as error:
        _expect_folder(root)
        if is_broken_link(path, error):
            raise ImageError(BROKEN_LINK) from error
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


def is_broken_link(path: str, error: OSError) -> bool:
    """Whether a file could not be opened because it is a link to a missing one."""
    return error.errno == errno.ENOENT and os.path.islink(path)


def _expect_folder(root: str) -> None:
    """Distinguish a missing image from an unplugged disk, whose mount point is gone or empty."""
    try:
        with os.scandir(root) as entries:
            exists = any(entries)
    except PermissionError:  # it exists, but may not be listed
        exists = True
    except OSError:
        exists = False
    if not exists:
        raise OSError(errno.ENODEV, "the folder is gone or empty", root)


def check_file_bytes(size: int) -> None:
    """Refuse a size that is zero or too large for an image.

    Raises:
        ImageError: If it is refused.
    """
    if not 0 < size <= MAX_FILE_BYTES:
        raise ImageError(f"{size} bytes are refused (1 to {MAX_FILE_BYTES})")


def stamps_of(paths: Iterable[str | Path]) -> NDArray[np.int64]:
    """Size in bytes and mtime in ns of each file, ``(n, 2)`` int64; -1 if it is missing."""
    rows = []
    for path in paths:
        try:
            status = os.stat(path)
        except OSError:
            rows.append((-1, -1))
        else:
            rows.append((status.st_size, status.st_mtime_ns))
    return np.array(rows, np.int64).reshape(-1, 2)
