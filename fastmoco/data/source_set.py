"""Unconverted JPEGs of a folder or of tar shards, as a dataset.

Trade-off: opening decodes every image of a small set once (some 1,400 photographs per second and
core), and of a set above `PROVED_IMAGES` reads every header (some 10,000); nothing has a checksum.
In return there is no second copy. Only JPEGs that `convert` would copy unchanged are used; a
warning counts the others, and `left_out` lists them.

Not supported: channel statistics (`convert` measures them), manifests, arrays, other formats.
"""

import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.beton_format import MODE_JPEG, blob_checksum, encode_text
from fastmoco.data.images import check_size, decode_jpeg, is_jpeg, jpeg_shape, prove_jpeg
from fastmoco.data.jpeg_markers import ImageError, inspect_jpeg, inspect_jpeg_header
from fastmoco.data.sources import SampleSet, SourceOptions, open_source
from fastmoco.data.sources.samples import BROKEN_LINK, NOWHERE, Place, is_broken_link

PROVED_IMAGES = 50_000
"""Largest number of images that are decoded once at opening, to leave out damaged ones."""
HEADER_BYTES = 1 << 14
"""Bytes read first of each file; a file with a longer header is read completely."""

SURVEYED = 512
"""Headers that `survey_source` reads; the median of their sizes is then known well enough."""


class SourceSet:
    """Images in a folder or in tar shards; a `Dataset`, like `BetonFile`.

    It has the attributes of `Dataset`; these differ:

    Attributes:
        modes: All MODE_JPEG, ``(n,)`` uint8.
        has_checksums: False.
        fingerprint: Hex SHA-256 of names, labels, and sizes in bytes and pixels.
        facts: ``{}``: nothing was measured.
        left_out: Name of each image that is not used, and why.
        passed_over: Files that are no images.
    """

    def __init__(
        self, path: Path, samples: SampleSet, places: Sequence[Place], shapes: NDArray[np.int32]
    ) -> None:
        """Store the samples that have a shape.

        Args:
            path: What was opened.
            samples: Its samples.
            places: Location of each sample.
            shapes: Height and width of each, ``(n, 2)``; 0 for samples to skip.
        """
        kept = np.flatnonzero(shapes[:, 0]).tolist()
        self.path = path
        self._names = [samples.names[i] for i in kept]
        self._places = [places[i] for i in kept]
        self.labels = samples.labels[kept]
        self.heights, self.widths = shapes[kept].T.copy()
        self.modes = np.full(len(kept), MODE_JPEG, np.uint8)
        self.sizes = np.array([place.size for place in self._places], np.int64)
        self.has_checksums = False
        self.classes = samples.classes
        self.facts: dict[str, Any] = {}
        self.left_out: list[tuple[str, str]] = []
        self.passed_over = samples.passed_over
        digest = hashlib.sha256(encode_text("\n".join(self._names)))
        for values in (self.labels, self.sizes, self.heights, self.widths):
            digest.update(values.tobytes())
        self.fingerprint = digest.hexdigest()

    @classmethod
    def open(cls, path: Path) -> Self:
        """List a folder or tar shards; read all headers, and all images of a small set.

        Raises:
            ValueError: If there is no JPEG that can be read unconverted.
            OSError: If something cannot be read.
        """
        samples = open_source(str(path), SourceOptions())
        places = _places(path, samples)
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            check = _proved_shape if len(places) <= PROVED_IMAGES else _shape
            found = list(pool.map(check, places, chunksize=64))
        shapes = np.array([(0, 0) if isinstance(one, str) else one for one in found], np.int32)
        bad = [(samples.names[i], one) for i, one in enumerate(found) if isinstance(one, str)]
        if bad:
            name, reason = bad[0]
            message = (
                f"{path}: {len(bad)} of {len(found)} images cannot be read unconverted "
                f"(first {name}: {reason}); `fastmoco convert {path} train.beton` reads more"
            )
            if len(bad) == len(found):
                raise ValueError(message)
            warnings.warn(f"{message}; they are left out", stacklevel=2)
        opened = cls(path, samples, places, shapes)
        opened.left_out = bad
        return opened

    def __len__(self) -> int:
        return len(self._names)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Do nothing: no file is kept open."""

    def name(self, sample_id: int) -> str:
        """The image's relative name."""
        return self._names[sample_id]

    def blob(self, sample_id: int) -> memoryview:
        """The bytes of an image's file.

        Raises:
            ImageError: If they are fewer than when the set was opened.
            OSError: If they cannot be read.
        """
        place = self._places[sample_id]
        data = _read(place, place.size)
        if len(data) != place.size:
            raise ImageError(f"{self.path}: {self.name(sample_id)} was cut since it was opened")
        return memoryview(data)

    def checksum(self, sample_id: int) -> int:
        """`blob_checksum` of an image's file, which is read."""
        return blob_checksum(self.blob(sample_id))

    def decode(self, sample_id: int) -> NDArray[np.uint8]:
        """The pixels of one image, ``(H, W, 3)`` uint8 RGB, contiguous.

        Raises:
            ImageError: If it is damaged, or has changed since the set was opened.
            OSError: If it cannot be read.
        """
        blob = self.blob(sample_id)
        shape = int(self.heights[sample_id]), int(self.widths[sample_id])
        try:
            if jpeg_shape(blob) != shape:
                raise ImageError("has another size than when the set was opened")
            return decode_jpeg(blob)
        except ImageError as error:
            raise ImageError(f"{self.path}: {self.name(sample_id)}: {error}") from error


