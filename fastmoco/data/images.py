"""Conversion between image bytes and upright RGB pixels.

JPEG goes through libjpeg-turbo (simplejpeg; it releases the GIL). A warning of that decoder counts
as an error, because it means missing pixels. All other formats go through Pillow. Decoders get no
metadata, which may be damaged; only the orientation is read (`metadata`). Not supported: color
profiles (pixels are taken as sRGB) and all frames but the first.
"""

import io
import re
import warnings
from typing import Any, NamedTuple

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from fastmoco.data.jpeg_markers import ImageError, JpegInfo, bare_jpeg, inspect_jpeg
from fastmoco.data.metadata import Bare, orientation, without_metadata

MAX_SIDE = 32_768
MAX_PIXELS = 1 << 27  # 134 megapixels, 0.4 GB decoded; the largest camera files have 102
FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "BMP", "TIFF", "GIF", "PPM")
_HEIC_START = re.compile(rb".{4}ftyp(.{4}){0,8}?he[iv][cxms]", re.DOTALL)
_SUBFILE_TYPE = 254  # of TIFF; bit 0: a smaller version of another picture in the file
_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")
# From EXIF orientation (TIFF 6.0, tag 274) to the operation that turns the image upright.
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Picture(NamedTuple):
    """Pixels of an image file."""

    pixels: NDArray[np.uint8]
    """``(H, W, 3)`` RGB, contiguous."""
    is_twelve_bit: bool
    """Whether the file has 16 bits per channel, of which it uses only the lower 12."""


def check_size(width: int, height: int) -> None:
    """Refuse decompression bombs and impossible sizes.

    Raises:
        ImageError: If a side is not in 1..MAX_SIDE, or there are more than MAX_PIXELS pixels.
    """
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE and width * height <= MAX_PIXELS):
        raise ImageError(
            f"{width} x {height} pixels are refused (sides 1 to {MAX_SIDE}, at most "
            f"{MAX_PIXELS / 1e6:.0f} megapixels)"
        )


def jpeg_shape(blob: bytes | memoryview) -> tuple[int, int]:
    """Height and width in a JPEG's header.

    Raises:
        ImageError: If there is no such header.
    """
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(blob)
    except ValueError as error:
        raise ImageError(f"is not a readable JPEG ({error})") from error
    return int(height), int(width)


def decode_jpeg(
    blob: bytes | memoryview, *, at_least: tuple[int, int] = (0, 0)
) -> NDArray[np.uint8]:
    """Decode a gray, YCbCr or RGB JPEG as stored; warnings count as errors.

    Args:
        blob: The JPEG; the caller must check its size first.
        at_least: Required height and width: the scale is the smallest of 1/8 to 8/8 that reaches
            them. (0, 0) decodes at full scale.

    Returns:
        ``(H, W, 3)`` uint8 RGB, contiguous.

    Raises:
        ImageError: If the decoder fails or warns.
    """
    try:
        pixels: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            blob, "RGB", min_height=at_least[0], min_width=at_least[1]
        )
    except ValueError as error:
        raise ImageError(f"damaged JPEG ({error})") from error
    return pixels


def decode_luma(blob: bytes | memoryview, *, least: int) -> NDArray[np.uint8]:
    """Decode only the luma of a JPEG as stored, ``(H, W)`` uint8; warnings count as errors.

    Args:
        blob: The JPEG; the caller must check its size first.
        least: The scale is the smallest of 1/8 to 8/8 at which both sides reach this many pixels.

    Raises:
        ImageError: If the decoder fails or warns.
    """
    try:
        luma: NDArray[np.uint8] = simplejpeg.decode_jpeg(
            blob, "GRAY", min_height=least, min_width=least
        )
    except ValueError as error:
        raise ImageError(f"damaged JPEG ({error})") from error
    return luma[:, :, 0]


