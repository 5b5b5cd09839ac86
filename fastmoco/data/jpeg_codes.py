"""Header and Huffman codes of a plain baseline JPEG, read by loops that Numba compiles.

Trade-off: 8 bits, one scan, gray or YCbCr at 4:4:4, 4:2:2 or 4:2:0, no restarts. Everything else,
and whatever is odd in a file, is refused and left to libjpeg-turbo (`images`), which decides
whether it is damaged. A file is accepted only if that decoder would not warn either. Terms are
those of ITU-T T.81: DQT, DHT, SOF0 and SOS are its markers. Tables are rows of one array, and there
are no slices, since Numba counts references to each array that it makes.
"""

import numpy as np
import numpy.typing as npt

from fastmoco.caches import cached_njit

UINT8 = npt.NDArray[np.uint8]
INT32 = npt.NDArray[np.int32]
INT64 = npt.NDArray[np.int64]

PAD_BYTES = 16
"""Room behind a blob for a sample id."""
MAX_SUM = 5800
"""Bound of a block's sum of absolute coefficients; beyond, 16-bit vector code may overflow."""
QUANTIZERS, COMPONENTS = 8, 12
"""First rows of `make_tables` that hold divisors, and what a component uses."""
_LOOK_BITS = 9  # codes up to this length are found by one look into a table
_LOOK = 1 << _LOOK_BITS
_LIMITS, _OFFSETS, _COUNTS, _SYMBOLS, _END = _LOOK, _LOOK + 17, _LOOK + 34, _LOOK + 50, _LOOK + 306


def _zigzag() -> INT32:
    """Row-major position of each coefficient in the order in which a file has them, ``(64,)``."""
    cells = [(row, column) for row in range(8) for column in range(8)]
    odd = [(row + column) % 2 for row, column in cells]
    order = sorted(range(64), key=lambda i: (sum(cells[i]), cells[i][0] if odd[i] else cells[i][1]))
    return np.array(order, np.int32)


ZIGZAG = _zigzag()


def make_tables() -> INT32:
    """Make the tables of a JPEG; they are kept for the next one, since a set's are mostly equal.

    Returns:
        ``(15, ...)`` int32, with nothing defined. Rows 0 to 3 are codes of constant coefficients,
        4 to 7 those of others: symbol << 8 | length of the code that 9 bits begin with (0: longer
        or none); of each length the first 16 bits above all codes, and what to add to a code for
        its position; DHT's counts by length, and its symbols in the order of codes. Rows 8 to 11
        are divisors in zigzag order. Rows 12 to 14 are for each color sampling across and down,
        and its rows of divisors and codes; the first has the number of colors, too.
    """
    return np.zeros((15, _END), np.int32)


@cached_njit()
def _define_codes(blob: UINT8, start: int, count: int, kind: int, tables: INT32) -> bool:
    """Make the tables of a DHT's codes, unless they are those of before; False if impossible."""
    same = True
    for i in range(16 + count):
        same &= tables[kind, _COUNTS + i] == blob[start + i]
    if same:
        return True
    tables[kind, _COUNTS] = -1  # until it is complete
    for i in range(_LOOK):
        tables[kind, i] = 0
    code = position = 0
    for length in range(1, 17):
        tables[kind, _OFFSETS + length] = position - code
        for _ in range(blob[start + length - 1]):
            symbol = int(blob[start + 16 + position])
            if code >= (1 << length) - 1 or (kind < 4 and symbol > 15):  # all ones is no code
                return False
            if length <= _LOOK_BITS:
                spare = _LOOK_BITS - length
                for i in range(code << spare, (code + 1) << spare):
                    tables[kind, i] = symbol << 8 | length
            code += 1
            position += 1
        tables[kind, _LIMITS + length] = code << (16 - length)
        code <<= 1
    for i in range(16 + count):
        tables[kind, _COUNTS + i] = blob[start + i]
    return True


@cached_njit()
def _read_codes(blob: UINT8, start: int, end: int, tables: INT32) -> int:
    """Read a DHT segment; return a bit for each table that it defines, 0 if it is not plain."""
    defined = 0
    while start + 17 < end:
        kind, count = int(blob[start]), 0
        for i in range(1, 17):
            count += blob[start + i]
        if kind & 0xEC or count == 0 or count > 256 or start + 17 + count > end:
            return 0
        kind = (kind >> 4) * 4 + (kind & 3)
        if not _define_codes(blob, start + 1, count, kind, tables):
            return 0
        defined |= 1 << kind
        start += 17 + count
    return defined if start == end else 0


