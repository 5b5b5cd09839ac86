"""Encoding of one source image as one stored blob; a JPEG is copied if possible."""

import errno
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.beton_format import MODE_JPEG, MODE_RAW
from fastmoco.data.facts import channel_moments, no_moments
from fastmoco.data.images import (
    check_size,
    decode_jpeg,
    encode_jpeg,
    is_jpeg,
    is_lossless,
    load_picture,
    prove_jpeg,
    resize,
)
from fastmoco.data.jpeg_markers import ImageError, JpegInfo, bare_jpeg, inspect_jpeg
from fastmoco.data.settings import Check, ConvertConfig, Encoding
from fastmoco.data.sources import Loaded

MEASURED_PIXELS = 1 << 16  # small images are measured together, a larger one while it is cached
NO_FAULT_OF_THE_IMAGE = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENODEV, errno.ESTALE}
    | {errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT}
)
MAX_READ_ERRORS = 3  # of a batch: bad blocks of a disk; if more images fail, the disk does
MAX_COPIED_SCANS = 32  # a common progressive file has ten; each costs a pass per decode


@dataclass(kw_only=True, slots=True)
class Encoded:
    """A stored image; equal ``digest`` means equal blobs, except by chance."""

    blob: bytes
    mode: int
    width: int
    height: int
    crc32: int
    digest: int
    is_twelve_bit: bool = False
    """See `Picture`."""


@dataclass(kw_only=True, slots=True)
class EncodedBatch:
    """Images of a batch, in order."""

    images: list[Encoded | str] = field(default_factory=list)
    """Each stored image, or the reason why it is bad."""
    moments: NDArray[np.int64] = field(default_factory=no_moments)
    """`channel_moments` over the measured images; integers, so that sums over batches are exact in
    any order."""
    source_bytes: int = 0
    """Bytes read from the source."""

    def measure(self, pixels: list[NDArray[np.uint8]]) -> None:
        """Add the moments of images, ``(n, 3)`` each, and empty the list."""
        if pixels:
            together = pixels[0] if len(pixels) == 1 else np.concatenate(pixels)
            self.moments += channel_moments(together)
            pixels.clear()


def encode_batch(
    load: Callable[[Any], Loaded], keys: Sequence[Any], measured: Sequence[bool], cfg: ConvertConfig
) -> EncodedBatch:
    """Load and encode some samples; a bad image becomes its reason.

    Args:
        load: `SampleSet.load`.
        keys: Keys of the samples.
        measured: Whether each sample's pixels count in the moments.
        cfg: Options of the conversion.

    Raises:
        OSError: If reading fails for a reason outside the image, such as a lost network disk:
            otherwise all further images would be skipped.
    """
    batch = EncodedBatch()
    pixels_to_measure: list[NDArray[np.uint8]] = []
    for key, measure in zip(keys, measured, strict=True):
        try:
            loaded = load(key)
            batch.source_bytes += len(loaded) if isinstance(loaded, bytes) else loaded.nbytes
            image, pixels = encode_image(loaded, cfg, want_pixels=measure)
        except (ImageError, OSError) as error:
            batch.images.append(fault_of(error, batch.images))
        else:
            batch.images.append(image)
            if measure and pixels is not None:
                pixels_to_measure.append(pixels.reshape(-1, 3))
                if sum(map(len, pixels_to_measure)) >= MEASURED_PIXELS:
                    batch.measure(pixels_to_measure)
    batch.measure(pixels_to_measure)
    return batch


def fault_of(error: ImageError | OSError, earlier: Iterable[object] = ()) -> str:
    """Why an image is bad, in words.

    Args:
        error: What loading it raised.
        earlier: Results of the images before it in its batch; a fault is a text.

    Raises:
        OSError: If reading it failed for a reason outside the image; see `encode_batch`.
    """
    if isinstance(error, ImageError):
        return str(error)
    disk_fails = error.errno == errno.EIO and (
        sum(one == error.strerror for one in earlier) >= MAX_READ_ERRORS
    )
    if disk_fails or error.errno in NO_FAULT_OF_THE_IMAGE:
        raise OSError(
            f"{error.filename or 'the source'}: cannot be read ({error.strerror}); fix the "
            "cause, then the same command resumes"
        ) from error
    return error.strerror or str(error)


def encode_image(
    loaded: Loaded, cfg: ConvertConfig, *, want_pixels: bool
) -> tuple[Encoded, NDArray[np.uint8] | None]:
    """Encode one image.

    Args:
        loaded: An encoded image's bytes, or ``(H, W, 3)`` uint8 RGB.
        cfg: Options of the conversion.
        want_pixels: Also return the pixels as a reader will decode them.

    Raises:
        ImageError: If the image is damaged, of an unsupported format, or too large.
    """
    raw = cfg.encoding is Encoding.raw
    if isinstance(loaded, bytes) and not raw and is_jpeg(loaded):
        info = inspect_jpeg(loaded)
        check_size(info.width, info.height)
        picture = loaded[: info.end]
        if info.alarming:
            picture = bare_jpeg(loaded, info)
            info = info._replace(alarming=False, end=len(picture))
        if may_copy(info, cfg):
            return _copy(picture, info, cfg, want_pixels=want_pixels)
    if isinstance(loaded, bytes):
        pixels, is_twelve_bit = load_picture(loaded, cfg.max_size)
        raw = raw or (cfg.lossless and is_lossless(loaded))
    else:
        check_size(loaded.shape[1], loaded.shape[0])
        pixels, is_twelve_bit = resize(loaded, cfg.max_size), False
        raw = raw or cfg.lossless
    blob = pixels.tobytes() if raw else encode_jpeg(pixels, cfg.quality)
    stored = _stored(blob, MODE_RAW if raw else MODE_JPEG, pixels.shape, cfg)
    stored.is_twelve_bit = is_twelve_bit
    if want_pixels and not raw:
        pixels = decode_jpeg(blob)
    return stored, pixels if want_pixels else None


def may_copy(info: JpegInfo, cfg: ConvertConfig) -> bool:
    """Whether every reader decodes these bytes to the same upright pixels, and fast enough.

    A file longer than its raw pixels holds a thumbnail or foreign data; it is encoded anew.
    """
    raw_bytes = 3 * info.width * info.height
    return (
        not info.obstacle
        and info.scans <= MAX_COPIED_SCANS
        and max(info.width, info.height) <= cfg.max_size
        and info.end <= min(raw_bytes + (1 << 16), cfg.page_bytes)
    )


def _copy(
    blob: bytes, info: JpegInfo, cfg: ConvertConfig, *, want_pixels: bool
) -> tuple[Encoded, NDArray[np.uint8] | None]:
    """Copy the JPEG, checked by a decode at full scale, at 1/8 scale, or not at all."""
    pixels = decode_jpeg(blob) if want_pixels else None
    if cfg.check is Check.decode and pixels is None:
        prove_jpeg(blob, info)
    return _stored(blob, MODE_JPEG, (info.height, info.width), cfg), pixels


def _stored(blob: bytes, mode: int, shape: tuple[int, ...], cfg: ConvertConfig) -> Encoded:
    if len(blob) > cfg.page_bytes:
        raise ImageError(f"its {len(blob)} bytes exceed page_bytes={cfg.page_bytes}")
    crc32 = zlib.crc32(blob)
    return Encoded(
        blob=blob,
        mode=mode,
        width=shape[1],
        height=shape[0],
        crc32=crc32,
        digest=crc32 << 32 | zlib.adler32(blob),  # SHA-256 would take twice the time of the rest
    )
