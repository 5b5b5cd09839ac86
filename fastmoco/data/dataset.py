"""What a dataset offers to readers, and the one way to open one.

Dataset files, their shards, and JPEGs in a folder or in tar shards all answer to `Dataset`:
whatever reads images takes any of them.
"""

from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.beton import BetonFile
from fastmoco.data.beton_set import BetonSet
from fastmoco.data.source_set import SourceSet


class Dataset(Protocol):
    """Open images with their labels; any number of threads may read at once.

    Attributes:
        path: What was opened: a file, a folder, or a pattern of shards.
        labels: Class of each image, ``(n,)`` int64; -1 where unlabeled.
        widths: Width of each image in pixels, ``(n,)`` int32.
        heights: Height of each image in pixels, ``(n,)`` int32.
        modes: How each image is stored (`beton_format`), ``(n,)`` uint8.
        sizes: Length of each stored image in bytes, ``(n,)`` int64.
        has_checksums: Whether a changed byte is noticed when it is read.
        fingerprint: Hex SHA-256 that differs between datasets.
        classes: Class names, ``[]`` if unknown.
        facts: What was measured, such as ``channel_mean``; ``{}`` if nothing was.
    """

    path: Path
    labels: NDArray[np.int64]
    widths: NDArray[np.int32]
    heights: NDArray[np.int32]
    modes: NDArray[np.uint8]
    sizes: NDArray[np.int64]
    has_checksums: bool
    fingerprint: str
    classes: list[str]
    facts: dict[str, Any]

    def __len__(self) -> int:
        """The number of images."""
        ...

    def __enter__(self) -> Self:
        """Return self."""
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close it."""
        ...

    def close(self) -> None:
        """Close its files; later reads raise an error."""
        ...

    def name(self, sample_id: int) -> str:
        """The image's relative name."""
        ...

    def blob(self, sample_id: int) -> memoryview:
        """The stored bytes of an image, their checksum verified where there is one.

        Raises:
            ValueError: If they are damaged.
            OSError: If they cannot be read.
        """
        ...

    def decode(self, sample_id: int) -> NDArray[np.uint8]:
        """The pixels of an image, ``(H, W, 3)`` uint8 RGB, contiguous.

        Raises:
            ValueError: If the image is damaged.
            OSError: If it cannot be read.
        """
        ...


def open_dataset(path: str | Path) -> Dataset:
    """Open a dataset file, its shards, or JPEGs as they are in a folder or in tar shards.

    Args:
        path: ``train.beton``, a pattern of its shards such as ``train-*.beton``, a folder, or a
            ``.tar`` file or pattern.

    Raises:
        BetonError: If a dataset file is damaged, or shards do not belong together.
        ValueError: If shards are missing, or a folder has no JPEG that can be read as it is.
        OSError: If there is nothing there, or it may not be read.
    """
    path = Path(path)
    return _kind_of(path).open(path)


def _kind_of(path: Path) -> type[SourceSet | BetonFile | BetonSet]:
    if path.is_dir() or path.suffix == ".tar":
        return SourceSet
    return BetonSet if "*" in path.name and not path.exists() else BetonFile
