"""One source image to one stored blob; a JPEG keeps its own bytes where it may."""

import errno
import zlib
from collections.abc import Callable, Sequence
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
    load_image,
    prove_jpeg,
    resize,
)
from fastmoco.data.jpeg_markers import ImageError, JpegInfo, inspect_jpeg
from fastmoco.data.sources import Loaded

MEASURED_PIXELS = 1 << 16  # small images are measured together, a larger one while it is in cache
NO_FAULT_OF_THE_IMAGE = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENODEV, errno.ESTALE}
    | {errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ETIMEDOUT}
)
MAX_COPIED_SCANS = 32  # a common progressive file has ten; each costs a pass at every read


@dataclass(kw_only=True, slots=True)
class EncodeOptions:
    """How images are stored; `ConvertConfig` has the same fields and their meaning."""

    max_size: int
    quality: int
    raw: bool
    lossless: bool
    prove: bool
    page_bytes: int


@dataclass(kw_only=True, slots=True)
class Encoded:
    """A stored image; blobs of equal ``digest`` are equal, but for chance."""

    blob: bytes
    mode: int
    width: int
    height: int
    crc32: int
    digest: int


@dataclass(kw_only=True, slots=True)
class EncodedBatch:
    """The images of a batch, in order.

    Attributes:
        images: Each stored image, or the reason why there is none.
        moments: `channel_moments` of the measured ones together: integers, so that sums over
            batches are exact in any order.
        source_bytes: What was read.
    """

    images: list[Encoded | str] = field(default_factory=list)
    moments: NDArray[np.int64] = field(default_factory=no_moments)
    source_bytes: int = 0

    def measure(self, pixels: list[NDArray[np.uint8]]) -> None:
        """Adds the moments of images, ``(n, 3)`` each, and empties the list."""
        if pixels:
            together = pixels[0] if len(pixels) == 1 else np.concatenate(pixels)
            self.moments += channel_moments(together)
            pixels.clear()


def encode_batch(
    load: Callable[[Any], Loaded],
    keys: Sequence[Any],
    measured: Sequence[bool],
    options: EncodeOptions,
) -> EncodedBatch:
    """Loads and encodes some samples; a bad one becomes its reason.

    Args:
        load: As of `SampleSet`.
        keys: The samples, as ``load`` takes them.
        measured: Whether each one's pixels count in the moments.
        options: How they are stored.

    Raises:
        OSError: If an image could not be read through no fault of its own, such as when a network
            disk is gone: leaving out all that follows would be no answer.
    """
    batch = EncodedBatch()
    pixels_to_measure: list[NDArray[np.uint8]] = []
    for key, measure in zip(keys, measured, strict=True):
        try:
            loaded = load(key)
            batch.source_bytes += len(loaded) if isinstance(loaded, bytes) else loaded.nbytes
            image, pixels = encode_image(loaded, options, want_pixels=measure)
        except ImageError as error:
            batch.images.append(str(error))
        except OSError as error:
            if error.errno in NO_FAULT_OF_THE_IMAGE:
                raise OSError(
                    f"{error.filename or 'the source'}: cannot be read ({error.strerror}); once "
                    "that is mended, the same command goes on where this one was"
                ) from error
            batch.images.append(error.strerror or str(error))
        else:
            batch.images.append(image)
            if measure and pixels is not None:
                pixels_to_measure.append(pixels.reshape(-1, 3))
                if sum(map(len, pixels_to_measure)) >= MEASURED_PIXELS:
                    batch.measure(pixels_to_measure)
    batch.measure(pixels_to_measure)
    return batch


def encode_image(
    loaded: Loaded, options: EncodeOptions, *, want_pixels: bool
) -> tuple[Encoded, NDArray[np.uint8] | None]:
    """Stores one image.

    Args:
        loaded: An encoded image's bytes, or ``(H, W, 3)`` uint8 RGB.
        options: How it is stored.
        want_pixels: Also return the pixels as a reader will decode them.

    Raises:
        ImageError: If it is damaged, of no supported format, or too large.
    """
    if isinstance(loaded, bytes) and not options.raw and is_jpeg(loaded):
        info = inspect_jpeg(loaded)
        check_size(info.width, info.height)
        if may_copy(info, options):
            return _copy(loaded[: info.end], info, options, want_pixels=want_pixels)
    if isinstance(loaded, bytes):
        pixels = load_image(loaded, options.max_size)
        raw = options.raw or (options.lossless and is_lossless(loaded))
    else:
        check_size(loaded.shape[1], loaded.shape[0])
        pixels = resize(loaded, options.max_size)
        raw = options.raw or options.lossless
    if raw:
        return _stored(pixels.tobytes(), MODE_RAW, pixels.shape, options), pixels
    blob = encode_jpeg(pixels, options.quality)
    stored = _stored(blob, MODE_JPEG, pixels.shape, options)
    return stored, decode_jpeg(blob) if want_pixels else None


def may_copy(info: JpegInfo, options: EncodeOptions) -> bool:
    """Whether every reader decodes these bytes to the same upright pixels, and soon.

    Bytes beyond those of the raw pixels are a thumbnail or a stowaway: such a file is encoded anew.
    """
    raw_bytes = 3 * info.width * info.height
    return (
        not info.obstacle
        and info.scans <= MAX_COPIED_SCANS
        and max(info.width, info.height) <= options.max_size
        and info.end <= min(raw_bytes + (1 << 16), options.page_bytes)
    )


def _copy(
    blob: bytes, info: JpegInfo, options: EncodeOptions, *, want_pixels: bool
) -> tuple[Encoded, NDArray[np.uint8] | None]:
    """The JPEG as it is, proved by a decode at full scale, at 1/8, or not at all."""
    pixels = decode_jpeg(blob) if want_pixels else None
    if options.prove and pixels is None:
        prove_jpeg(blob, info)
    return _stored(blob, MODE_JPEG, (info.height, info.width), options), pixels


def _stored(blob: bytes, mode: int, shape: tuple[int, ...], options: EncodeOptions) -> Encoded:
    if len(blob) > options.page_bytes:
        raise ImageError(f"its {len(blob)} bytes exceed page_bytes={options.page_bytes}")
    crc32 = zlib.crc32(blob)
    return Encoded(
        blob=blob,
        mode=mode,
        width=shape[1],
        height=shape[0],
        crc32=crc32,
        digest=crc32 << 32 | zlib.adler32(blob),  # a SHA-256 would take twice the time of all else
    )
