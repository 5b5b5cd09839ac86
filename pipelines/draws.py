"""Every random choice of the data path, as a pure function of what it is for.

A draw is a counter-based hash of ``(seed, epoch, sample_id, view, what, attempt)``: no generator
has a state. So every loader cuts the same crops, threads and ranks do not change a batch, a run
resumes in the middle of an epoch by skipping a prefix of the order, and any batch can be drawn
again later, to look at it.

The hash is the finalizer of splitmix64 (Steele, Lea, Flood, OOPSLA 2014), absorbed word by word.
It is bit-equal in Numba (host) and torch (device): torch's CPU has no uint64 shifts, so there the
words are int64 with masked shifts. Uniforms have 24 bits, which float32 holds exactly.
"""

import math
from enum import IntEnum

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

INT64 = npt.NDArray[np.int64]

_GOLDEN = 0x9E3779B97F4A7C15
_MIX_1 = 0xBF58476D1CE4E5B9
_MIX_2 = 0x94D049BB133111EB
CROP_ATTEMPTS = 10  # torchvision's RandomResizedCrop


class Draw(IntEnum):
    """What a draw is for. Values are part of the random stream: append, never renumber."""

    ORDER = 0
    CROP_AREA = 1
    CROP_RATIO = 2
    CROP_TOP = 3
    CROP_LEFT = 4
    FLIP = 5
    JITTER_APPLY = 6
    BRIGHTNESS = 7
    CONTRAST = 8
    SATURATION = 9
    HUE = 10
    JITTER_ORDER = 11
    GRAYSCALE = 12
    BLUR_APPLY = 13
    BLUR_SIGMA = 14
    SHUFFLE = 15
    POOL = 16
    NEGATIVES = 17


# ---------------------------------------------------------------- host (Numba)

# Typed constants: in Numba an int64 operand would turn uint64 arithmetic into float64.
_U_GOLDEN, _U_MIX_1, _U_MIX_2 = np.uint64(_GOLDEN), np.uint64(_MIX_1), np.uint64(_MIX_2)
_U27, _U30, _U31, _U40 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(40)
_CROP_AREA, _CROP_RATIO = int(Draw.CROP_AREA), int(Draw.CROP_RATIO)
_CROP_TOP, _CROP_LEFT, _ORDER = int(Draw.CROP_TOP), int(Draw.CROP_LEFT), int(Draw.ORDER)


@numba.njit(nogil=True, cache=True)
def _absorb(state: np.uint64, word: np.uint64) -> np.uint64:
    z = state + _U_GOLDEN * (word + np.uint64(1))
    z = (z ^ (z >> _U30)) * _U_MIX_1
    z = (z ^ (z >> _U27)) * _U_MIX_2
    return z ^ (z >> _U31)


@numba.njit(nogil=True, cache=True)
def _draw_key(seed: int, epoch: int, sample_id: int) -> np.uint64:
    state = _absorb(np.uint64(0), np.uint64(seed))
    return _absorb(_absorb(state, np.uint64(epoch)), np.uint64(sample_id))


@numba.njit(nogil=True, cache=True)
def _uniform(draw_key: np.uint64, what: int, view: int, attempt: int) -> float:
    word = np.uint64((what << 32) | (view << 16) | attempt)
    return float(_absorb(draw_key, word) >> _U40) * 2.0**-24


@numba.njit(nogil=True, cache=True)
def _hash_samples(seed: int, epoch: int, sample_ids: INT64, out: INT64) -> None:
    for i in range(sample_ids.size):
        out[i] = np.int64(_draw_key(seed, epoch, sample_ids[i]))


@numba.njit(nogil=True, cache=True)
def _hash_order(seed: int, epoch: int, out: npt.NDArray[np.uint64]) -> None:
    for sample_id in range(out.size):
        key = _draw_key(seed, epoch, sample_id)
        out[sample_id] = _absorb(key, np.uint64(_ORDER << 32))


@numba.njit(nogil=True, cache=True)
def _crop_box(
    key: np.uint64,
    view: int,
    height: int,
    width: int,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    box: npt.NDArray[np.int32],
) -> None:
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(CROP_ATTEMPTS):
        area_share = scale[0] + (scale[1] - scale[0]) * _uniform(key, _CROP_AREA, view, attempt)
        log_ratio = log_low + (log_high - log_low) * _uniform(key, _CROP_RATIO, view, attempt)
        area, aspect = height * width * area_share, math.exp(log_ratio)
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            box[0] = int(_uniform(key, _CROP_TOP, view, attempt) * (height - h + 1))
            box[1] = int(_uniform(key, _CROP_LEFT, view, attempt) * (width - w + 1))
            box[2], box[3] = h, w
            return
    # The largest central crop of an allowed shape.
    w, h = width, height
    if width < ratio[0] * height:
        h = max(1, round(width / ratio[0]))
    elif width > ratio[1] * height:
        w = max(1, round(height * ratio[1]))
    box[0], box[1], box[2], box[3] = (height - h) // 2, (width - w) // 2, h, w


@numba.njit(nogil=True, cache=True)
def _crop_boxes(
    draw_keys: INT64,
    heights: INT64,
    widths: INT64,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    boxes: npt.NDArray[np.int32],
) -> None:
    for i in range(draw_keys.size):
        for view in range(boxes.shape[1]):
            key = np.uint64(draw_keys[i])
            _crop_box(key, view, heights[i], widths[i], scale, ratio, boxes[i, view])


