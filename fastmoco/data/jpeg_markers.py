"""Facts from a JPEG's markers, read without decoding (ITU-T T.81, annex B).

One pass over the segments, and one regular expression over the codes between them: about 80 us
for 119 KB. It finds cut files, too many scans, and the real end of the picture.
"""

import re
import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from fastmoco.data.metadata import exif_orientation, xmp_orientation

MAX_SEGMENTS = 10_000
MAX_SCANS = 500  # the limit of libjpeg-turbo's own tests; a common progressive file has ten
_EOI, _SOS, _APP0, _APP1, _APP2, _APP14 = 0xD9, 0xDA, 0xE0, 0xE1, 0xE2, 0xEE
_METADATA = frozenset({*range(0xE0, 0xF0), 0xFE})  # APP0 to APP15, and comments
_XMP, _ICC = b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_HUFFMAN_FRAMES = (0xC0, 0xC1, 0xC2)
_ARITHMETIC_FRAMES = (0xC9, 0xCA)
# Skips stuffed bytes, restarts and fill. `\xff+` would be 10 times slower: no literal start.
_NEXT_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
# Sampling factors of the first component that every libjpeg-turbo (and FFCV) accepts.
_COMMON_SAMPLINGS = ((1, 1), (2, 1), (2, 2), (1, 2), (4, 1))


class ImageError(ValueError):
    """An image is not usable; the message is the reason, and fits after a file name."""


class JpegInfo(NamedTuple):
    """Facts from the markers of a JPEG."""

    width: int
    """Stored width in pixels, before any rotation."""
    height: int
    """Stored height in pixels."""
    bits: int
    """Bits per component, 8 or 12."""
    huffman: bool
    """Baseline, extended or progressive with Huffman codes."""
    arithmetic: bool
    """Extended or progressive with arithmetic codes, which not every reader supports."""
    color: str
    """``gray``, ``ycbcr``, ``rgb`` or ``cmyk`` (any of four components)."""
    common_sampling: bool
    """Whether every decoder supports its color subsampling."""
    scans: int
    """Number of scans."""
    orientation: int
    """Orientation of EXIF or else of XMP; 1 (upright) if absent or invalid."""
    metadata: tuple[tuple[int, int], ...]
    """Start and end of the segments that hold neither codes nor the color space."""
    alarming: bool
    """Whether some of them make decoders warn: a color profile that is not complete, or an unknown
    version of JFIF."""
    end: int
    """Byte after the end of the picture; later bytes are not part of it."""

    @property
    def turbo_decodes(self) -> bool:
        """Whether libjpeg-turbo's simple interface decodes it to RGB."""
        coded = self.bits == 8 and (self.huffman or self.arithmetic)
        return coded and self.common_sampling and self.color != "cmyk"

    @property
    def obstacle(self) -> str:
        """Why some reader would not decode its bytes to upright pixels; "" if every reader does."""
        if self.bits != 8:
            return f"has {self.bits} bits per channel, not 8"
        if self.color not in ("gray", "ycbcr"):
            return f"has {self.color.upper()} pixels, not gray or YCbCr"
        if self.orientation != 1:
            return "must be turned upright"
        if not self.huffman or not self.common_sampling:
            return "has a coding that not every reader supports"
        if self.alarming:
            return "has a broken color profile or an unknown version of JFIF"
        return ""


@dataclass(kw_only=True, slots=True)
class _Seen:
    """Facts from the segments before ``position``."""

    position: int = 2
    segments: int = 0
    frame: bytes = b""
    frame_marker: int = 0
    scans: int = 0
    exif: int = 0
    xmp: int = 0
    jfif: bool = False
    strange_jfif: bool = False
    profile: list[bytes] = field(default_factory=list)
    metadata: list[tuple[int, int]] = field(default_factory=list)
    adobe_transform: int = -1
    ended: bool = False

    def take(self, marker: int, payload: bytes) -> None:
        """Record a segment that ends at ``position``."""
        if marker in _FRAMES:
            if self.frame:
                raise ImageError("JPEG with two frames")
            self.frame, self.frame_marker = payload, marker
        elif marker == _SOS:
            self.scans += 1
        elif marker == _APP0 and payload[:6] == b"JFIF\0\1":
            self.jfif = True
        elif marker == _APP14 and payload[:5] == b"Adobe" and len(payload) >= 12:
            self.adobe_transform = payload[11]
        elif marker in _METADATA:
            self.metadata.append((self.position - len(payload) - 4, self.position))
            self._take_metadata(marker, payload)

    def _take_metadata(self, marker: int, payload: bytes) -> None:
        if marker == _APP0 and payload[:5] == b"JFIF\0":
            self.jfif = self.strange_jfif = True
        elif marker == _APP1 and payload[:6] == b"Exif\0\0":
            self.exif = self.exif or exif_orientation(payload)
        elif marker == _APP1 and payload.startswith(_XMP):
            self.xmp = xmp_orientation(payload)
        elif marker == _APP2 and payload.startswith(_ICC) and len(payload) >= 14:
            self.profile.append(payload[12:14])

    @property
    def alarming(self) -> bool:
        """Whether libjpeg warns: JFIF of version 2, or parts of a profile missing or repeated."""
        count = len(self.profile) & 255
        complete = [bytes([number + 1, count]) for number in range(count)]
        return self.strange_jfif or sorted(self.profile) != complete


