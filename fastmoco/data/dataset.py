"""The interface of datasets, and the function that opens them.

Dataset files, their shards, and JPEGs in a folder or in tar shards all implement `Dataset`, so any
reader of images accepts each of them.
"""

from pathlib import Path
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from fastmoco.addresses import Address, as_path
from fastmoco.data.beton import BetonFile
from fastmoco.data.beton_set import BetonSet
from fastmoco.data.remote.opening import open_remote
from fastmoco.data.source_set import SourceSet, survey_source
from fastmoco.errors import UsageError


class Dataset(Protocol):
    """Open images with their labels; any number of threads may read at once."""

    path: Path
    """What was opened: a file, a folder, a pattern of shards, or an address of these files."""
    labels: NDArray[np.int64]
    """Class of each image, ``(n,)`` int64; -1 where unlabeled."""
    widths: NDArray[np.int32]
    """Width of each image in pixels, ``(n,)`` int32."""
    heights: NDArray[np.int32]
    """Height of each image in pixels, ``(n,)`` int32."""
    modes: NDArray[np.uint8]
    """Storage of each image, ``(n,)`` uint8: MODE_JPEG or MODE_RAW of `beton_format`."""
    sizes: NDArray[np.int64]
    """Length of each stored image in bytes, ``(n,)`` int64."""
    has_checksums: bool
    """Whether a read detects changed bytes."""
    fingerprint: str
    """Hex SHA-256 that differs between datasets."""
    classes: list[str]
    """Class names, ``[]`` if unknown."""
    facts: dict[str, Any]
    """Measured facts, such as ``channel_mean``; ``{}`` if nothing was measured."""

    def __len__(self) -> int:
        """Number of images."""

    def __enter__(self) -> Self:
        """Return self."""

    def __exit__(self, *_: object) -> None:
        """Close the dataset."""

    def close(self) -> None:
        """Close the files; later reads raise an error."""

    def name(self, sample_id: int) -> str:
        """The image's relative name."""

    def blob(self, sample_id: int) -> memoryview:
        """The stored bytes of an image, after verifying their checksum, if any.

        Raises:
            ValueError: If they are damaged.
            OSError: If they cannot be read.
        """

    def checksum(self, sample_id: int) -> int:
        """`blob_checksum` of the stored bytes; only files with checksums know it without reading.

        Raises:
            ValueError: If the bytes must be read and are damaged.
            OSError: If they cannot be read.
        """

    def decode(self, sample_id: int) -> NDArray[np.uint8]:
        """The pixels of an image, ``(H, W, 3)`` uint8 RGB, contiguous.

        Raises:
            ValueError: If the image is damaged.
            OSError: If it cannot be read.
        """


def open_dataset(path: str | Path) -> Dataset:
    """Open a dataset file, its shards, or unconverted JPEGs in a folder or in tar shards.

    Args:
        path: ``train.beton``, a pattern of shards such as ``train-*.beton``, a folder, or a
            ``.tar`` file or pattern. Or ``https://`` or ``s3://`` before a file or a pattern of
            shards; these are first brought to a cache (`open_remote`).

    Raises:
        BetonError: If a dataset file is damaged, or shards do not belong together.
        ValueError: If shards are missing, or a folder has no JPEG that can be read unconverted.
        OSError: If nothing exists at the path, or it cannot be read.
    """
    path = as_path(path)
    return open_remote(path) if isinstance(path, Address) else _kind_of(path).open(path)


class Survey(NamedTuple):
    """What a set holds, as far as settings depend on it."""

    images: int
    """Number of images."""
    side: int
    """Median of their short sides, pixels."""
    classes: int
    """Classes that occur; 0 if an image has no label."""
    unlabeled: int = 0
    """Images without a label."""


def survey(path: str | Path) -> Survey:
    """Count images and classes, and take the median of the short sides.

    Of a folder or tar shards, images and sides are estimated by `survey_source`.

    Raises:
        BetonError: If a dataset file is damaged, or shards do not belong together.
        ValueError: If shards are missing, or a folder has no JPEG that can be read unconverted.
        OSError: If nothing exists at the path, or it cannot be read.
    """
    path = as_path(path)
    if issubclass(_kind_of(path), SourceSet):
        count, shapes, labels = survey_source(path)
        return Survey(count, int(np.median(shapes.min(axis=1))), *_count_classes(labels))
    with open_dataset(path) as dataset:
        sides = np.minimum(dataset.widths, dataset.heights)
        return Survey(len(dataset), int(np.median(sides)), *_count_classes(dataset.labels))


def _count_classes(labels: NDArray[np.int64]) -> tuple[int, int]:
    """Classes that occur, 0 if an image has no label; and images without a label."""
    unlabeled = int(np.count_nonzero(labels < 0))
    return 0 if unlabeled else len(np.unique(labels)), unlabeled


def open_files(path: str | Path) -> BetonFile | BetonSet:
    """Open a .beton file, or the shards of a pattern, here or elsewhere, and nothing else.

    Raises:
        UsageError: If the path is a folder or tar shards.
        BetonError: If a file is damaged, or shards do not belong together.
        ValueError: If shards are missing.
        OSError: If nothing exists at the path, or it cannot be read.
    """
    path = as_path(path)
    if isinstance(path, Address):
        return open_remote(path)
    kind = _kind_of(path)
    if issubclass(kind, SourceSet):
        raise UsageError(f"{path} is not a dataset file; run fastmoco convert {path} train.beton")
    return kind.open(path)


def _kind_of(path: Path) -> type[SourceSet | BetonFile | BetonSet]:
    if path.is_dir() or (path.suffix == ".tar" and not isinstance(path, Address)):
        return SourceSet
    return BetonSet if "*" in path.name and not path.exists() else BetonFile
