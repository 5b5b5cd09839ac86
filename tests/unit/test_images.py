"""Images of every kind become upright RGB pixels; damage and absurdity become ImageError."""

import io
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from fastmoco.data.images import (
    decode_jpeg,
    encode_jpeg,
    fitted_size,
    load_image,
    prove_jpeg,
    resize,
)
from fastmoco.data.jpeg_markers import ImageError, inspect_jpeg
from tests.pictures import encoded, picture, turned


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """Mean absolute difference in levels."""
    assert a.shape == b.shape
    return float(np.abs(a.astype(int) - b.astype(int)).mean())


@pytest.mark.parametrize("size", [(375, 500, 400), (700, 300, 64), (90, 61, 40), (300, 2, 100)])
def test_resizes_as_pillow_does(size: tuple[int, int, int]) -> None:
    height, width, max_size = size
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    small = resize(pixels, max_size)
    expected = Image.fromarray(pixels).resize(small.shape[1::-1], Image.Resampling.BICUBIC)
    assert max(small.shape) == max_size
    assert small.flags.c_contiguous
    assert np.abs(small.astype(int) - np.asarray(expected).astype(int)).max() <= 1


def test_decodes_jpeg_exactly_as_pillow_does() -> None:
    blob = encoded(picture(1, 100, 150), quality=90)
    assert np.array_equal(decode_jpeg(blob), np.asarray(Image.open(io.BytesIO(blob))))


@pytest.mark.parametrize(("side", "sampling"), [(64, (1, 1)), (128, (2, 2))])
def test_encodes_color_in_full_only_where_it_is_small(side: int, sampling: tuple[int, int]) -> None:
    pixels = picture(2, side, side)
    blob = encode_jpeg(pixels, 90)
    frame = blob.index(b"\xff\xc0") + 11
    assert (blob[frame] >> 4, blob[frame] & 15) == sampling
    assert distance(decode_jpeg(blob), pixels) < 3


@pytest.mark.parametrize("orientation", range(1, 9))
def test_turns_upright_as_exif_says(orientation: int) -> None:
    pixels = picture(3)
    exif = Image.Exif()
    exif[274] = orientation
    blob = encoded(pixels, quality=95, exif=exif)
    expected = turned(pixels, orientation)
    assert inspect_jpeg(blob).orientation == orientation
    assert distance(load_image(blob, 512), expected) < 3
    for image_format, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        blob = encoded(pixels, image_format, exif=exif, **options)
        assert np.array_equal(load_image(blob, 512), expected)


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "PPM"])
def test_reads_lossless_formats_exactly(image_format: str) -> None:
    assert np.array_equal(load_image(encoded(picture(4), image_format), 512), picture(4))


def test_reads_lossless_webp_and_the_first_frame_of_a_gif() -> None:
    pixels = picture(5)
    assert np.array_equal(load_image(encoded(pixels, "WEBP", lossless=True), 512), pixels)
    gray = np.repeat(pixels[..., :1] // 16 * 16, 3, axis=2)
    later = [Image.fromarray(255 - gray)]
    gif = encoded(gray, "GIF", save_all=True, append_images=later)
    assert distance(load_image(gif, 512), gray) < 1


def test_heic_is_read_where_its_package_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a stand-in for the package, which the tests do not need: a PNG with HEIC's first bytes."""
    start = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"

    def opened(file: io.BytesIO, _: str) -> Image.Image:
        return Image.open(io.BytesIO(file.read()[len(start) :]))

    package = SimpleNamespace(register_heif_opener=lambda: Image.register_open("HEIF", opened))
    monkeypatch.setattr(Image, "OPEN", dict(Image.OPEN))
    monkeypatch.setattr(Image, "ID", list(Image.ID))
    monkeypatch.setitem(sys.modules, "pillow_heif", package)
    assert np.array_equal(load_image(start + encoded(picture(4), "PNG"), 512), picture(4))


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK"])
def test_converts_modes_to_rgb(mode: str) -> None:
    image = Image.fromarray(picture(6)).convert(mode)
    file = io.BytesIO()
    image.save(file, "TIFF")
    assert np.array_equal(load_image(file.getvalue(), 512), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "TIFF, big-endian", "PGM"])
def test_scales_sixteen_bits(kind: str) -> None:
    levels = np.linspace(0, 65535, 40 * 56).astype(np.uint16).reshape(40, 56)
    image_format, _, big_endian = kind.partition(", ")
    if image_format == "PGM":
        blob = b"P5 56 40 65535\n" + levels.astype(">u2").tobytes()
    else:
        blob = encoded(levels.astype(">u2" if big_endian else "<u2"), image_format)
    loaded = load_image(blob, 512)
    assert np.array_equal(loaded, np.repeat(np.round(levels / 257)[..., None], 3, 2))


def test_scales_sixteen_bits_of_color() -> None:
    pixels = picture(3)
    blob = b"P6 56 40 65535\n" + (pixels.astype(np.uint16) * 257).astype(">u2").tobytes()
    assert np.array_equal(load_image(blob, 512), pixels)


