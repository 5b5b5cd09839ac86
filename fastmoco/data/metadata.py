"""Metadata of image files: the orientation, and the same files without the rest.

Only the orientation changes a picture. All other metadata may be damaged or of any size, so it is
removed before a decoder sees it: decoders refuse pictures for a broken profile or a long text.
"""

import re
import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

_ORIENTATION, _XMP = 274, 700
_SHORT = {3: "H", 4: "I", 8: "h", 9: "i"}  # TIFF's types of whole numbers that viewers accept
_XMP_ORIENTATION = re.compile(rb'tiff:Orientation(?:="|>)([1-8])')
_PNG_START = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_PNG_METADATA = frozenset(
    {*_PNG_TEXTS, b"eXIf", b"iCCP", b"gAMA", b"cHRM", b"sRGB", b"cICP", b"mDCV", b"cLLI", b"sBIT"}
    | {b"bKGD", b"hIST", b"sPLT", b"pHYs", b"tIME", b"acTL", b"fcTL", b"fdAT"}
)
_MAX_TEXT = 1 << 20
# Tags of TIFF 6.0 and its supplements that decide pixels; 254 marks a smaller version.
_TIFF_PIXELS = frozenset(
    {254, 256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323}
    | {324, 325, 332, 334, 338, 339, 340, 341, 347, *range(512, 522), 529, 530, 531, 532}
)


class Bare(NamedTuple):
    """An image file without metadata, and the metadata that may hold an orientation."""

    blob: bytes
    exif: bytes = b""
    """As a TIFF file, perhaps after ``Exif``; or garbage."""
    xmp: bytes = b""
    """As XML, or garbage."""


def orientation(exif: bytes, xmp: bytes) -> int:
    """EXIF orientation 1 to 8; XMP counts where EXIF has none, as in Pillow; 1 if invalid."""
    return exif_orientation(exif) or xmp_orientation(xmp) or 1


def exif_orientation(exif: bytes) -> int:
    """Tag 274 of the first directory, a whole number; 0 if absent, 1 if invalid, as in viewers."""
    tiff = re.sub(rb"^(?:Exif\0\0){1,2}", b"", exif)
    order = _byte_order(tiff)
    for position, tag, kind in _entries(tiff, order):
        if tag == _ORIENTATION:
            code = order + _SHORT.get(kind, "H")
            (value,) = struct.unpack_from(code, tiff, position + 8)
            return value if kind in _SHORT and 1 <= value <= 8 else 1
    return 0


def xmp_orientation(xmp: bytes) -> int:
    """``tiff:Orientation`` of XMP as an attribute or an element; 0 if absent or invalid."""
    found = _XMP_ORIENTATION.search(xmp)
    return int(found[1]) if found else 0


def without_metadata(blob: bytes) -> Bare:
    """A PNG or TIFF file without metadata; other files as they are."""
    if blob.startswith(_PNG_START):
        return _bare_png(blob)
    if _byte_order(blob):
        return _bare_tiff(blob)
    return Bare(blob)


def _byte_order(tiff: bytes) -> str:
    """Byte order for `struct`; "" if these are not the first bytes of a TIFF file."""
    return {b"II": "<", b"MM": ">"}.get(tiff[:2], "") if b"*" in tiff[2:4] else ""


def _entries(tiff: bytes, order: str) -> Iterator[tuple[int, int, int]]:
    """Position, tag and type of the complete entries of the first directory."""
    if not order or len(tiff) < 8:
        return
    (start,) = struct.unpack_from(order + "I", tiff, 4)
    (count,) = struct.unpack(order + "H", tiff[start : start + 2].ljust(2, b"\0"))
    end = min(start + 2 + 12 * count, len(tiff) - 11)
    for position in range(start + 2, end, 12):
        tag, kind = struct.unpack_from(order + "HH", tiff, position)
        yield position, tag, kind


def _bare_tiff(blob: bytes) -> Bare:
    """Empty all entries that hold metadata; positions stay."""
    order, bare, xmp = _byte_order(blob), bytearray(blob), b""
    for position, tag, _ in _entries(blob, order):
        if tag == _XMP:
            size, start = struct.unpack_from(order + "II", blob, position + 4)
            xmp = blob[start : start + size]
        if tag not in _TIFF_PIXELS:
            bare[position + 2 : position + 12] = struct.pack(order + "HII", 1, 1, 0)  # a byte, 0
    return Bare(bytes(bare), blob, xmp)


def _bare_png(blob: bytes) -> Bare:
    """Drop the chunks that hold metadata or later frames; a damaged chunk of others stays."""
    kept, exif, xmp = [_PNG_START], b"", b""
    for kind, start, end in _png_chunks(blob):
        body = blob[start + 8 : end - 4]
        if kind not in _PNG_METADATA:
            kept.append(blob[start:end])
        elif kind == b"eXIf":
            exif = body
        elif kind in _PNG_TEXTS:
            keyword, _, text = body.partition(b"\0")
            if keyword == b"XML:com.adobe.xmp":
                xmp = _png_text(kind, text)
            elif keyword == b"Raw profile type exif":  # of ImageMagick
                exif = exif or _from_hex(_png_text(kind, text))
    return Bare(b"".join(kept), exif, xmp)


def _png_chunks(blob: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of each chunk; the end may be behind that of a cut file."""
    position = len(_PNG_START)
    while len(blob) >= position + 12:
        end = position + 12 + int.from_bytes(blob[position : position + 4], "big")
        yield blob[position + 4 : position + 8], position, end
        position = end


def _png_text(kind: bytes, text: bytes) -> bytes:
    """Text after its keyword, at most `_MAX_TEXT` bytes; b"" if damaged."""
    packed = kind == b"zTXt" or (kind == b"iTXt" and text[:1] != b"\0")
    text = text[1:] if kind == b"zTXt" else text
    text = text[2:].split(b"\0", 2)[-1] if kind == b"iTXt" else text
    try:
        return zlib.decompressobj().decompress(text, _MAX_TEXT) if packed else text
    except zlib.error:
        return b""


def _from_hex(text: bytes) -> bytes:
    """Bytes in hex after three lines of a heading; b"" if damaged."""
    try:
        return bytes.fromhex(b"".join(text.split(b"\n")[3:]).decode("ascii"))
    except ValueError:
        return b""
