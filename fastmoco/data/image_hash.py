"""Hashes of an image: one of its content, and a 64-bit difference hash of what it shows.

The difference hash (dHash, D. Looks, "Kind of Like That", 2013) says of the means of 8 x 9 cells
which of two neighbors in a row is brighter, so that a recompressed or rescaled copy has nearly the
same one. The means are exact integers over the true areas: with areas rounded to whole pixels of a
shrunk image, a tenth of the copies at 0.7 or 1.5 times the size differed in more than three bits.
"""

import hashlib
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastmoco.data.images import (
    MAX_SIDE,
    UPRIGHT,
    check_size,
    decode_luma,
    is_jpeg,
    load_image,
)
from fastmoco.data.jpeg_markers import JpegInfo, inspect_jpeg
from fastmoco.data.sources import Loaded

ROWS, COLUMNS = 8, 9
LEAST_SIDE = 64  # pixels of the shrunk image that the means are taken of; larger costs time only
CLEAR_LEVELS = 1.0  # of 255; smaller differences of two means may change sign in a copy
CLEAR_BITS, CHANGES = 32, 18
"""Flat images have fewer clear differences, such as an empty page, or fewer changes from one bit to
the next, such as anything bright in the middle of a dark field: their hashes say too little. Among
the 60,000 images of CIFAR-10, a chain of 16 such images with 8 different motifs was one group."""


class ImageHash(NamedTuple):
    """Hashes of one image."""

    content: int
    """64 bits of BLAKE2b: of a JPEG's bytes, else of the pixels."""
    difference: int
    """The difference hash, 64 bits."""
    is_flat: bool
    """Whether it shows too little for `difference` to tell it from other images."""


class _Shrunk(NamedTuple):
    """A gray image whose pixels are means over ``step[0] / step[1]`` pixels a side."""

    luma: NDArray[np.uint8]
    height: int
    width: int
    step: tuple[int, int]


def hash_image(loaded: Loaded) -> ImageHash:
    """Compute both hashes.

    Args:
        loaded: An encoded image's bytes, or ``(H, W, 3)`` uint8 RGB.

    Raises:
        ImageError: If the image is damaged, of an unsupported format, or too large.
    """
    if isinstance(loaded, bytes) and is_jpeg(loaded):
        info = inspect_jpeg(loaded)
        if info.turbo_decodes:
            check_size(info.width, info.height)
            means = _upright(_shrunk_jpeg(loaded, info), info.orientation)
            return _hashes(loaded[: info.end], means)
    pixels = load_image(loaded, MAX_SIDE) if isinstance(loaded, bytes) else loaded
    check_size(pixels.shape[1], pixels.shape[0])
    shape = repr(pixels.shape).encode()
    return _hashes(shape + pixels.tobytes(), _cell_means(_shrunk(pixels), ROWS, COLUMNS))


def _hashes(content: bytes, means: NDArray[np.float64]) -> ImageHash:
    digest = hashlib.blake2b(content, digest_size=8).digest()
    steps = np.diff(means, axis=1)
    bits = steps > 0
    changes = (bits[:, 1:] != bits[:, :-1]).sum() + (bits[1:] != bits[:-1]).sum()
    is_flat = bool((np.abs(steps) >= CLEAR_LEVELS).sum() < CLEAR_BITS or changes < CHANGES)
    difference = int.from_bytes(np.packbits(bits).tobytes())
    return ImageHash(int.from_bytes(digest), difference, is_flat)


def _shrunk_jpeg(blob: bytes, info: JpegInfo) -> _Shrunk:
    luma = decode_luma(blob, least=LEAST_SIDE)
    sides = (info.height, info.width)
    eighths = next(n for n in range(1, 9) if luma.shape == tuple(-(-s * n // 8) for s in sides))
    return _Shrunk(luma, *sides, (8, eighths))


def _shrunk(pixels: NDArray[np.uint8]) -> _Shrunk:
    height, width = pixels.shape[:2]
    step = max(1, min(height, width) // LEAST_SIDE)
    luma = np.asarray(Image.fromarray(pixels).convert("L").reduce(step))
    return _Shrunk(luma, height, width, (step, 1))


def _cell_means(shrunk: _Shrunk, rows: int, columns: int) -> NDArray[np.float64]:
    """Mean luma of each cell, ``(rows, columns)``; equal areas have exactly equal means."""
    luma, height, width, step = shrunk
    down = _overlaps(height, len(luma), step, rows)
    across = _overlaps(width, luma.shape[1], step, columns)
    # Integers below 2^53, so that sums are exact in any order.
    sums = down @ luma.astype(np.float64) @ across.T
    return sums / float(height * width * step[1] ** 2)


@lru_cache(maxsize=1024)
def _overlaps(side: int, count: int, step: tuple[int, int], cells: int) -> NDArray[np.float64]:
    """How much of each pixel belongs to each cell of a side, ``(cells, count)``, integers.

    The unit is a pixel of the original, divided by ``cells * step[1]``.
    """
    pixels = np.minimum(np.arange(count + 1) * step[0], side * step[1]) * cells
    edges = np.arange(cells + 1)[:, None] * (side * step[1])
    ends = np.minimum(edges[1:], pixels[1:]) - np.maximum(edges[:-1], pixels[:-1])
    overlaps: NDArray[np.float64] = np.maximum(ends, 0).astype(np.float64)
    return overlaps


def _upright(shrunk: _Shrunk, orientation: int) -> NDArray[np.float64]:
    """`_cell_means` of a JPEG after its EXIF orientation: the cells are turned, not the image."""
    turn = UPRIGHT.get(orientation)
    if turn is None:
        return _cell_means(shrunk, ROWS, COLUMNS)
    shape = (COLUMNS, ROWS) if orientation > 4 else (ROWS, COLUMNS)  # 5 to 8 exchange the sides
    number = np.arange(ROWS * COLUMNS, dtype=np.uint8).reshape(shape)
    order = np.asarray(Image.fromarray(number).transpose(turn))
    means: NDArray[np.float64] = _cell_means(shrunk, *shape).ravel()[order]
    return means
