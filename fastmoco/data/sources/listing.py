"""Image files of a folder and its subfolders."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.sources.samples import EXTENSIONS
from fastmoco.errors import UsageError


@dataclass(kw_only=True, slots=True)
class Listing:
    """Image files of a folder, ordered by the parts of their paths, independent of the locale."""

    root: Path
    """The folder."""
    names: list[str]
    """Path of each file relative to it, with ``/``."""
    stamps: NDArray[np.int64]
    """Size in bytes and mtime in ns of each, ``(n, 2)`` int64."""
    num_ignored: int
    """Files that are hidden or have no image extension."""


def list_images(root: Path) -> Listing:
    """Find the images of a folder.

    Raises:
        UsageError: If there are none.
    """
    found, num_ignored = [], 0
    for name, status in _walk(root, "", ()):
        if status is None:
            num_ignored += 1
        else:
            found.append((name, status.st_size, status.st_mtime_ns))
    if not found:
        raise UsageError(
            f"{root}: holds no images; searched it and its subfolders for "
            f"{' '.join(sorted(EXTENSIONS))} ({num_ignored} other files)"
        )
    return Listing(
        root=root,
        names=[name for name, _, _ in found],
        stamps=np.array([row[1:] for row in found], np.int64),
        num_ignored=num_ignored,
    )


def _walk(
    folder: Path, prefix: str, above: tuple[tuple[int, int], ...]
) -> Iterator[tuple[str, os.stat_result | None]]:
    """Yield relative names of all files, each with its status if it has an image extension.

    Sorted by the parts of the names. Follows links, except to a folder that contains the link.
    Skips hidden folders.
    """
    status = folder.stat()
    here = (status.st_dev, status.st_ino)
    if here in above:
        return
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            hidden = entry.name.startswith(".")
            if entry.is_dir():
                if not hidden:
                    yield from _walk(folder / entry.name, f"{prefix}{entry.name}/", (*above, here))
            else:
                extension = os.path.splitext(entry.name)[1].lower()
                is_image = extension in EXTENSIONS and not hidden and entry.is_file()
                yield prefix + entry.name, entry.stat() if is_image else None