@cached_njit()
def _read_quantizers(blob: UINT8, start: int, end: int, tables: INT32) -> int:
    """Read a DQT segment of 8-bit divisors; the result is as that of `_read_codes`."""
    defined = 0
    while start + 65 <= end:
        row = QUANTIZERS + int(blob[start])
        if row >= COMPONENTS:
            return 0
        for i in range(64):
            tables[row, i] = blob[start + 1 + i]
            if blob[start + 1 + i] == 0:
                return 0
        defined |= 1 << row
        start += 65
    return defined if start == end else 0


@cached_njit()
def _read_frame(blob: UINT8, start: int, size: int, height: int, width: int, tables: INT32) -> int:
    """Read a SOF0 segment; return the number of colors, 0 if it is not plain or of another size."""
    if size < 9 or blob[start] != 8:
        return 0
    if blob[start + 1] * 256 + blob[start + 2] != height:
        return 0
    if blob[start + 3] * 256 + blob[start + 4] != width:
        return 0
    colors = int(blob[start + 5])
    if size != 6 + 3 * colors or (colors != 1 and colors != 3):
        return 0
    for color in range(colors):
        at, row = start + 6 + 3 * color, COMPONENTS + color
        if blob[at] != color + 1 or blob[at + 2] > 3 or (color > 0 and blob[at + 1] != 0x11):
            return 0
        tables[row, 0], tables[row, 1] = blob[at + 1] >> 4, blob[at + 1] & 15
        tables[row, 2] = QUANTIZERS + int(blob[at + 2])
    tables[COMPONENTS, 5] = colors
    across, down = tables[COMPONENTS, 0], tables[COMPONENTS, 1]
    if across == 1 and down == 1:
        return colors
    # libjpeg-turbo does not interpolate fewer columns.
    return colors if colors == 3 and across == 2 and 0 < down <= 2 and width > 4 else 0


@cached_njit()
def _read_scan(blob: UINT8, start: int, size: int, colors: int, tables: INT32) -> int:
    """Read a SOS segment; return a bit for each table that is used, 0 if the scan is not whole."""
    if colors == 0 or size != 4 + 2 * colors or blob[start] != colors:
        return 0
    used = 0
    for color in range(colors):
        at, row = start + 1 + 2 * color, COMPONENTS + color
        dc, ac = int(blob[at + 1]) >> 4, int(blob[at + 1]) & 15
        if blob[at] != color + 1 or dc > 3 or ac > 3:
            return 0
        tables[row, 3], tables[row, 4] = dc, 4 + ac
        used |= 1 << dc | 16 << ac | 1 << tables[row, 2]
    at = start + 1 + 2 * colors
    return used if blob[at] == 0 and blob[at + 1] == 63 and blob[at + 2] == 0 else 0


@cached_njit()
def read_header(blob: UINT8, size: int, height: int, width: int, tables: INT32) -> int:
    """Read all segments before the codes.

    Args:
        blob: The JPEG.
        size: Its bytes.
        height: Rows that it must have.
        width: Columns that it must have.
        tables: From `make_tables`; overwritten. Earlier tables do not count, unless they are equal.

    Returns:
        Position of the codes; 0 if the JPEG is not plain.
    """
    if size < 4 or blob[0] != 0xFF or blob[1] != 0xD8:
        return 0
    at, defined, colors = 2, 0, 0
    while at + 4 <= size and blob[at] == 0xFF:
        marker, length = int(blob[at + 1]), int(blob[at + 2]) * 256 + blob[at + 3]
        start, end = at + 4, at + 2 + length
        if length < 2 or end > size:
            return 0
        found = 0
        if marker == 0xDB:
            found = _read_quantizers(blob, start, end, tables)
        elif marker == 0xC4:
            found = _read_codes(blob, start, end, tables)
        elif marker == 0xC0 and colors == 0:
            found = colors = _read_frame(blob, start, length - 2, height, width, tables)
        elif marker == 0xDA:
            used = _read_scan(blob, start, length - 2, colors, tables)
            return end if used > 0 and used & ~defined == 0 else 0
        elif marker == 0xE0:
            found = int(length >= 16)  # JFIF, version 1; others may warn
            for i in range(6 * found):
                found &= int(blob[start + i] == _JFIF[i])
        else:
            found = int((marker > 0xE0 and marker <= 0xEF and marker != 0xEE) or marker == 0xFE)
        if found == 0:
            return 0
        if marker == 0xDB or marker == 0xC4:
            defined |= found
        at = end
    return 0


