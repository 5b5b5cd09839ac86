"""The image files of a folder and of all below it."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.sources.samples import EXTENSIONS


@dataclass(kw_only=True, slots=True)
class Listing:
    """Image files of a folder, ordered by the parts of their paths, whatever the locale.

    Attributes:
        root: The folder.
        names: Path of each below it, with ``/``.
        stamps: Size in bytes and mtime in ns of each, ``(n, 2)`` int64.
        num_ignored: Number of files that are hidden or of no image's extension.
    """

    root: Path
    names: list[str]
    stamps: NDArray[np.int64]
    num_ignored: int


def list_images(root: Path) -> Listing:
    """Finds the images of a folder.

    Raises:
        ValueError: If there are none.
    """
    found, num_ignored = [], 0
    for name, status in _walk(root, "", ()):
        if status is None:
            num_ignored += 1
        else:
            found.append((name, status.st_size, status.st_mtime_ns))
    if not found:
        raise ValueError(
            f"{root}: holds no images; looked in it and below for {' '.join(sorted(EXTENSIONS))} "
            f"({num_ignored} other files)"
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
    """Relative names of all files below, each with its status if it is an image by its extension.

    In the order of their parts. Follows links, but not into a folder that it is in already. Hidden
    folders are passed over.
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
