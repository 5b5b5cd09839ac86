"""Metadata turns a picture as its orientation says, and changes nothing else, however broken."""

import itertools
import struct
import zlib
from collections.abc import Sequence
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastmoco.data.encode import encode_image
from fastmoco.data.images import load_image
from fastmoco.data.jpeg_markers import ImageError, inspect_jpeg
from fastmoco.data.settings import ConvertConfig
from tests.pictures import encoded, picture, turned

SHORT, LONG, WHOLE_NUMBERS = 3, 4, (3, 4, 8, 9)
PIXELS = picture(1, 6, 8)
PLAIN = {
    "JPEG": encoded(PIXELS, quality=95),
    "PNG": encoded(PIXELS, "PNG"),
    "WEBP": encoded(PIXELS, "WEBP", lossless=True),
}
SHOWN = {kind: load_image(blob, 512) for kind, blob in PLAIN.items()} | {"TIFF": PIXELS}
PROFILE, XMP = b"ICC_PROFILE\0", b"http://ns.adobe.com/xap/1.0/\0"
Entry = tuple[int, int, int, bytes]  # tag, type, count, value

any_bytes = st.binary(max_size=60)
few = {"max_examples": 60, "deadline": None}


def directory(order: str, entries: Sequence[Entry], start: int = 8) -> bytes:
    """A TIFF file of one directory; values of more than 4 bytes follow it."""
    table, values = b"", b""
    for tag, kind, count, value in sorted(entries):
        if len(value) > 4:
            offset = start + 2 + 12 * len(entries) + 4 + len(values)
            values, value = values + value, struct.pack(order + "I", offset)
        table += struct.pack(order + "HHI", tag, kind, count) + value.ljust(4, b"\0")
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(order + "I", start)
    head = head.ljust(start, b"#") + struct.pack(order + "H", len(entries))
    return head + table + bytes(4) + values


def orientation_entry(order: str, value: int, kind: int) -> Entry:
    formats = {1: "B", 3: "H", 4: "I", 6: "b", 8: "h", 9: "i", 11: "f", 12: "d"}
    return (274, kind, 1, struct.pack(order + formats.get(kind, "I"), value))


def tiff_picture(order: str, entries: Sequence[Entry]) -> bytes:
    """`PIXELS` as an uncompressed TIFF with more entries in its directory."""

    def short(tag: int, value: int) -> Entry:
        return (tag, SHORT, 1, struct.pack(order + "H", value))

    height, width = PIXELS.shape[:2]
    shape = [short(256, width), short(257, height), short(259, 1), short(262, 2), short(277, 3)]
    shape += [(258, SHORT, 3, struct.pack(order + "HHH", 8, 8, 8)), short(278, height)]
    shape += [(279, LONG, 1, struct.pack(order + "I", PIXELS.nbytes))]
    # The strip is the file's end: its offset follows from the length of everything before.
    size = len(directory(order, [*shape, short(273, 0), *entries]))
    strip: Entry = (273, LONG, 1, struct.pack(order + "I", size))
    return directory(order, [*shape, strip, *entries]) + PIXELS.tobytes()


def segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


def chunk(kind: bytes, body: bytes, damage: int = 0) -> bytes:
    checksum = zlib.crc32(kind + body) ^ damage
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", checksum)


def riff_chunk(kind: bytes, body: bytes) -> bytes:
    return kind + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


def with_segments(*segments: bytes) -> bytes:
    return b"".join([PLAIN["JPEG"][:2], *segments, PLAIN["JPEG"][2:]])


def with_chunks(*chunks: bytes) -> bytes:
    return b"".join([PLAIN["PNG"][:33], *chunks, PLAIN["PNG"][33:]])


