"""Image files as they should not be, and some that only look so; each with what must become of it.

`CRAFTED` maps a file name to its bytes and its fate: ``copied`` (a JPEG whose own bytes are kept),
``encoded`` (decoded and encoded anew), both with width and height, or the reason of its refusal.
"""

import base64
import io
import struct
import zlib

import numpy as np
from PIL import Image

from tests.pictures import encoded, picture

WIDTH, HEIGHT = 56, 40
PIXELS = picture(1, HEIGHT, WIDTH)
JPEG = encoded(PIXELS, quality=92)
PNG = encoded(PIXELS, "PNG")
# `jpegtran -arithmetic` of a 32 x 24 picture: no encoder among the test's packages writes these.
ARITHMETIC = base64.b64decode(
    "/9j/4AAQSkZJRgABAQAAAQABAAD/2wBDAAYEBQYFBAYGBQYHBwYIChAKCgkJChQODwwQFxQYGBcUFhYaHSUfGhsj"
    "HBYWICwgIyYnKSopGR8tMC0oMCUoKSj/2wBDAQcHBwoIChMKChMoGhYaKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgo"
    "KCgoKCgoKCgoKCgoKCgoKCgoKCgoKCgoKCj/yQARCAAYACADASIAAhEBAxEB/8wACgAQEAUBEBEF/9oADAMBAAIR"
    "AxEAPwDSwVGnqKUtgUV/OPmCHXJViWb9SfbGDmgnuPSwwhcjtzcpveUp4K291cEuRFOQZWbwJOiv0U74gxyJGWcG"
    "O+uta7bxCJXTRlWN0gYPqt21t4dHU4XHBRVbQhuWiY1K4w1XIaX7LxBs7tQIalMv8KCOxLi19LzWOSWAPGsDBOet"
    "OAsO3gC3o3dvh+k5hU8fJQseo/r+AK6rh79BWpcw4hNQeZ4yX53fu5GVY1QlrWLBgS8sQFWtMIczuXvjzmKLhrmy"
    "6ncl8N3dJf/Z"
)
_SCAN = JPEG.index(b"\xff\xda")
_FRAME = JPEG.index(b"\xff\xc0")
_END = len(JPEG) - 2


def _frame(**changes: int) -> bytes:
    """The JPEG with another marker, precision, height or width in its frame."""
    changed = bytearray(JPEG)
    changed[_FRAME + 1] = changes.get("marker", 0xC0)
    changed[_FRAME + 4] = changes.get("bits", 8)
    height, width = changes.get("height", HEIGHT), changes.get("width", WIDTH)
    changed[_FRAME + 5 : _FRAME + 9] = struct.pack(">HH", height, width)
    changed[_FRAME + 9] = changes.get("components", changed[_FRAME + 9])
    changed[_FRAME + 11] = changes.get("sampling", changed[_FRAME + 11])
    return bytes(changed)


def _segment(marker: int, payload: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(payload) + 2) + payload


def _with_segments(*segments: bytes) -> bytes:
    """The JPEG with more segments behind its start."""
    return JPEG[:2] + b"".join(segments) + JPEG[2:]


def _without(marker: bytes) -> bytes:
    """The JPEG without its first segment of this marker."""
    start = JPEG.index(marker)
    length = struct.unpack(">H", JPEG[start + 2 : start + 4])[0]
    return JPEG[:start] + JPEG[start + 2 + length :]


def _saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[274] = orientation
    return encoded(PIXELS, quality=92, exif=exif)


