"""Pixels of a plain baseline JPEG, bit for bit those of libjpeg-turbo, by loops of Numba.

Trade-off: libjpeg-turbo has vector code, but some 20 us go by around it, in Python and in its own
setup, before a small image is there. These loops need no Python between one image and the next.
What is computed is libjpeg's accurate inverse DCT (Loeffler, Ligtenberg and Moschytz 1989, in
integers of 13 bits), its triangle filter for colors of half the resolution, and its conversion from
YCbCr; its vector code has the same results. Left out: `jpeg_codes` says which JPEGs.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fastmoco.caches import cached_njit
from fastmoco.data.jpeg_codes import (
    COMPONENTS,
    INT32,
    UINT8,
    make_tables,
    read_block,
    read_header,
    unstuff,
)

MAX_SIDE = 128
"""Longest side that is decoded here, a multiple of 16."""
MAX_LEVEL = 384
"""Decoders without vector code take levels that are further from 128 than 511 for others."""


class Room(NamedTuple):
    """Memory to decode in, of one thread."""

    tables: INT32
    """`make_tables`."""
    codes: UINT8
    """Codes of `unstuff`, ``(4 w,)``."""
    words: npt.NDArray[np.uint32]
    """The same memory, ``(w,)``."""
    planes: UINT8
    """Levels of each color, ``(3, MAX_SIDE, MAX_SIDE)``; colors may have half the resolution."""
    block: INT32
    """Coefficients of a block, ``(64,)``."""
    turned: INT32
    """The same, columns as rows, ``(64,)``."""
    rows: INT32
    """Half a row of chroma with an edge at each side, and a row of each, ``(3, MAX_SIDE)``."""
    colors: INT32
    """A row of red, green and blue, ``(3, MAX_SIDE)``."""


def make_room(num_bytes: int) -> Room:
    """Make room for JPEGs of up to ``num_bytes``."""
    words = np.empty(num_bytes // 4 + 1, np.uint32)
    return Room(
        make_tables(),
        words.view(np.uint8),
        words,
        np.empty((3, MAX_SIDE, MAX_SIDE), np.uint8),
        np.empty(64, np.int32),
        np.empty(64, np.int32),
        np.empty((3, MAX_SIDE), np.int32),
        np.empty((3, MAX_SIDE), np.int32),
    )


@cached_njit()
def _transform(block: INT32, shift: int) -> None:
    """Inverse DCT of eight columns, times sqrt(8) * 2**(13 - shift), in place; half is up.

    All is 32-bit, so that the columns are one vector; `MAX_SUM` keeps it from overflowing.
    """
    half = np.int32(1 << (shift - 1))
    for x in range(8):
        c0, c1, c2, c3 = block[x], block[8 + x], block[16 + x], block[24 + x]
        c4, c5, c6, c7 = block[32 + x], block[40 + x], block[48 + x], block[56 + x]
        z = np.int32((c2 + c6) * 4433)
        even = np.int32(((c0 + c4) << 13) + half)
        odd = np.int32(((c0 - c4) << 13) + half)
        low, high = np.int32(z + c2 * 6270), np.int32(z - c6 * 15137)
        a, b, c, d = even + low, odd + high, odd - high, even - low
        z = np.int32((c7 + c3 + c5 + c1) * 9633)
        z1, z2 = np.int32((c7 + c1) * 7373), np.int32((c5 + c3) * 20995)
        z3, z4 = np.int32(z - (c7 + c3) * 16069), np.int32(z - (c5 + c1) * 3196)
        e, f = np.int32(c1 * 12299 - z1 + z4), np.int32(c3 * 25172 - z2 + z3)
        g, h = np.int32(c5 * 16819 - z2 + z4), np.int32(c7 * 2446 - z1 + z3)
        block[x], block[56 + x] = np.int32(a + e) >> shift, np.int32(a - e) >> shift
        block[8 + x], block[48 + x] = np.int32(b + f) >> shift, np.int32(b - f) >> shift
        block[16 + x], block[40 + x] = np.int32(c + g) >> shift, np.int32(c - g) >> shift
        block[24 + x], block[32 + x] = np.int32(d + h) >> shift, np.int32(d - h) >> shift


@cached_njit()
def _write_block(
    block: INT32, turned: INT32, last: int, planes: UINT8, color: int, top: int, left: int
) -> bool:
    """Transform a block and write its levels; False if one is too far off for all decoders.

    Args:
        block: Coefficients, ``(64,)``; overwritten.
        turned: See `Room`; overwritten.
        last: Position of the last coefficient that is not 0, in the order of the file.
        planes: See `Room`; a part of one is overwritten.
        color: Which one.
        top: First row of the block there.
        left: First column of the block there.
    """
    if last == 0:
        level = np.int32((block[0] + 4) >> 3)
        for i in range(64):
            turned[i] = level
    else:
        _transform(block, 11)
        for y in range(8):
            for x in range(8):
                turned[8 * x + y] = block[8 * y + x]
        _transform(turned, 18)
    lowest = highest = turned[0]
    for i in range(64):
        lowest, highest = min(lowest, turned[i]), max(highest, turned[i])
        turned[i] = min(max(turned[i] + np.int32(128), np.int32(0)), np.int32(255))
    for y in range(8):
        for x in range(8):
            planes[color, top + y, left + x] = turned[8 * x + y]
    return int(lowest) > -MAX_LEVEL and int(highest) < MAX_LEVEL


@cached_njit()
def _read_planes(
    words: npt.NDArray[np.uint32],
    size: int,
    height: int,
    width: int,
    tables: INT32,
    planes: UINT8,
    block: INT32,
    turned: INT32,
) -> bool:
    """Decode all blocks; False if one is damaged, or there are bytes too few or too many.

    Args:
        words: Codes.
        size: Bytes of the codes.
        height: Rows of the image.
        width: Columns of the image.
        tables: Those of `read_header`.
        planes: See `Room`; overwritten.
        block: See `Room`; overwritten.
        turned: See `Room`; overwritten.
    """
    across, down = tables[COMPONENTS, 0], tables[COMPONENTS, 1]
    place = np.zeros(6, np.int64)
    for top in range(0, height, 8 * down):
        for left in range(0, width, 8 * across):
            for color in range(tables[COMPONENTS, 5]):
                count = across * down if color == 0 else 1
                y, x = (top, left) if color == 0 else (top // down, left // across)
                for i in range(count):
                    last = read_block(words, (size + 3) // 4, place, color, tables, block)
                    if last < 0:
                        return False
                    at_y, at_x = y + 8 * (i // across), x + 8 * (i % across)
                    if not _write_block(block, turned, last, planes, color, at_y, at_x):
                        return False
    used = int(32 * place[2] - place[1])
    return 8 * size - 8 < used <= 8 * size


@cached_njit()
def _read_chroma(
    planes: UINT8, color: int, y: int, height: int, width: int, across: int, down: int, rows: INT32
) -> None:
    """Compute a row of chroma levels less 128, interpolated by 3/4 and 1/4 where that is needed.

    Args:
        planes: See `Room`.
        color: Number of the plane, 1 or 2.
        y: Row of the image.
        height: Rows of the image.
        width: Columns of the image.
        across: How many times as wide the image is as the plane, 1 or 2.
        down: How many times as high, 1 or 2.
        rows: See `Room`; row ``color`` is overwritten, and row 0 used.
    """
    if across == 1:
        for x in range(width):
            rows[color, x] = np.int32(planes[color, y, x]) - np.int32(128)
        return
    count = (width + 1) // 2
    # Of 4 or 16 parts; halves go up and down in turns, as libjpeg has it.
    if down == 2:
        near, bottom = y // 2, (height + 1) // 2 - 1
        other = min(max(near + (1 if y % 2 else -1), 0), bottom)
        for x in range(count):
            level = np.int32(planes[color, near, x]) * np.int32(3)
            rows[0, 1 + x] = level + np.int32(planes[color, other, x])
        left_half, right_half, bits = 8, 7, 4
    else:
        for x in range(count):
            rows[0, 1 + x] = planes[color, y, x]
        left_half, right_half, bits = 1, 2, 2
    rows[0, 0], rows[0, 1 + count] = rows[0, 1], rows[0, count]
    even, odd = np.int32(left_half - (128 << bits)), np.int32(right_half - (128 << bits))
    for x in range(count):
        here = np.int32(3 * rows[0, 1 + x])
        rows[color, 2 * x] = np.int32(here + rows[0, x] + even) >> bits
        rows[color, 2 * x + 1] = np.int32(here + rows[0, 2 + x] + odd) >> bits


@cached_njit()
def _write_pixels(planes: UINT8, tables: INT32, rows: INT32, colors: INT32, pixels: UINT8) -> None:
    """Convert from YCbCr to RGB, in units of 2**-16 as libjpeg does, or copy gray.

    Args:
        planes: See `Room`.
        tables: Those of `read_header`.
        rows: See `Room`; overwritten.
        colors: See `Room`; overwritten.
        pixels: ``(H, W, 3)``; overwritten.
    """
    height, width, _ = pixels.shape
    if tables[COMPONENTS, 5] == 1:
        for y in range(height):
            for x in range(width):
                for channel in range(3):
                    pixels[y, x, channel] = planes[0, y, x]
        return
    across, down, half = tables[COMPONENTS, 0], tables[COMPONENTS, 1], np.int32(1 << 15)
    for y in range(height):
        for color in range(1, 3):
            _read_chroma(planes, color, y, height, width, across, down, rows)
        for x in range(width):
            level, blue, red = np.int32(planes[0, y, x]), rows[1, x], rows[2, x]
            r = np.int32(level + (np.int32(91881 * red + half) >> 16))
            g = np.int32(level + (np.int32(half - 22554 * blue - 46802 * red) >> 16))
            b = np.int32(level + (np.int32(116130 * blue + half) >> 16))
            colors[0, x] = min(max(r, np.int32(0)), np.int32(255))
            colors[1, x] = min(max(g, np.int32(0)), np.int32(255))
            colors[2, x] = min(max(b, np.int32(0)), np.int32(255))
        for x in range(width):  # apart: the loop before is vector code
            pixels[y, x, 0], pixels[y, x, 1] = colors[0, x], colors[1, x]
            pixels[y, x, 2] = colors[2, x]


@cached_njit()
def decode_plain(blob: UINT8, size: int, room: Room, pixels: UINT8) -> bool:
    """Decode a plain JPEG to the pixels of `images.decode_jpeg`; False where that must do it.

    Args:
        blob: The JPEG.
        size: Its bytes. More than the room's are refused: compiled loops check no index.
        room: Overwritten.
        pixels: ``(H, W, 3)`` RGB, of the size that the JPEG must have; a side of more than
            `MAX_SIDE` is refused. Overwritten, in part even where the result is False.
    """
    tables, codes, words, planes, block, turned, rows, colors = room
    height, width, _ = pixels.shape
    if size > min(len(blob), len(codes)) or max(height, width) > MAX_SIDE:
        return False
    start = read_header(blob, size, height, width, tables)
    if start == 0:
        return False
    size = unstuff(blob, start, size, codes)
    if size < 0:
        return False
    if not _read_planes(words, size, height, width, tables, planes, block, turned):
        return False
    _write_pixels(planes, tables, rows, colors, pixels)
    return True