def draw_keys(seed: int, epoch: int, sample_ids: INT64) -> INT64:
    """``draw_key = hash(seed, epoch, sample_id)`` of each sample.

    Args:
        seed: The run's seed, 0 or more.
        epoch: The epoch, counted from 0.
        sample_ids: ``(N,)`` int64.

    Returns:
        ``(N,)`` int64: all that a device needs to know to draw for a sample.
    """
    out = np.empty(sample_ids.size, np.int64)
    _hash_samples(seed, epoch, np.ascontiguousarray(sample_ids, np.int64), out)
    return out


def epoch_order(seed: int, epoch: int, num_samples: int) -> INT64:
    """The permutation in which an epoch visits its samples (0.2 s for 1.28 million).

    Returns:
        ``(num_samples,)`` int64.
    """
    hashes = np.empty(num_samples, np.uint64)
    _hash_order(seed, epoch, hashes)
    return np.argsort(hashes, kind="stable").astype(np.int64, copy=False)


def random_resized_crop_boxes(
    keys: INT64,
    heights: INT64,
    widths: INT64,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
    num_views: int,
) -> npt.NDArray[np.int32]:
    """Crop boxes as torchvision's ``RandomResizedCrop``: 10 attempts, then a central crop.

    Args:
        keys: ``(N,)`` int64, from `draw_keys`.
        heights: ``(N,)`` of the images, pixels.
        widths: ``(N,)`` of the images, pixels.
        scale: Bounds of the crop's share of the area, in (0, 1].
        ratio: Bounds of width / height, drawn uniformly in the logarithm.
        num_views: V, independent boxes per image.

    Returns:
        ``(N, V, 4)`` int32: top, left, height, width, in pixels, inside the image.
    """
    boxes = np.empty((keys.size, num_views, 4), np.int32)
    _crop_boxes(
        np.ascontiguousarray(keys, np.int64),
        np.ascontiguousarray(heights, np.int64),
        np.ascontiguousarray(widths, np.int64),
        (float(scale[0]), float(scale[1])),
        (float(ratio[0]), float(ratio[1])),
        boxes,
    )
    return boxes


# ---------------------------------------------------------------- device (torch)


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift of an int64 tensor: torch's own would drag the sign in."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _absorb_tensor(state: Tensor, word: int) -> Tensor:
    return _mix_tensor(state + _signed(_GOLDEN * (word + 1) & (2**64 - 1)))


def _mix_tensor(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _signed(_MIX_1)
    z = (z ^ _shift_right(z, 27)) * _signed(_MIX_2)
    return z ^ _shift_right(z, 31)


def _of_view(draw_key: Tensor, view: int) -> Tensor:
    return draw_key if draw_key.ndim == 1 else draw_key[:, view]


def uniform(draw_key: Tensor, what: Draw, view: int) -> Tensor:
    """Uniform draws in [0, 1) on the device, bit-equal to the host's.

    Args:
        draw_key: ``(N,)`` int64, any device; ``(N, V)`` where each view is of an image of its own.
        what: What the draw is for.
        view: 0 for the query's view, 1 for the key's.

    Returns:
        ``(N,)`` float32, multiples of 2^-24.
    """
    bits = _shift_right(fork(draw_key, what, view), 40)
    return bits.to(torch.float32) * 2.0**-24


def fork(draw_key: Tensor, what: Draw, view: int) -> Tensor:
    """The key of a stream of its own, for what needs more than one draw: see `stream_uniforms`.

    Args:
        draw_key: As of `uniform`; likewise the others.
        what: What the stream is for.
        view: Of which view.

    Returns:
        ``(N,)`` int64.
    """
    return _absorb_tensor(_of_view(draw_key, view), (int(what) << 32) | (view << 16))


def stream_uniforms(stream: Tensor, part: int, count: int) -> Tensor:
    """The first draws of one part of a stream: asking for fewer gives a prefix.

    Args:
        stream: ``(N,)`` int64, from `fork`.
        part: 0 or more; parts are independent.
        count: Draws of each.

    Returns:
        ``(N, count)`` float32 in [0, 1), multiples of 2^-24.
    """
    return _shift_right(_stream(stream, part, count), 40).to(torch.float32) * 2.0**-24


def stream_integers(stream: Tensor, part: int, count: int, below: int) -> Tensor:
    """As `stream_uniforms`, integers.

    Args:
        stream: ``(N,)`` int64, from `fork`.
        part: 0 or more; parts are independent.
        count: Draws of each.
        below: 1 or more; the remainder of 63 bits favors none by more than ``below / 2^63``.

    Returns:
        ``(N, count)`` int64 in [0, below).
    """
    return _shift_right(_stream(stream, part, count), 1) % below


def _stream(stream: Tensor, part: int, count: int) -> Tensor:
    place = torch.arange(1, count + 1, device=stream.device) * _signed(_GOLDEN)
    return _mix_tensor(_absorb_tensor(stream, part)[:, None] + place)


def permutation(draw_key: Tensor) -> Tensor:
    """The order in which the key encoder sees its batch under shuffled batch norm.

    Returns:
        ``(N,)`` int64, on the device.
    """
    return torch.argsort(uniform(draw_key, Draw.SHUFFLE, 1), stable=True)