def test_lays_alpha_over_white() -> None:
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[4:, :, 3] = 255
    loaded = load_image(encoded(pixels, "PNG"), 512)
    assert (loaded[:4] == 255).all()
    assert (loaded[4:] == 0).all()


def test_cmyk_jpeg_is_read_like_pillow_does() -> None:
    file = io.BytesIO()
    Image.fromarray(picture(7)).convert("CMYK").save(file, "JPEG", quality=95)
    blob = file.getvalue()
    assert inspect_jpeg(blob).color == "cmyk"
    assert distance(load_image(blob, 512), picture(7)) < 4


@pytest.mark.parametrize("size", [(300, 200), (2400, 1000), (16, 4000)])
def test_shrinks_to_the_long_side_without_aliasing(size: tuple[int, int]) -> None:
    height, width = size
    blob = encoded(picture(8, height, width), quality=95)
    small = load_image(blob, 128)
    assert small.shape[:2] == fitted_size(width, height, 128)[::-1]
    reference = Image.fromarray(picture(8, height, width))
    reference = reference.resize((small.shape[1], small.shape[0]), Image.Resampling.BOX)
    assert distance(small, np.asarray(reference)) < 4
    stripes = np.zeros((256, 256, 3), np.uint8)
    stripes[:, ::2] = 255
    assert np.abs(resize(stripes, 64).astype(int) - 127)[:, 4:-4].max() < 12


def test_leaves_small_images_alone() -> None:
    assert np.array_equal(resize(picture(9), 56), picture(9))


@pytest.mark.parametrize("progressive", [False, True])
def test_inspects_markers(progressive: bool) -> None:
    blob = encoded(picture(10), quality=90, progressive=progressive)
    info = inspect_jpeg(blob + b"PK\x03\x04 a stowaway")
    assert (info.width, info.height, info.bits, info.color) == (56, 40, 8, "ycbcr")
    assert (info.end, info.orientation, info.huffman) == (len(blob), 1, True)
    assert (info.scans > 1) == progressive
    assert info.turbo_decodes


def test_every_cut_of_a_jpeg_is_noticed() -> None:
    blob = encoded(picture(11), quality=90)
    for end in range(3, len(blob), 7):
        with pytest.raises(ImageError):
            load_image(blob[:end], 512)


def test_a_wiped_stretch_of_a_jpeg_is_noticed_at_an_eighth_of_the_scale() -> None:
    blob = encoded(picture(12, 200, 200), quality=95)
    wiped = blob[:1200] + bytes(200) + blob[1400:]
    prove_jpeg(blob, inspect_jpeg(blob))
    with pytest.raises(ImageError, match="damaged JPEG"):
        prove_jpeg(wiped, inspect_jpeg(blob))


@pytest.mark.parametrize(("width", "height"), [(40_000, 1), (1, 40_000), (20_000, 20_000)])
def test_refuses_absurd_sizes_before_decoding(width: int, height: int) -> None:
    blob = bytearray(encoded(picture(13)))
    frame = blob.index(b"\xff\xc0")
    blob[frame + 5 : frame + 9] = height.to_bytes(2, "big") + width.to_bytes(2, "big")
    with pytest.raises(ImageError, match="pixels are refused"):
        load_image(bytes(blob), 512)


def test_refuses_scans_without_end() -> None:
    blob = encoded(picture(14), progressive=True)
    scan = blob.rindex(b"\xff\xda")
    with pytest.raises(ImageError, match="500 scans"):
        inspect_jpeg(blob[:scan] + 600 * blob[scan:-2] + blob[-2:])


@pytest.mark.parametrize("blob", [b"", b"no image at all", b"%PDF-1.4", b"\xff\xd8\xff", bytes(99)])
def test_refuses_what_is_no_image(blob: bytes) -> None:
    with pytest.raises(ImageError):
        load_image(blob, 512)


def test_refuses_floating_point_pixels() -> None:
    with pytest.raises(ImageError, match="floating-point"):
        load_image(encoded(np.ones((4, 4), np.float32), "TIFF"), 512)


def test_a_head_like_the_last_one_changes_nothing() -> None:
    first, turned = picture(15), picture(15)[::-1]
    alike = [encoded(first, quality=90), encoded(turned, quality=90)]
    others = [encoded(first, quality=90, progressive=True), encoded(first, quality=50)]
    alone = []
    for blob in [*alike, *others]:
        inspect_jpeg(encoded(picture(15, 30, 20)))
        alone.append(inspect_jpeg(blob))
    assert alone[0].end != alone[1].end
    for blob, expected in zip([*alike, *others], alone, strict=True):
        inspect_jpeg(alike[0])
        assert inspect_jpeg(blob) == expected
    cut, double = alike[1][:-2], alike[1][:-2] + alike[1][2:]
    for broken, reason in ((cut, "without an end marker"), (double, "two frames")):
        inspect_jpeg(alike[0])
        with pytest.raises(ImageError, match=reason):
            inspect_jpeg(broken)