def _png(width: int, height: int, kind: int = 2, bits: int = 8, data: bytes = b"") -> bytes:
    """A PNG of chosen header; its pixels are ``data``, compressed."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, kind, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(data))
        + chunk(b"IEND", b"")
    )


def _png_with_text_bomb() -> bytes:
    """A good PNG with 64 MB of text, which is 64 KB compressed."""
    body = b"Comment\0\0" + zlib.compress(bytes(1 << 26))
    chunk = struct.pack(">I", len(body)) + b"zTXt" + body
    chunk += struct.pack(">I", zlib.crc32(b"zTXt" + body))
    return PNG[:33] + chunk + PNG[33:]


def _tiff_that_points_at_itself() -> bytes:
    """A first directory whose successor is itself."""
    changed = bytearray(encoded(PIXELS, "TIFF"))
    first = struct.unpack("<I", changed[4:8])[0]
    (count,) = struct.unpack("<H", changed[first : first + 2])
    end = first + 2 + 12 * count
    changed[end : end + 4] = struct.pack("<I", first)
    return bytes(changed)


def _bmp(width: int, height: int) -> bytes:
    changed = bytearray(encoded(PIXELS, "BMP"))
    changed[18:26] = struct.pack("<ii", width, height)
    return bytes(changed)


def _frames(image_format: str, **options: object) -> bytes:
    """An animation of three pictures."""
    first, *others = (Image.fromarray(picture(i, HEIGHT, WIDTH)) for i in range(3))
    return _saved(first, image_format, save_all=True, append_images=others, **options)


def _ycck() -> bytes:
    """CMYK whose Adobe marker says YCCK."""
    blob = bytearray(_saved(Image.fromarray(PIXELS).convert("CMYK"), "JPEG"))
    place = blob.index(b"Adobe")
    blob[place + 11] = 2
    return bytes(blob)


def _mode(mode: str, image_format: str = "PNG", **options: object) -> bytes:
    return _saved(Image.fromarray(PIXELS).convert(mode), image_format, **options)


def _sixteen_bit() -> bytes:
    return _saved(Image.fromarray(PIXELS[..., 0].astype(np.uint16) * 257), "PNG")


def _float_tiff() -> bytes:
    return _saved(Image.fromarray(PIXELS[..., 0].astype(np.float32)), "TIFF")


def _many_scans() -> bytes:
    """The one scan again and again: each costs a decoder a pass over the whole picture."""
    scan = JPEG[_SCAN:_END]
    return JPEG[:_SCAN] + scan * 600 + JPEG[_END:]


def _restarts() -> bytes:
    return _saved(Image.fromarray(PIXELS), "JPEG", quality=92, restart_marker_blocks=2)


def _large() -> bytes:
    return encoded(picture(2, 300, 700), quality=90)


TURNED = {2: "56 x 40", 3: "56 x 40", 4: "56 x 40", 5: "40 x 56", 7: "40 x 56", 8: "40 x 56"}
"""EXIF orientations beside 6, that of turned.jpg, and the size of the upright picture."""
CRAFTED: dict[str, tuple[bytes, str]] = {
    # JPEG: cut, wiped, foreign bytes
    "cut_one_byte.jpg": (JPEG[:-1], "cut JPEG (its codes end at byte 1272 without an end marker)"),
    "cut_end_marker.jpg": (
        JPEG[:-2],
        "cut JPEG (its codes end at byte 1271 without an end marker)",
    ),
    "cut_half.jpg": (
        JPEG[: len(JPEG) // 2],
        "cut JPEG (its codes end at byte 636 without an end marker)",
    ),
    "cut_in_header.jpg": (JPEG[: _FRAME + 6], "cut or damaged JPEG (segment at byte 158 of 164)"),
    "start_only.jpg": (JPEG[:2], "is not an image of a known format, or its header is damaged"),
    "empty.jpg": (b"", "0 bytes are refused (1 to 536870912)"),
    "one_byte.jpg": (b"\xff", "is not an image of a known format, or its header is damaged"),
    "zeros.jpg": (bytes(1000), "is not an image of a known format, or its header is damaged"),
    "text.jpg": (
        b"GIT LFS pointer\nversion 1\n",
        "is not an image of a known format, or its header is damaged",
    ),
    "html.jpg": (
        b"<!DOCTYPE html><title>404 Not Found</title>",
        "is not an image of a known format, or its header is damaged",
    ),
    "wiped_codes.jpg": (
        JPEG[: _SCAN + 40] + bytes(60) + JPEG[_SCAN + 100 :],
        "damaged JPEG (Corrupt JPEG data: 23 extraneous bytes before marker 0xd9)",
    ),
    "wiped_to_the_end.jpg": (
        JPEG[: _SCAN + 60] + bytes(len(JPEG) - _SCAN - 62) + JPEG[-2:],
        "damaged JPEG (Corrupt JPEG data: premature end of data segment)",
    ),
    "noise_in_codes.jpg": (
        JPEG[: _SCAN + 60] + bytes((7 * i) % 251 for i in range(90)) + JPEG[_SCAN + 150 :],
        "damaged JPEG (Corrupt JPEG data: 23 extraneous bytes before marker 0xd9)",
    ),
    "cut_codes_with_end.jpg": (
        JPEG[: (_SCAN + _END) // 2] + b"\xff\xd9",
        "damaged JPEG (Corrupt JPEG data: premature end of data segment)",
    ),
    "no_huffman_tables.jpg": (_without(b"\xff\xc4"), "copied 56 x 40"),
    "no_quantization.jpg": (
        _without(b"\xff\xdb"),
        "damaged JPEG (Quantization table 0x00 was not defined)",
    ),
    "no_frame.jpg": (_without(b"\xff\xc0"), "JPEG without a picture"),
    "no_components.jpg": (_frame(components=0), "JPEG without a picture"),
    "no_scan.jpg": (JPEG[:_SCAN] + b"\xff\xd9", "JPEG without a picture"),
    "two_frames.jpg": (JPEG[:_SCAN] + JPEG[_FRAME:_SCAN] + JPEG[_SCAN:], "JPEG with two frames"),
    "stowaway_zip.jpg": (JPEG + b"PK\x03\x04" + bytes(500), "copied 56 x 40"),
    "stowaway_jpeg.jpg": (JPEG + encoded(picture(5)), "copied 56 x 40"),
    "html_comment.jpg": (
        _with_segments(_segment(0xFE, b"<script>alert(1)</script>")),
        "copied 56 x 40",
    ),
    # JPEG: sizes
    "no_height.jpg": (
        _frame(height=0),
        "56 x 0 pixels are refused (sides 1 to 32768, at most 134 megapixels)",
    ),
    "no_width.jpg": (
        _frame(width=0),
        "0 x 40 pixels are refused (sides 1 to 32768, at most 134 megapixels)",
    ),
    "wide_line.jpg": (
        _frame(height=1, width=65535),
        "65535 x 1 pixels are refused (sides 1 to 32768, at most 134 megapixels)",
    ),
    "bomb.jpg": (
        _frame(height=65535, width=65535),
        "65535 x 65535 pixels are refused (sides 1 to 32768, at most 134 megapixels)",
    ),
    "larger_than_its_codes.jpg": (
        _frame(height=30000, width=4000),
        "damaged JPEG (Corrupt JPEG data: premature end of data segment)",
    ),
    "smaller_than_its_codes.jpg": (
        _frame(height=8, width=8),
        "damaged JPEG (Corrupt JPEG data: 577 extraneous bytes before marker 0xd9)",
    ),
    "large.jpg": (_large(), "encoded 512 x 219"),
    # JPEG: kinds
    "plain.jpg": (JPEG, "copied 56 x 40"),
    "gray.jpg": (_mode("L", "JPEG"), "copied 56 x 40"),
    "cmyk.jpg": (_mode("CMYK", "JPEG"), "encoded 56 x 40"),
    "ycck.jpg": (_ycck(), "encoded 56 x 40"),
    "rgb.jpg": (
        _saved(Image.fromarray(PIXELS), "JPEG", quality=92, keep_rgb=True),
        "encoded 56 x 40",
    ),
    "progressive.jpg": (encoded(PIXELS, quality=92, progressive=True), "copied 56 x 40"),
    "progressive_cut.jpg": (
        encoded(PIXELS, quality=92, progressive=True)[:-200],
        "cut or damaged JPEG (segment at byte 929 of 949)",
    ),
    "restarts.jpg": (_restarts(), "copied 56 x 40"),
    "arithmetic.jpg": (ARITHMETIC, "encoded 32 x 24"),
    "arithmetic_cut.jpg": (
        ARITHMETIC[:-60],
        "cut JPEG (its codes end at byte 345 without an end marker)",
    ),
    "arithmetic_by_name_only.jpg": (
        _frame(marker=0xC9),
        "damaged JPEG (Corrupt JPEG data: 534 extraneous bytes before marker 0xd9)",
    ),
    "lossless_by_name_only.jpg": (
        _frame(marker=0xC3),
        "cannot be decoded (broken data stream when reading image file)",
    ),
    "hierarchical_by_name_only.jpg": (
        _frame(marker=0xC5),
        "cannot be decoded (broken data stream when reading image file)",
    ),
    "twelve_bits.jpg": (_frame(bits=12), "JPEG has 12 bits per channel; only 8 are supported"),
    "odd_sampling.jpg": (_frame(sampling=0x31), "encoded 56 x 40"),
    "no_sampling.jpg": (
        _frame(sampling=0x00),
        "cannot be decoded (broken data stream when reading image file)",
    ),
    "scans_without_end.jpg": (_many_scans(), "JPEG of over 500 scans or 10000 segments is refused"),
    "segments_without_end.jpg": (
        _with_segments(_segment(0xFE, b"x") * 10_001),
        "JPEG of over 500 scans or 10000 segments is refused",
    ),
    "fill_bytes.jpg": (JPEG[:2] + b"\xff" * 100 + JPEG[2:], "copied 56 x 40"),
    "heavy_thumbnail.jpg": (
        _with_segments(*[_segment(0xE2, bytes(60_000))] * 3),
        "encoded 56 x 40",
    ),
    "turned.jpg": (_exif(6), "encoded 40 x 56"),
    **{f"turned_{o}.jpg": (_exif(o), f"encoded {size}") for o, size in TURNED.items()},
    "turned_beyond_8.jpg": (_exif(9), "copied 56 x 40"),
    "exif_of_noise.jpg": (
        _with_segments(_segment(0xE1, b"Exif\0\0II*\0" + b"\xff" * 40)),
        "copied 56 x 40",
    ),
    # Names that lie
    "png_inside.jpg": (PNG, "encoded 56 x 40"),
    "jpeg_inside.png": (JPEG, "copied 56 x 40"),
    "svg_inside.png": (
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "is not an image of a known format, or its header is damaged",
    ),
    # PNG
    "plain.png": (PNG, "encoded 56 x 40"),
    "sixteen_bit_gray.png": (_sixteen_bit(), "encoded 56 x 40"),
    "palette.png": (_mode("P"), "encoded 56 x 40"),
    "alpha.png": (_mode("RGBA"), "encoded 56 x 40"),
    "gray_alpha.png": (_mode("LA"), "encoded 56 x 40"),
    "one_bit.png": (_mode("1"), "encoded 56 x 40"),
    "cut.png": (PNG[: len(PNG) // 2], "cannot be decoded (image file is truncated)"),
    "cut_before_end.png": (PNG[:-12], "encoded 56 x 40"),
    "bad_checksum.png": (
        PNG[:60] + bytes([PNG[60] ^ 1]) + PNG[61:],
        "cannot be decoded (broken data stream when reading image file)",
    ),
    "bomb.png": (
        _png(100_000, 100_000),
        "is refused: its header declares far too many pixels",
    ),
    "wide_line.png": (
        _png(65_535, 1),
        "65535 x 1 pixels are refused (sides 1 to 32768, at most 134 megapixels)",
    ),
    "no_size.png": (_png(0, 0), "is not an image of a known format, or its header is damaged"),
    "too_little_data.png": (
        _png(WIDTH, HEIGHT, data=bytes(100)),
        "cannot be decoded (image file is truncated (0 bytes not processed))",
    ),
    "text_bomb.png": (_png_with_text_bomb(), "encoded 56 x 40"),
    # Others
    "animated.gif": (_frames("GIF"), "encoded 56 x 40"),
    "cut.gif": (
        _mode("P", "GIF")[:300],
        "is not an image of a known format, or its header is damaged",
    ),
    "plain.webp": (_saved(Image.fromarray(PIXELS), "WEBP", quality=95), "encoded 56 x 40"),
    "animated.webp": (_frames("WEBP"), "encoded 56 x 40"),
    "cut.webp": (
        _saved(Image.fromarray(PIXELS), "WEBP", quality=95)[:300],
        "cannot be decoded (could not create decoder object)",
    ),
    "plain.bmp": (encoded(PIXELS, "BMP"), "encoded 56 x 40"),
    "cut.bmp": (
        encoded(PIXELS, "BMP")[:2000],
        "cannot be decoded (image file is truncated (98 bytes not processed))",
    ),
    "bomb.bmp": (
        _bmp(1 << 30, 1 << 30),
        "is refused: its header declares far too many pixels",
    ),
    "plain.tif": (encoded(PIXELS, "TIFF"), "encoded 56 x 40"),
    "pages.tif": (_frames("TIFF"), "encoded 56 x 40"),
    "circle.tif": (_tiff_that_points_at_itself(), "encoded 56 x 40"),
    "floats.tif": (_float_tiff(), "has floating-point pixels, whose range is unknown"),
    "cut.tif": (
        encoded(PIXELS, "TIFF")[:3000],
        "cannot be decoded (image file is truncated (4 bytes not processed))",
    ),
    "plain.ppm": (encoded(PIXELS, "PPM"), "encoded 56 x 40"),
    "cut.ppm": (
        encoded(PIXELS, "PPM")[:2000],
        "cannot be decoded (image file is truncated (139 bytes not processed))",
    ),
    "bomb.ppm": (
        b"P6 99999 99999 255\n" + bytes(100),
        "is refused: its header declares far too many pixels",
    ),
    # Odd names of good files
    " leading space.jpg": (JPEG, "copied 56 x 40"),
    "-rf.jpg": (JPEG, "copied 56 x 40"),
    "comma, \"quote\" and 'quote'.jpg": (JPEG, "copied 56 x 40"),
    "line\nbreak.jpg": (JPEG, "copied 56 x 40"),
    "byte \udcff.jpg": (JPEG, "copied 56 x 40"),
    "日本語 ü.JPEG": (JPEG, "copied 56 x 40"),
    "n" * 250 + ".jpg": (JPEG, "copied 56 x 40"),
    "percent %s {0} $HOME.jpg": (JPEG, "copied 56 x 40"),
}