# Bytes before the codes, and their facts, of the last file with a single scan. Images of one size
# from one encoder share these bytes: CIFAR-10's JPEGs then take a third of the time.
_last_simple: tuple[bytes, JpegInfo] | None = None


def inspect_jpeg(blob: bytes) -> JpegInfo:
    """Read all markers of a JPEG up to its end.

    Raises:
        ImageError: If it is cut, has no frame or no scan, or is built to be slow.
    """
    global _last_simple  # one reference, replaced at once: threads may race for it
    if _last_simple is not None and blob.startswith(_last_simple[0]):
        end = _after_codes(blob, len(_last_simple[0])) + 2
        if blob[end - 1] == _EOI:
            return _last_simple[1]._replace(end=end)
    seen = _Seen()
    _read_segments(blob, seen)
    head, segments = seen.position, seen.segments
    while not seen.ended:
        seen.position = _after_codes(blob, seen.position)
        _read_segments(blob, seen)
    info = _info(seen)
    if seen.segments == segments + 1:
        _last_simple = blob[:head], info
    return info


def inspect_jpeg_header(header: bytes) -> JpegInfo:
    """Read the markers before the first codes; `scans` is 1 and `end` is where the codes start.

    Args:
        header: The start of a JPEG, at least up to its first codes.

    Raises:
        ImageError: If it is cut, or has no frame.
    """
    seen = _Seen()
    _read_segments(header, seen)
    return _info(seen)


def bare_jpeg(blob: bytes, info: JpegInfo) -> bytes:
    """The picture of a JPEG without its metadata."""
    ends = [2, *(end for _, end in info.metadata)]
    starts = [*(start for start, _ in info.metadata), info.end]
    kept = [blob[end:start] for end, start in zip(ends, starts, strict=True)]
    return b"".join([blob[:2], *kept])


def _read_segments(blob: bytes, seen: _Seen) -> None:
    """Read segments up to the next codes, or to the end of the image."""
    while seen.segments < MAX_SEGMENTS and seen.scans <= MAX_SCANS:
        seen.segments += 1
        position = seen.position
        while blob[position : position + 2] == b"\xff\xff":
            position += 1
        if len(blob) < position + 2 or blob[position] != 0xFF:
            raise ImageError(f"cut or damaged JPEG (no marker at byte {position} of {len(blob)})")
        marker = blob[position + 1]
        if marker == _EOI:
            seen.position, seen.ended = position + 2, True
            return
        length = int.from_bytes(blob[position + 2 : position + 4], "big")
        after = position + 2 + length
        if length < 2 or after > len(blob):
            raise ImageError(f"cut or damaged JPEG (segment at byte {position} of {len(blob)})")
        seen.position = after
        seen.take(marker, blob[position + 4 : after])
        if marker == _SOS:
            return
    raise ImageError(f"JPEG of over {MAX_SCANS} scans or {MAX_SEGMENTS} segments is refused")


def _info(seen: _Seen) -> JpegInfo:
    frame = seen.frame
    if len(frame) < 9 or not 9 <= 6 + 3 * frame[5] <= len(frame) or not seen.scans:
        raise ImageError("JPEG without a picture")
    bits, height, width, count = struct.unpack(">BHHB", frame[:6])
    components = [frame[6 + 3 * i : 9 + 3 * i] for i in range(count)]
    factors = [(sampling >> 4, sampling & 15) for _, sampling, _ in components]
    return JpegInfo(
        width=width,
        height=height,
        bits=bits,
        huffman=seen.frame_marker in _HUFFMAN_FRAMES,
        arithmetic=seen.frame_marker in _ARITHMETIC_FRAMES,
        color=_color([identifier for identifier, _, _ in components], seen),
        common_sampling=factors[0] in _COMMON_SAMPLINGS and set(factors[1:]) <= {(1, 1)},
        scans=seen.scans,
        orientation=seen.exif or seen.xmp or 1,
        metadata=tuple(seen.metadata),
        alarming=seen.alarming,
        end=seen.position,
    )


def _after_codes(blob: bytes, position: int) -> int:
    """Offset of the marker after a scan's codes."""
    found = _NEXT_MARKER.search(blob, position)
    if found is None:
        raise ImageError(f"cut JPEG (its codes end at byte {len(blob)} without an end marker)")
    return found.start()


def _color(identifiers: list[int], seen: _Seen) -> str:
    """Color space, by libjpeg's rules (jdapimin.c): JFIF, else Adobe, else component names."""
    if len(identifiers) == 1:
        return "gray"
    if len(identifiers) != 3:
        return "cmyk"
    if seen.jfif:
        return "ycbcr"
    if seen.adobe_transform >= 0:
        return "rgb" if seen.adobe_transform == 0 else "ycbcr"
    return "rgb" if bytes(identifiers) == b"RGB" else "ycbcr"