def with_riff_chunks(*chunks: bytes) -> bytes:
    """An extended WebP file, whose flags announce profile, EXIF and XMP."""
    flags = struct.pack("<I", 0x2C) + struct.pack("<I", PIXELS.shape[1] - 1)[:3]
    header = riff_chunk(b"VP8X", flags + struct.pack("<I", PIXELS.shape[0] - 1)[:3])
    body = b"WEBP" + header + PLAIN["WEBP"][12:] + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def with_exif(kind: str, exif: bytes, junk: bytes = b"") -> bytes:
    """The picture with EXIF between pieces of junk where its format allows other metadata."""
    if kind == "JPEG":
        return with_segments(segment(0xE1, junk), segment(0xE1, exif), segment(0xE2, junk))
    if kind == "PNG":
        return with_chunks(chunk(b"tEXt", junk), chunk(b"eXIf", exif), chunk(b"tIME", junk, 1))
    return with_riff_chunks(riff_chunk(b"EXIF", exif), riff_chunk(b"XMP ", junk))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("order", ["<", ">"])
def test_every_orientation_of_every_type_in_every_format(kind: str, order: str) -> None:
    junk: Entry = (271, 2, 9, b"no\xffbody\0!")
    for value, number, broken in itertools.product(range(10), range(15), (False, True)):
        entries = [orientation_entry(order, value, number), *([junk] if broken else [])]
        if kind == "TIFF":
            blob = tiff_picture(order, entries)
        else:
            exif = directory(order, entries, start=13 if broken else 8)
            exif = b"Exif\0\0" * (1 + broken if kind == "JPEG" else broken) + exif
            blob = with_exif(kind, exif + b"#" * broken, b"garbage" * broken)
        expected = turned(SHOWN[kind], value if number in WHOLE_NUMBERS else 1)
        assert np.array_equal(load_image(blob, 512), expected), (value, number, broken)


@pytest.mark.parametrize("value", range(10))
def test_xmp_turns_where_exif_says_nothing(value: int) -> None:
    exif = directory("<", [orientation_entry("<", 3, SHORT)])
    for text in (b'<rdf tiff:Orientation="%d"/>', b"<tiff:Orientation>%d</tiff:Orientation>"):
        xmp = text % value
        packed = b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(xmp)
        tiff = tiff_picture(">", [(700, 1, len(xmp), xmp)])
        upright = value if 1 <= value <= 8 else 1
        for kind, blob in (
            ("JPEG", with_segments(segment(0xE1, XMP + xmp))),
            ("PNG", with_chunks(chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp))),
            ("PNG", with_chunks(chunk(b"iTXt", packed))),
            ("WEBP", with_riff_chunks(riff_chunk(b"XMP ", xmp))),
            ("TIFF", tiff),
        ):
            assert np.array_equal(load_image(blob, 512), turned(SHOWN[kind], upright)), kind
        both = with_segments(segment(0xE1, XMP + xmp), segment(0xE1, b"Exif\0\0" + exif))
        assert inspect_jpeg(both).orientation == 3


def test_exif_in_hex_as_imagemagick_writes_it() -> None:
    exif = b"Exif\0\0" + directory(">", [orientation_entry(">", 6, SHORT)])
    text = b"\nexif\n%8d\n%s\n" % (len(exif), exif.hex().encode())
    blob = with_chunks(chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(text)))
    assert np.array_equal(load_image(blob, 512), turned(PIXELS, 6))


profiles = st.builds(bytes.join, st.just(PROFILE), st.tuples(st.just(b""), any_bytes))
payloads = st.one_of(
    any_bytes,
    profiles,
    *(any_bytes.map(head.__add__) for head in (b"Exif\0\0II*\0", b"Exif\0\0MM\0*", XMP)),
    *(any_bytes.map(head.__add__) for head in (b"MPF\0II*\0", b"Photoshop 3.0\x008BIM", b"JFXX\0")),
    st.integers(2, 255).map(lambda version: b"JFIF\0" + bytes([version, 2, 0, 0, 1, 0, 1, 0, 0])),
)
markers = st.sampled_from([*range(0xE0, 0xEE), 0xEF, 0xFE])  # APP14 is Adobe's color space