def prove_jpeg(blob: bytes | memoryview, info: JpegInfo) -> None:
    """Check a JPEG by decoding all its codes at 1/8 scale, mostly in gray; warnings are errors.

    0.70 ms for 110 KB; full scale takes 1.24 ms.

    Raises:
        ImageError: If the decoder fails or warns.
    """
    try:
        color = "CMYK" if info.color == "cmyk" else "GRAY"
        simplejpeg.decode_jpeg(blob, color, min_height=1, min_width=1)
    except ValueError as error:
        raise ImageError(f"damaged JPEG ({error})") from error


def encode_jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """Encode ``(H, W, 3)`` uint8 RGB as a baseline JPEG.

    Photographs get half the color resolution (4:2:0), like those of cameras and FFCV: a third fewer
    bytes to read and decode. Images below 128 pixels keep full color resolution (4:4:4), because
    little would be left of it.
    """
    sampling = "420" if max(pixels.shape[:2]) >= 128 else "444"
    pixels = np.ascontiguousarray(pixels)
    return bytes(simplejpeg.encode_jpeg(pixels, quality, "RGB", sampling))


def load_image(blob: bytes, max_size: int) -> NDArray[np.uint8]:
    """The pixels of `load_picture`."""
    return load_picture(blob, max_size).pixels


def load_picture(blob: bytes, max_size: int) -> Picture:
    """Decode an image file of a supported format, upright, its long side at most ``max_size``.

    Alpha is composited over white; palette, gray, CMYK and 16-bit become 8-bit RGB.

    Raises:
        ImageError: If the file is damaged, of an unsupported format, or too large.
    """
    info = inspect_jpeg(blob) if is_jpeg(blob) else None
    if info is not None and info.bits != 8:
        raise ImageError(f"JPEG has {info.bits} bits per channel; only 8 are supported")
    try:
        if info is not None and info.turbo_decodes:
            picture = Picture(_decode_upright(blob, info, max_size), is_twelve_bit=False)
        else:
            picture = _decode_with_pillow(blob, info)
    except (ImageError, MemoryError):
        raise
    except Image.DecompressionBombError as error:
        raise ImageError("is refused: its header declares far too many pixels") from error
    except UnidentifiedImageError as error:
        raise ImageError("is not an image of a known format, or its header is damaged") from error
    except Exception as error:  # Pillow's decoders raise almost anything on damaged files
        raise ImageError(f"cannot be decoded ({str(error) or type(error).__name__})") from error
    return picture._replace(pixels=resize(picture.pixels, max_size))


def plain_jpeg(blob: bytes, info: JpegInfo, quality: int) -> bytes:
    """A JPEG that every reader decodes to the same upright pixels.

    A broken profile is removed; a picture that must be turned, or whose coding is rare, is encoded
    anew as `encode_jpeg` does; all others stay.

    Raises:
        ImageError: If it must be encoded anew and is damaged or of a kind that is not supported.
    """
    if info.obstacle and info._replace(alarming=False).obstacle:
        return encode_jpeg(load_image(blob, MAX_SIDE), quality)
    return bare_jpeg(blob, info) if info.alarming else blob


def is_jpeg(blob: bytes) -> bool:
    """Whether the bytes start like a JPEG, whatever the file's extension."""
    return blob[:3] == b"\xff\xd8\xff"


def is_lossless(blob: bytes) -> bool:
    """Whether the file is of a lossless format: PNG, BMP, GIF, PPM."""
    return blob.startswith((b"\x89PNG", b"BM", b"GIF8", b"P5", b"P6"))


def resize(pixels: NDArray[np.uint8], max_size: int) -> NDArray[np.uint8]:
    """Shrink so that the long side is ``max_size`` (bicubic, antialiased); smaller images stay.

    torch's kernel for uint8 is within one level of Pillow's; it takes 0.33 ms and Pillow 2.0 ms
    (500 x 375 to 400 x 300, one thread). torch is imported at the first image that needs it.
    """
    width, height = fitted_size(pixels.shape[1], pixels.shape[0], max_size)
    if (height, width) == pixels.shape[:2]:
        return np.ascontiguousarray(pixels)
    import torch

    source = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
    small = torch.empty(height, width, 3, dtype=torch.uint8)
    # `torch.nn.functional.interpolate` calls this too, but cannot write in this memory order;
    # reordering its result takes as long as the resize.
    upsample: Any = torch._C._nn._upsample_bicubic2d_aa
    upsample(
        source.permute(2, 0, 1)[None], (height, width), False, None, None,
        out=small.permute(2, 0, 1)[None],
    )  # fmt: skip
    resized: NDArray[np.uint8] = small.numpy()
    return resized