_JFIF = np.frombuffer(b"JFIF\0\1", np.uint8)


@cached_njit()
def unstuff(blob: UINT8, start: int, size: int, codes: UINT8) -> int:
    """Copy the codes without the zeros that follow bytes of 255, up to EOI.

    Args:
        blob: The JPEG.
        start: Position of the codes.
        size: The JPEG's bytes.
        codes: As long as the blob or longer; overwritten. Each four bytes are turned around, so
            that they are a number of 32 bits on a machine that is little-endian.

    Returns:
        Bytes of the codes; -1 if another marker or no EOI ends them.
    """
    count = 0
    while start + 1 < size:
        value = blob[start]
        if value == 0xFF:
            if blob[start + 1] != 0:
                return count if blob[start + 1] == 0xD9 else -1
            start += 1
        codes[count ^ 3] = value
        count += 1
        start += 1
    return -1


@cached_njit()
def _slow_code(bits: int, kind: int, tables: INT32) -> int:
    """Find a code longer than `_LOOK_BITS` in 16 bits: symbol << 8 | length, 0 if there is none."""
    for length in range(_LOOK_BITS + 1, 17):
        if bits < tables[kind, _LIMITS + length]:
            position = (bits >> (16 - length)) + tables[kind, _OFFSETS + length]
            return int(tables[kind, _SYMBOLS + position]) << 8 | length
    return 0


@cached_njit()
def read_block(
    words: npt.NDArray[np.uint32],
    num_words: int,
    place: INT64,
    color: int,
    tables: INT32,
    block: INT32,
) -> int:
    """Decode a block and multiply its coefficients by their divisors.

    Args:
        words: What `unstuff` made.
        num_words: Words that hold codes; zeros are read beyond them, which the caller notices.
        place: Bits that were read, of which only the last are left; how many are left; words that
            were read; constant coefficients of the blocks before, for each color. ``(6,)``;
            overwritten.
        color: Number of the color.
        tables: Those of `read_header`.
        block: Coefficients in row-major order, ``(64,)``; overwritten.

    Returns:
        Position of the last coefficient in the order of the file; -1 if there is no such code, or
        if `MAX_SUM` is exceeded.
    """
    bits, left, at = place[0], place[1], place[2]
    row = COMPONENTS + color
    kind, divisors = tables[row, 3], tables[row, 2]
    for i in range(64):
        block[i] = 0
    total, last, k = 0, 0, 0
    while k < 64:
        if left < 32:  # a code and its value have at most 31 bits
            bits <<= 32
            if at < num_words:
                bits |= np.int64(words[at])
            left, at = left + 32, at + 1
        entry = tables[kind, (bits >> (left - _LOOK_BITS)) & (_LOOK - 1)]
        if entry == 0:
            entry = _slow_code((bits >> (left - 16)) & 0xFFFF, kind, tables)
            if entry == 0:
                return -1
        left -= entry & 0xFF
        run, length = entry >> 12, (entry >> 8) & 15
        if k > 0:
            if length == 0:
                if run < 15:
                    break
                k += 16
                continue
            k += run
            if k > 63:
                return -1
            last = k
        left -= length
        value = (bits >> left) & ((1 << length) - 1)
        if value < (1 << length) >> 1:
            value -= (1 << length) - 1
        if k == 0:
            value += place[3 + color]
            place[3 + color] = value
            kind = tables[row, 4]
        value *= tables[divisors, k]
        total += abs(value)
        block[ZIGZAG[k]] = value
        k += 1
    place[0], place[1], place[2] = bits, left, at
    return last if total <= MAX_SUM and k <= 64 else -1