@settings(**few)
@given(st.lists(st.tuples(markers, payloads), max_size=5), st.integers(1, 8))
def test_a_jpeg_with_any_segments(found: list[tuple[int, bytes]], value: int) -> None:
    exif = b"Exif\0\0" + directory("<", [orientation_entry("<", value, SHORT)])
    blob = with_segments(segment(0xE1, exif), *(segment(*one) for one in found))
    expected = turned(SHOWN["JPEG"], value)
    assert np.array_equal(load_image(blob, 512), expected)
    stored, pixels = encode_image(blob, ConvertConfig(), want_pixels=True)
    assert np.shape(pixels) == expected.shape
    if value == 1:  # its codes are copied
        assert np.array_equal(pixels, expected)
        assert len(stored.blob) <= len(blob)


@settings(**few)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([b"tEXt", b"zTXt", b"iTXt", b"iCCP", b"pHYs", b"gAMA", b"tIME"]),
            st.one_of(any_bytes, any_bytes.map(b"Comment\0\0".__add__)),
            st.integers(0, 1),
        ),
        max_size=5,
    ),
    st.integers(1, 8),
)
def test_a_png_with_any_chunks(found: list[tuple[bytes, bytes, int]], value: int) -> None:
    exif = chunk(b"eXIf", directory("<", [orientation_entry("<", value, SHORT)]))
    blob = with_chunks(*(chunk(*one) for one in found), exif)
    assert np.array_equal(load_image(blob, 512), turned(PIXELS, value))


@settings(**few)
@given(any_bytes, any_bytes)
def test_a_webp_with_any_exif_and_xmp(exif: bytes, xmp: bytes) -> None:
    blob = with_riff_chunks(riff_chunk(b"EXIF", exif), riff_chunk(b"XMP ", xmp))
    assert np.array_equal(load_image(blob, 512), PIXELS)


metadata_tags = [270, 271, 282, 305, 315, 700, 33723, 34377, 34665, 34675, 34853, 37724, 65000]
any_entry = st.tuples(
    st.sampled_from(metadata_tags), st.integers(0, 14), st.integers(0, 1 << 31), any_bytes
)


@settings(**few)
@given(st.lists(any_entry, max_size=4), st.integers(1, 8), st.sampled_from("<>"))
def test_a_tiff_with_any_entries(entries: list[Entry], value: int, order: str) -> None:
    blob = tiff_picture(order, [*entries, orientation_entry(order, value, SHORT)])
    assert np.array_equal(load_image(blob, 512), turned(PIXELS, value))


@pytest.mark.parametrize("kind", [b"iTXt", b"zTXt"])
def test_text_and_profiles_of_any_size(kind: bytes) -> None:
    """3 MB of text, 3 kB when compressed: Pillow refuses such pictures."""
    bomb = zlib.compress(bytes(3 << 20))
    text = {b"zTXt": b"XML:com.adobe.xmp\0\0", b"iTXt": b"XML:com.adobe.xmp\0\1\0\0\0"}[kind] + bomb
    blob = with_chunks(chunk(kind, text), chunk(b"iCCP", b"x\0\0" + bomb))
    assert np.array_equal(load_image(blob, 512), PIXELS)


def test_a_whole_profile_stays_and_a_broken_one_goes() -> None:
    parts = [PROFILE + bytes([number, 2]) + b"profile" for number in (1, 2)]
    whole = with_segments(*(segment(0xE2, part) for part in parts))
    stored, _ = encode_image(whole, ConvertConfig(), want_pixels=True)
    assert stored.blob == whole
    broken = with_segments(segment(0xE2, parts[0]))
    assert "broken color profile" in inspect_jpeg(broken).obstacle
    stored, pixels = encode_image(broken, ConvertConfig(), want_pixels=True)
    assert PROFILE not in stored.blob
    assert np.array_equal(pixels, SHOWN["JPEG"])


def test_damage_outside_of_the_metadata_is_still_noticed() -> None:
    """A flipped bit never changes the picture; a few positions hold no pixel, so it is taken."""
    taken = 0
    for position in range(8, len(PLAIN["PNG"]) - 12):
        damaged = bytearray(PLAIN["PNG"])
        damaged[position] ^= 0x20
        with suppress(ImageError):
            assert np.array_equal(load_image(bytes(damaged), 512), PIXELS), position
            taken += 1
    assert taken < 16
