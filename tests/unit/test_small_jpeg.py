"""The decoder of small JPEGs gives libjpeg-turbo's pixels, or leaves the JPEG to it."""

import io
import zlib
from collections.abc import Callable

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from fastmoco.data.images import decode_jpeg
from fastmoco.data.jpeg_markers import ImageError
from fastmoco.data.jpeg_pixels import MAX_SIDE, decode_plain, make_room
from fastmoco.data.stored_rows import crc32

Decode = Callable[[bytes, tuple[int, int]], np.ndarray | None]
SHAPES = [(1, 5), (5, 6), (8, 8), (16, 16), (17, 31), (32, 32), (33, 16), (47, 65), (128, 127)]


@pytest.fixture(scope="module")
def decode() -> Decode:
    """Decodes in memory that is reused, as the loader does; None where it refuses."""
    room = make_room(1 << 17)

    def decode(blob: bytes, shape: tuple[int, int]) -> np.ndarray | None:
        writable = np.frombuffer(bytearray(blob + b" "), np.uint8)  # as the loader has it
        pixels = np.full((*shape, 3), 99, np.uint8)
        return pixels if decode_plain(writable, len(blob), room, pixels) else None

    return decode


def pictures(shape: tuple[int, int]) -> list[np.ndarray]:
    """Noise, a slope, and black beside white, whose transform goes beyond both."""
    rng = np.random.default_rng(sum(shape))
    noise = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    slope = np.add.outer(np.arange(shape[0]) * 3, np.arange(shape[1]) * 2)[..., None] + [0, 60, 120]
    halves = np.where(rng.random((*shape, 1)) < 0.1, [255, 0, 255], [0, 255, 255])
    return [noise, slope.astype(np.uint8), halves.astype(np.uint8)]


@pytest.mark.parametrize("sampling", ["444", "422", "420", "Gray"])
@pytest.mark.parametrize("shape", SHAPES)
def test_pixels_are_those_of_libjpeg_turbo(
    decode: Decode, shape: tuple[int, int], sampling: str
) -> None:
    accepted = 0
    for picture in pictures(shape):
        for quality in (5, 50, 90, 100):
            blob = simplejpeg.encode_jpeg(picture, quality, "RGB", sampling)
            pixels = decode(blob, shape)
            accepted += pixels is not None
            assert pixels is None or np.array_equal(pixels, decode_jpeg(blob)), quality
    # Noise that is far out of range and images of up to 4 columns with half the colors are left.
    assert accepted >= (0 if shape[1] <= 4 and sampling in ("422", "420") else 8)


def test_tables_of_its_own_in_each_jpeg(decode: Decode) -> None:
    """Optimized codes differ from image to image, and the longest have 16 bits."""
    for seed in range(12):
        picture = pictures((40 + seed, 40))[seed % 2]
        stream = io.BytesIO()
        Image.fromarray(picture).save(stream, "JPEG", quality=96, optimize=bool(seed % 3))
        pixels = decode(stream.getvalue(), (40 + seed, 40))
        assert pixels is not None
        assert np.array_equal(pixels, decode_jpeg(stream.getvalue()))


def saved(mode: str = "RGB", **options: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pictures((32, 32))[1]).convert(mode).save(stream, "JPEG", **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "blob",
    [
        saved(progressive=True),
        saved(mode="CMYK"),
        saved(keep_rgb=True),
        saved(restart_marker_blocks=2),
        simplejpeg.encode_jpeg(pictures((32, 32))[1], 90, "RGB", "440"),
        simplejpeg.encode_jpeg(pictures((32, 32))[1], 90, "RGB", "411"),
        saved()[:-2],
        saved()[:-2] + b"x\xff\xd9",
        saved()[:-40] + b"\xff\xd9",
        b"",
        b"\xff\xd8\xff\xd9",
    ],
    ids=["progressive", "cmyk", "rgb", "restarts", "440", "411", "no-end", "extra", "cut", "", "2"],
)
def test_what_is_not_plain_is_left(decode: Decode, blob: bytes) -> None:
    assert decode(saved(), (32, 32)) is not None
    assert decode(blob, (32, 32)) is None


def test_another_shape_is_left(decode: Decode) -> None:
    assert decode(saved(), (32, 31)) is None


def test_what_exceeds_the_room_is_left(decode: Decode) -> None:
    wide = simplejpeg.encode_jpeg(pictures((8, MAX_SIDE + 8))[1], 90, "RGB", "Gray")
    assert decode(wide, (8, MAX_SIDE + 8)) is None
    blob, pixels = np.frombuffer(bytearray(saved()), np.uint8), np.zeros((32, 32, 3), np.uint8)
    assert decode_plain(blob, len(blob), make_room(len(blob)), pixels)
    assert not decode_plain(blob, len(blob), make_room(len(blob) - 8), pixels)
    assert not decode_plain(blob[:-1], len(blob), make_room(len(blob)), pixels)


def test_damaged_bytes_are_never_taken_for_another_picture(decode: Decode) -> None:
    """What is accepted, libjpeg-turbo decodes without a warning, to the same pixels."""
    rng = np.random.default_rng(0)
    blobs = [
        simplejpeg.encode_jpeg(pictures((24, 40))[kind], 80, "RGB", sampling)
        for kind in range(3)
        for sampling in ("444", "420", "Gray")
    ]
    accepted = 0
    for trial in range(3000):
        damaged = bytearray(blobs[trial % len(blobs)])
        for _ in range(rng.integers(1, 4)):
            at = rng.integers(len(damaged) if trial % 2 else 620)
            damaged[min(at, len(damaged) - 1)] = rng.choice([0, 1, 0x7F, 0xFF, rng.integers(256)])
        pixels = decode(bytes(damaged), (24, 40))
        if pixels is not None:
            accepted += 1
            try:
                assert np.array_equal(pixels, decode_jpeg(bytes(damaged))), trial
            except ImageError as error:
                raise AssertionError(trial) from error
    assert 100 < accepted < 2900


def test_checksum_is_that_of_zlib() -> None:
    data = np.random.default_rng(0).integers(0, 256, 300, dtype=np.uint8)
    for size in (*range(20), 300):
        assert crc32(data, size) == zlib.crc32(data[:size].tobytes())
    assert MAX_SIDE % 16 == 0