def survey_source(path: Path) -> tuple[int, NDArray[np.int32], NDArray[np.int64]]:
    """Estimate how many images can be read, by the headers of at most `SURVEYED` of them.

    The same images of the same set are read every time, evenly spaced in its order.

    Returns:
        The number; height and width of those that were read, ``(n, 2)``; the labels of all.

    Raises:
        ValueError: If none of them can be read unconverted.
        OSError: If something cannot be read.
    """
    samples = open_source(str(path), SourceOptions())
    places = _places(path, samples)
    found = [_shape(place) for place in places[:: -(-len(places) // SURVEYED)]]
    shapes = [one for one in found if not isinstance(one, str)]
    if not shapes:
        raise ValueError(
            f"{path}: no image can be read unconverted (the first {found[0]}); "
            f"`fastmoco convert {path} train.beton` reads more"
        )
    count = len(places) * len(shapes) // len(found)
    return count, np.array(shapes, np.int32), samples.labels


def _places(path: Path, samples: SampleSet) -> Sequence[Place]:
    """Locations of images: tar members by the index, files below the folder by name and size."""
    if isinstance(samples.keys[0], Place):
        return samples.keys
    sizes = samples.stamps[:, 0].tolist()
    names = zip(samples.keys, sizes, strict=True)
    return [Place(os.path.join(path, name), 0, size) for name, size in names]


def _read(place: Place, count: int) -> bytes:
    """First bytes of an image; fewer if the file ends."""
    descriptor = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.pread(descriptor, count, place.offset)
    finally:
        os.close(descriptor)


def _shape(place: Place) -> tuple[int, int] | str:
    """Height and width of a JPEG that can be read unconverted, or why it cannot.

    Raises:
        OSError: If the disk fails.
    """
    if place.fault:
        return place.fault
    try:
        header = _read(place, min(HEADER_BYTES, place.size))
    except OSError as error:
        if error.errno not in NOWHERE:
            raise
        return BROKEN_LINK if is_broken_link(place.path, error) else str(error.strerror)
    if not is_jpeg(header):
        return "is not a JPEG"
    try:
        info = inspect_jpeg_header(header)
    except ImageError:  # the header may be longer
        try:
            info = inspect_jpeg_header(_read(place, place.size))
        except ImageError as error:
            return f"has no readable header ({error})"
    try:
        check_size(info.width, info.height)
    except ImageError as error:
        return str(error)
    return info.obstacle or (info.height, info.width)


def _proved_shape(place: Place) -> tuple[int, int] | str:
    """As `_shape`, after decoding the image once at 1/8 scale."""
    shape = _shape(place)
    if isinstance(shape, str):
        return shape
    try:
        blob = _read(place, place.size)
        prove_jpeg(blob, inspect_jpeg(blob))
    except ImageError as error:
        return str(error)
    return shape