def fitted_size(width: int, height: int, max_size: int) -> tuple[int, int]:
    """Width and height of an image shrunk to a long side of ``max_size``; each at least 1."""
    scale = min(1.0, max_size / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _decode_upright(blob: bytes, info: JpegInfo, max_size: int) -> NDArray[np.uint8]:
    """Decode by libjpeg-turbo; a very large image at the smallest scale of twice the size."""
    check_size(info.width, info.height)
    at_least = (0, 0)
    if max(info.width, info.height) >= 4 * max_size:
        width, height = fitted_size(info.width, info.height, 2 * max_size)
        at_least = height, width
    blob = bare_jpeg(blob, info) if info.alarming else blob
    pixels = decode_jpeg(blob, at_least=at_least)
    turn = UPRIGHT.get(info.orientation)
    return pixels if turn is None else np.asarray(Image.fromarray(pixels).transpose(turn))


def _decode_with_pillow(blob: bytes, info: JpegInfo | None) -> Picture:
    """Decode by Pillow; check a JPEG first, because Pillow ignores most damage."""
    bare = without_metadata(blob)
    if info is not None:
        check_size(info.width, info.height)
        bare = Bare(bare_jpeg(blob, info))
        if info.color == "cmyk":
            prove_jpeg(bare.blob, info)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on odd metadata; size limits are our own
        with Image.open(io.BytesIO(bare.blob), formats=_formats(blob)) as image:
            check_size(*image.size)
            _refuse_thumbnail(image)
            sixteen_bit = ";16" in str(image.tile)  # the tiles' raw mode, such as RGB;16B
            image.load()
            exif = bare.exif or image.info.get("exif", b"")
            xmp = bare.xmp or image.info.get("xmp", b"")
            turn = UPRIGHT.get(info.orientation if info else orientation(exif, xmp))
            rgb = _to_rgb(image)
            pixels = np.asarray(rgb if turn is None else rgb.transpose(turn))
            return Picture(pixels, sixteen_bit and _stays_below_4096(image))


def _stays_below_4096(image: Image.Image) -> bool:
    """Whether an image of 16 bits has no higher level; Pillow keeps the upper 8 bits of colors."""
    levels = np.asarray(image)
    if image.mode in ("RGBA", "LA"):
        levels = levels[..., :-1]
    limit = 4096 if image.mode in _SIXTEEN_BIT else 16
    return 0 < int(levels.max()) < limit


def _formats(blob: bytes) -> tuple[str, ...]:
    """Formats for Pillow; HEIC is read where pillow-heif is installed."""
    if not _HEIC_START.match(blob):
        return FORMATS
    try:
        import pillow_heif
    except ImportError as error:
        raise ImageError(
            "is HEIC; run pip install pillow-heif, or convert such files to JPEG"
        ) from error
    pillow_heif.register_heif_opener()
    return ("HEIF",)


def _refuse_thumbnail(image: Image.Image) -> None:
    """Refuse a camera's raw file: its first picture, the only one that Pillow reads, is small."""
    if image.format == "TIFF" and image.getexif().get(_SUBFILE_TYPE, 0) & 1:
        raise ImageError("is a camera's raw file or begins with a thumbnail; convert it to JPEG")


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode of Pillow to 8-bit RGB."""
    if image.mode == "F":
        raise ImageError("has floating-point pixels, whose range is unknown")
    if image.mode in _SIXTEEN_BIT:
        levels = np.asarray(image).astype(np.int64)
        if levels.min() < 0 or levels.max() > 65535:
            raise ImageError("has pixels of more than 16 bits, whose range is unknown")
        image = Image.fromarray(((levels * 255 + 32767) // 65535).astype(np.uint8))
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    return image.convert("RGB")
