"""Random draws on the host, in Numba and NumPy: keys, the order of an epoch, crop boxes."""

import math

import numpy as np
import numpy.typing as npt

from fastmoco.caches import cached_njit
from fastmoco.draws.streams import GOLDEN, INT64, MIX_1, MIX_2, Draw

INT32 = npt.NDArray[np.int32]
Bounds = tuple[float, float]

CROP_ATTEMPTS = 10  # torchvision's RandomResizedCrop
NUM_STREAMS = 64
"""Parts of a set of shards that are read at the same time, whatever the number of ranks."""

# Typed constants: with an int64 operand, Numba would turn uint64 arithmetic into float64.
_U_GOLDEN, _U_MIX_1, _U_MIX_2 = np.uint64(GOLDEN), np.uint64(MIX_1), np.uint64(MIX_2)
_U27, _U30, _U31, _U40 = np.uint64(27), np.uint64(30), np.uint64(31), np.uint64(40)
_CROP_AREA, _CROP_RATIO = int(Draw.CROP_AREA), int(Draw.CROP_RATIO)
_CROP_TOP, _CROP_LEFT = int(Draw.CROP_TOP), int(Draw.CROP_LEFT)
_KEY_SHUFFLE = np.uint64((int(Draw.SHUFFLE) << 32) | (1 << 16))  # of the key's view


@cached_njit()
def _absorb(state: np.uint64, word: np.uint64) -> np.uint64:
    z = state + _U_GOLDEN * (word + np.uint64(1))
    z = (z ^ (z >> _U30)) * _U_MIX_1
    z = (z ^ (z >> _U27)) * _U_MIX_2
    return z ^ (z >> _U31)


@cached_njit()
def _draw_key(seed: int, epoch: int, sample_id: int) -> np.uint64:
    state = _absorb(np.uint64(0), np.uint64(seed))
    return _absorb(_absorb(state, np.uint64(epoch)), np.uint64(sample_id))


@cached_njit()
def _uniform(draw_key: np.uint64, what: int, view: int, attempt: int) -> float:
    word = np.uint64((what << 32) | (view << 16) | attempt)
    return float(_absorb(draw_key, word) >> _U40) * 2.0**-24


@cached_njit()
def _hash_samples(seed: int, epoch: int, sample_ids: INT64, out: INT64) -> None:
    for i in range(sample_ids.size):
        out[i] = np.int64(_draw_key(seed, epoch, sample_ids[i]))


@cached_njit()
def _hash_order(seed: int, epoch: int, what: int, out: npt.NDArray[np.uint64]) -> None:
    for number in range(out.size):
        out[number] = _absorb(_draw_key(seed, epoch, number), np.uint64(what << 32))


@cached_njit()
def _hash_shuffle(draw_keys: INT64, out: npt.NDArray[np.uint64]) -> None:
    for i in range(draw_keys.size):
        out[i] = _absorb(np.uint64(draw_keys[i]), _KEY_SHUFFLE) >> _U40


@cached_njit()
def _crop_box(
    key: np.uint64, view: int, height: int, width: int, scale: Bounds, ratio: Bounds, box: INT32
) -> None:
    log_low, log_high = math.log(ratio[0]), math.log(ratio[1])
    for attempt in range(CROP_ATTEMPTS):
        area_fraction = scale[0] + (scale[1] - scale[0]) * _uniform(key, _CROP_AREA, view, attempt)
        log_ratio = log_low + (log_high - log_low) * _uniform(key, _CROP_RATIO, view, attempt)
        area, aspect = height * width * area_fraction, math.exp(log_ratio)
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


@cached_njit()
def _crop_boxes(
    draw_keys: INT64, heights: INT64, widths: INT64, scale: Bounds, ratio: Bounds, boxes: INT32
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
        ``(N,)`` int64; a device needs nothing else to draw for a sample.
    """
    out = np.empty(sample_ids.size, np.int64)
    _hash_samples(seed, epoch, np.ascontiguousarray(sample_ids, np.int64), out)
    return out


def epoch_order(seed: int, epoch: int, num_samples: int) -> INT64:
    """Permutation in which an epoch visits its samples (0.2 s for 1.28 million).

    Returns:
        ``(num_samples,)`` int64.
    """
    hashes = _order_hashes(seed, epoch, Draw.ORDER, num_samples)
    return np.argsort(hashes, kind="stable").astype(np.int64, copy=False)


def _order_hashes(seed: int, epoch: int, what: Draw, count: int) -> npt.NDArray[np.uint64]:
    hashes = np.empty(count, np.uint64)
    _hash_order(seed, epoch, int(what), hashes)
    return hashes


def streamed_order(seed: int, epoch: int, shard_ends: INT64, batch_size: int) -> INT64:
    """Permutation in which an epoch visits the samples of shards that come one after the other.

    The sample ids are cut into `NUM_STREAMS` equal parts, the streams. A stream visits its shards
    in random order, and the samples of a shard in random order. A batch has equally many samples
    of each stream, those of a stream side by side, so that ranks, which take equal slices of it,
    read different shards.

    Args:
        seed: The run's seed.
        epoch: The epoch, counted from 0.
        shard_ends: End of each shard, ``(S,)`` int64: a shard has the ids from the end of the one
            before to its own.
        batch_size: Samples in a global batch, a multiple of `NUM_STREAMS`.

    Returns:
        ``(n,)`` int64; what is left of the streams after the last batch comes at its end.
    """
    count, num_shards = int(shard_ends[-1]), len(shard_ends)
    places = np.empty(num_shards, np.int64)  # of the shards in this epoch
    hashes = _order_hashes(seed, epoch, Draw.SHARD_ORDER, num_shards)
    places[np.argsort(hashes, kind="stable")] = np.arange(num_shards)
    place = np.repeat(places, np.diff(shard_ends, prepend=0))
    starts = np.arange(NUM_STREAMS + 1, dtype=np.int64) * count // NUM_STREAMS
    stream = np.repeat(np.arange(NUM_STREAMS), np.diff(starts))
    order = np.lexsort((_order_hashes(seed, epoch, Draw.ORDER, count), place, stream))
    each, batches = batch_size // NUM_STREAMS, count // batch_size
    rows = starts[:-1, None] + np.arange(batches * each)  # (streams, batches * each)
    in_batches = rows.reshape(NUM_STREAMS, batches, each).transpose(1, 0, 2).ravel()
    return np.concatenate([order[in_batches], np.delete(order, rows.ravel())])


def shuffled_order(keys: INT64) -> INT64:
    """Order in which the key encoders of all ranks see a global batch; `device.permutation`'s twin.

    Args:
        keys: ``(B,)`` int64, from `draw_keys`.

    Returns:
        ``(B,)`` int64.
    """
    draws = np.empty(keys.size, np.uint64)
    _hash_shuffle(np.ascontiguousarray(keys, np.int64), draws)
    return np.argsort(draws, kind="stable").astype(np.int64, copy=False)


def random_resized_crop_boxes(
    keys: INT64, heights: INT64, widths: INT64, *, scale: Bounds, ratio: Bounds, num_views: int
) -> INT32:
    """Draw crop boxes like torchvision's ``RandomResizedCrop``: 10 attempts, then a central crop.

    Args:
        keys: ``(N,)`` int64, from `draw_keys`.
        heights: Heights of the images in pixels, ``(N,)``.
        widths: Widths of the images in pixels, ``(N,)``.
        scale: Bounds of the crop's fraction of the area, in (0, 1].
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
