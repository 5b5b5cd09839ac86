"""Unconverted JPEGs of a folder or of tar shards, as a dataset.

Trade-off: opening decodes every image of a small set once (some 1,400 photographs per second and
core), and of a set above `PROVED_IMAGES` reads every header (some 10,000); nothing has a checksum.
In return there is no second copy. A JPEG that must be turned upright or has a rare coding is
encoded anew at each reading, which takes several times as long. A warning counts images that cannot
be used, and `left_out` lists them.

Not supported: channel statistics (`convert` measures them), manifests, arrays, other formats.
"""

import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.beton_format import MODE_JPEG, blob_checksum, encode_text
from fastmoco.data.images import (
    check_size,
    decode_jpeg,
    is_jpeg,
    jpeg_shape,
    plain_jpeg,
    prove_jpeg,
)
from fastmoco.data.jpeg_markers import ImageError, JpegInfo, inspect_jpeg, inspect_jpeg_header
from fastmoco.data.settings import ConvertConfig
from fastmoco.data.sources import SampleSet, SourceOptions, open_source
from fastmoco.data.sources.samples import BROKEN_LINK, NOWHERE, Place, is_broken_link

PROVED_IMAGES = 50_000
"""Largest number of images that are decoded once at opening, to leave out damaged ones."""
HEADER_BYTES = 1 << 14
"""Bytes read first of each file; a file with a longer header is read completely."""

SURVEYED = 512
"""Headers that `survey_source` reads; the median of their sizes is then known well enough."""
QUALITY = ConvertConfig().quality
"""JPEG quality of images that are encoded anew, as that of `convert`."""


class _Found(NamedTuple):
    """A JPEG that can be read, as it will be decoded."""

    height: int
    width: int
    is_plain: bool
    """Whether its bytes are used as they are; see `plain_jpeg`."""


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
        self, path: Path, samples: SampleSet, places: Sequence[Place], found: Sequence[_Found | str]
    ) -> None:
        """Store the samples that can be read.

        Args:
            path: What was opened.
            samples: Its samples.
            places: Location of each sample.
            found: What is known of each, or why it cannot be read.
        """
        readable = [(i, one) for i, one in enumerate(found) if not isinstance(one, str)]
        kept = [i for i, _ in readable]
        self.path = path
        self._names = [samples.names[i] for i in kept]
        self._places = [places[i] for i in kept]
        self._is_plain = [one.is_plain for _, one in readable]
        self.labels = samples.labels[kept]
        self.heights = np.array([one.height for _, one in readable], np.int32)
        self.widths = np.array([one.width for _, one in readable], np.int32)
        self.modes = np.full(len(kept), MODE_JPEG, np.uint8)
        self.sizes = np.array([place.size for place in self._places], np.int64)
        self.has_checksums = False
        self.classes = samples.classes
        self.facts: dict[str, Any] = {}
        self.left_out = [
            (samples.names[i], one) for i, one in enumerate(found) if isinstance(one, str)
        ]
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
            check = _prove if len(places) <= PROVED_IMAGES else _look_at
            opened = cls(path, samples, places, list(pool.map(check, places, chunksize=64)))
        if opened.left_out:
            name, reason = opened.left_out[0]
            message = (
                f"{path}: {len(opened.left_out)} of {len(places)} images cannot be read "
                f"unconverted (first {name}: {reason}); `fastmoco convert {path} train.beton` "
                "reads more"
            )
            if not len(opened):
                raise ValueError(message)
            warnings.warn(f"{message}; they are left out", stacklevel=2)
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
        """The bytes of an image's file, made plain by `plain_jpeg` where they are not.

        Raises:
            ImageError: If they are fewer than when the set was opened, or damaged and not plain.
            OSError: If they cannot be read.
        """
        place = self._places[sample_id]
        data = _read(place, place.size)
        if len(data) != place.size:
            raise ImageError(f"{self.path}: {self.name(sample_id)} was cut since it was opened")
        if self._is_plain[sample_id]:
            return memoryview(data)
        try:
            return memoryview(plain_jpeg(data, inspect_jpeg(data), QUALITY))
        except ImageError as error:
            raise ImageError(f"{self.path}: {self.name(sample_id)}: {error}") from error

    def checksum(self, sample_id: int) -> int:
        """`blob_checksum` of `blob`, which is read."""
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
    found = [_look_at(place) for place in places[:: -(-len(places) // SURVEYED)]]
    shapes = [(one.height, one.width) for one in found if not isinstance(one, str)]
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
    descriptor = os.open(place.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        return os.pread(descriptor, count, place.offset)
    finally:
        os.close(descriptor)


def _look_at(place: Place) -> _Found | str:
    """What the header of a JPEG says, or why it cannot be read unconverted.

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
    return _found(info)


def _found(info: JpegInfo) -> _Found | str:
    if info.bits != 8:
        return info.obstacle
    try:
        check_size(info.width, info.height)
    except ImageError as error:
        return str(error)
    lying = info.orientation > 4  # width and height are exchanged
    height, width = (info.width, info.height) if lying else (info.height, info.width)
    return _Found(height, width, not info.obstacle)


def _prove(place: Place) -> _Found | str:
    """As `_look_at`, after decoding the image once, at 1/8 scale where its bytes stay."""
    found = _look_at(place)
    if isinstance(found, str):
        return found
    try:
        blob = _read(place, place.size)
        plain = plain_jpeg(blob, inspect_jpeg(blob), QUALITY)
        prove_jpeg(plain, inspect_jpeg(plain))
    except ImageError as error:
        return str(error)
    return found
