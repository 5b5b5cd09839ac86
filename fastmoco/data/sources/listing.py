"""Files of a folder and its subfolders that are images, or may be."""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.sources.passed_over import PassedOver
from fastmoco.data.sources.recognition import (
    HEAD_BYTES,
    named_like_image,
    named_otherwise,
    starts_like_image,
)
from fastmoco.data.sources.samples import NOWHERE

_OWN_FOLDERS = (
    {"config.yaml", ".lock"},  # a run; its lock is lost in a copy that leaves out hidden files
    {"config.yaml", "metrics.jsonl"},
    {"request.json", "request.csv"},
    {"sweep.json", "logs"},
)
"""Files by which a folder that fastmoco wrote is known; it may hold pictures, but none to learn."""
_NO_STAMP = (-1, -1)
_MAX_DEPTH = 100
_MAX_VISITS = 16
"""By links to it, a folder is searched this often: ten that link to each other have 10! paths."""

_Id = tuple[int, int]
Stamp = tuple[int, int]
"""Size in bytes and mtime in ns; -1 if the file is missing."""


@dataclass(kw_only=True, slots=True)
class Listing:
    """Image files of a folder, ordered by the parts of their paths, independent of the locale."""

    root: Path
    """The folder."""
    names: list[str]
    """Path of each file relative to it, with ``/``. A path that ends with ``/`` is a folder that
    may not be read."""
    stamps: NDArray[np.int64]
    """Size in bytes and mtime in ns of each, ``(n, 2)`` int64; -1 if the file is missing."""
    archives: list[str]
    """Tar files and other archives."""
    passed_over: PassedOver
    """All other files."""


def list_images(root: Path) -> Listing:
    """Find the files of a folder that are images, or may be: broken links, unreadable folders.

    Raises:
        OSError: If the folder may not be read, or the disk fails.
    """
    names, stamps, archives, passed_over = [], [], [], PassedOver()
    for name, found in _walk(str(root), "", (), Counter()):
        if found == "archives":
            archives.append(name)
        elif isinstance(found, str):
            passed_over.add(found, name)
        else:
            names.append(name)
            stamps.append(found)
    return Listing(
        root=root,
        names=names,
        stamps=np.array(stamps, np.int64).reshape(-1, 2),
        archives=archives,
        passed_over=passed_over,
    )


def _walk(
    folder: str, prefix: str, above: tuple[_Id, ...], linked: Counter[_Id], *, by_link: bool = False
) -> Iterator[tuple[str, Stamp | str]]:
    """Yield the relative name of each file with its stamp, or with the reason to pass it over.

    Sorted by the parts of the names. Follows links, except to a folder that contains the link.
    """
    try:
        status = os.stat(folder)
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        if not prefix or error.errno not in NOWHERE:
            raise
        yield prefix, _NO_STAMP
        return
    here = (status.st_dev, status.st_ino)
    linked[here] += by_link
    if here in above or (by_link and linked[here] > _MAX_VISITS):
        yield prefix, "folder links"
        return
    if len(above) == _MAX_DEPTH:
        yield prefix, "deep folders"
        return
    if prefix and _is_own({entry.name for entry in found}):
        yield prefix, "own folders"
        return
    for entry in found:
        if entry.name.startswith("."):
            yield prefix + entry.name, "hidden"
        elif _is_folder(entry):
            name, by_link = f"{prefix}{entry.name}/", entry.is_symlink()
            yield from _walk(entry.path, name, (*above, here), linked, by_link=by_link)
        else:
            yield prefix + entry.name, _stamp_or_reason(entry)


def _is_own(names: set[str]) -> bool:
    return any(marks <= names for marks in _OWN_FOLDERS)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError as error:
        if error.errno not in NOWHERE:
            raise
        return False


def _stamp_or_reason(entry: os.DirEntry[str]) -> Stamp | str:
    """Stamp of a file that is or may be an image, or why it is none."""
    is_named = named_like_image(entry.name)
    if not is_named and (reason := named_otherwise(entry.name)):
        return reason
    try:
        status = entry.stat()
    except OSError as error:
        if error.errno not in NOWHERE:
            raise
        return _NO_STAMP
    if not stat.S_ISREG(status.st_mode):
        return "not files"
    if is_named or starts_like_image(_head(entry.path)):
        return status.st_size, status.st_mtime_ns
    return "not images"


def _head(path: str) -> bytes:
    """First bytes of a regular file; those of a JPEG if it may not be read, as it may be one."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError:
        return b"\xff\xd8\xff"
    try:
        return os.read(descriptor, HEAD_BYTES)
    finally:
        os.close(descriptor)
