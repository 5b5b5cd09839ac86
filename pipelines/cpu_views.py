"""Photometric augmentation on a CPU: loops that Numba compiles, one image at a time.

Equal to `augment.plain_views` within 1e-5. Operations that an image did not draw are skipped, its
three planes stay in the core's cache from the first operation to the last, and a view's bits do not
depend on its batch. Both views of an image against `plain_views`, both compiled, MoCo v2, one core
of an AMD EPYC, torch 2.15, CPU time, medians of 7 to 9 rounds:

    16 images of 224 x 224    0.75 against 5.3 ms (7 x)
    64 images of 224 x 224    0.86 against 7.9 ms (9 x), which exceed the cache
    256 images of 32 x 32     0.033 against 0.12 ms (3.7 x)

For `torch.compile` it is one operator, so a step around it is still captured as one graph. Left
out: pools, which `pool` draws, and parameters that are not in `augment.LOOP_PARAMETERS`.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastmoco.caches import cached_njit

FLOAT32 = npt.NDArray[np.float32]

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
"""Operations in a view's `sequence`, and the columns of their factors."""
FLIP, GRAYSCALE, SIGMA, THRESHOLD = 4, 5, 6, 7
"""Columns of the other parameters."""

# Typed constants: in Numba a Python float turns float32 arithmetic into float64.
_ZERO, _ONE, _TWO, _FOUR, _SIX = (np.float32(value) for value in (0, 1, 2, 4, 6))
_RED, _GREEN, _BLUE = np.float32(0.299), np.float32(0.587), np.float32(0.114)
_LEVEL, _SIXTH = np.float32(1 / 255), np.float32(1 / 6)
_NEGLIGIBLE = np.float32(2.0**-27)  # relative to a blur's central weight


@cached_njit(fastmath=True)
def _clamp(value: np.float32) -> np.float32:
    return min(max(value, _ZERO), _ONE)


@cached_njit(fastmath=True)
def _load_row(crop: npt.NDArray[np.uint8], flip: bool, row: FLOAT32) -> None:
    """Convert ``(W, 3)`` uint8 to ``(3, W)`` in 0..1; one loop for all channels vectorizes best."""
    red, green, blue = row[0], row[1], row[2]
    for x in range(red.size):
        red[x] = np.float32(crop[x, 0]) * _LEVEL
        green[x] = np.float32(crop[x, 1]) * _LEVEL
        blue[x] = np.float32(crop[x, 2]) * _LEVEL
    if flip:
        last = red.size - 1
        for x in range(red.size // 2):
            red[x], red[last - x] = red[last - x], red[x]
            green[x], green[last - x] = green[last - x], green[x]
            blue[x], blue[last - x] = blue[last - x], blue[x]


@cached_njit(fastmath=True)
def _store_row(row: FLOAT32, mean: FLOAT32, std: FLOAT32, out: FLOAT32) -> None:
    """Normalize ``(3, W)`` to ``(W, 3)``."""
    red, green, blue = row[0], row[1], row[2]
    scale_0, scale_1, scale_2 = _ONE / std[0], _ONE / std[1], _ONE / std[2]
    shift_0, shift_1, shift_2 = mean[0] * scale_0, mean[1] * scale_1, mean[2] * scale_2
    for x in range(red.size):
        out[x, 0] = red[x] * scale_0 - shift_0
        out[x, 1] = green[x] * scale_1 - shift_1
        out[x, 2] = blue[x] * scale_2 - shift_2


@cached_njit(fastmath=True)
def _gray_sum(row: FLOAT32) -> float:
    red, green, blue = row[0], row[1], row[2]
    total = _ZERO
    for x in range(red.size):
        total += _RED * red[x] + _GREEN * green[x] + _BLUE * blue[x]
    return float(total)


@cached_njit(fastmath=True)
def _blend_with_gray(row: FLOAT32, factor: np.float32) -> None:
    """``clamp(factor x + (1 - factor) gray(x))``: saturation; grayscale where factor is 0."""
    red, green, blue = row[0], row[1], row[2]
    for x in range(red.size):
        gray = (_ONE - factor) * (_RED * red[x] + _GREEN * green[x] + _BLUE * blue[x])
        red[x] = _clamp(factor * red[x] + gray)
        green[x] = _clamp(factor * green[x] + gray)
        blue[x] = _clamp(factor * blue[x] + gray)


@cached_njit(fastmath=True)
def _scale(row: FLOAT32, factor: np.float32, offset: np.float32) -> None:
    """``clamp(factor x + offset)``: brightness and contrast."""
    flat = row.reshape(-1)
    for x in range(flat.size):
        flat[x] = _clamp(factor * flat[x] + offset)


@cached_njit(fastmath=True)
def _hue_channel(sixths: np.float32, value: np.float32, spread: np.float32) -> np.float32:
    k = sixths - _SIX * np.floor(sixths * _SIXTH)
    return value - spread * _clamp(_TWO - abs(k - _TWO))


@cached_njit(fastmath=True)
def _shift_hue(row: FLOAT32, turns: np.float32) -> None:
    """Shift the hue as `color._shift_hue` does."""
    reds, greens, blues = row[0], row[1], row[2]
    for x in range(reds.size):
        red, green, blue = reds[x], greens[x], blues[x]
        value = max(red, green, blue)
        spread = value - min(red, green, blue)
        scale = _ONE / (_ONE if spread == _ZERO else spread)
        from_green, from_blue = (blue - red) * scale + _TWO, (red - green) * scale + _FOUR
        other = from_green if green >= blue else from_blue
        is_red = (red >= green) & (red >= blue)
        sixths = ((green - blue) * scale if is_red else other) + _SIX * turns
        reds[x] = _hue_channel(sixths + np.float32(5), value, spread)
        greens[x] = _hue_channel(sixths + np.float32(3), value, spread)
        blues[x] = _hue_channel(sixths + np.float32(1), value, spread)


@cached_njit(fastmath=True)
def _color_row(
    row: FLOAT32, sequence: npt.NDArray[np.int64], factors: FLOAT32, mean: np.float32
) -> None:
    """Apply the operations of the jitter, one after the other."""
    for operation in sequence:
        factor = factors[operation]
        if operation == HUE:
            if factor != _ZERO:
                _shift_hue(row, factor)
        elif factor == _ONE:
            continue
        elif operation == SATURATION:
            _blend_with_gray(row, factor)
        elif operation == BRIGHTNESS:
            _scale(row, factor, _ZERO)
        else:
            _scale(row, factor, (_ONE - factor) * mean)


@cached_njit(fastmath=True)
def _color(
    crop: npt.NDArray[np.uint8],
    sequence: npt.NDArray[np.int64],
    drawn: FLOAT32,
    gray_first: bool,
    planes: FLOAT32,
) -> None:
    """Fill planes ``(H, 3, W)`` with all but blur: first up to contrast, which needs the mean."""
    is_gray = drawn[GRAYSCALE] != _ZERO
    first = 0
    while first < 4 and (sequence[first] != CONTRAST or drawn[CONTRAST] == _ONE):
        first += 1
    total = 0.0
    for y in range(planes.shape[0]):
        _load_row(crop[y], drawn[FLIP] != _ZERO, planes[y])
        if is_gray and gray_first:
            _blend_with_gray(planes[y], _ZERO)
        _color_row(planes[y], sequence[:first], drawn, _ZERO)
        if first < 4:
            total += _gray_sum(planes[y])
    mean = np.float32(total / (planes.shape[0] * planes.shape[2]))
    for y in range(planes.shape[0]):
        _color_row(planes[y], sequence[first:], drawn, mean)
        if is_gray and not gray_first:
            _blend_with_gray(planes[y], _ZERO)


@cached_njit(fastmath=True)
def _blur_weights(sigma: np.float32, radius: int) -> FLOAT32:
    """Compute half of a Gaussian, from its center to where it is negligible; the full sum is 1."""
    weights = np.empty(radius + 1, np.float32)
    count, total = 0, 0.0
    for distance in range(radius + 1):
        weight = np.exp(-0.5 * (distance / sigma) ** 2)
        if weight < _NEGLIGIBLE:
            break
        weights[count] = weight
        count += 1
        total += 2 * weight if distance else weight
    return weights[:count] / np.float32(total)


@cached_njit(fastmath=True)
def _reflected(index: int, length: int) -> int:
    return abs(index) if index < length else 2 * (length - 1) - index


@cached_njit(fastmath=True)
def _blur_row(planes: FLOAT32, y: int, weights: FLOAT32, wide: FLOAT32, row: FLOAT32) -> None:
    """Blur one row of the planes.

    Args:
        planes: ``(H, 3, W)``.
        y: Index of the row.
        weights: From `_blur_weights`.
        wide: Scratch memory, ``(3, W + 2 radius)``.
        row: Result, ``(3, W)``; overwritten.
    """
    height, _, width = planes.shape
    reach = weights.size - 1
    for channel in range(3):
        line, out = wide[channel], row[channel]
        middle = line[reach : reach + width]
        middle[:] = planes[y, channel] * weights[0]
        for distance in range(1, reach + 1):
            above = planes[_reflected(y - distance, height), channel]
            below = planes[_reflected(y + distance, height), channel]
            for x in range(width):
                middle[x] += weights[distance] * (above[x] + below[x])
        for distance in range(1, reach + 1):
            line[reach - distance] = middle[distance]
            line[reach + width - 1 + distance] = middle[width - 1 - distance]
        out[:] = middle * weights[0]
        for distance in range(1, reach + 1):
            left, right = line[reach - distance :], line[reach + distance :]
            for x in range(width):
                out[x] += weights[distance] * (left[x] + right[x])


@cached_njit(fastmath=True)
def _solarize(row: FLOAT32, threshold: np.float32) -> None:
    flat = row.reshape(-1)
    for x in range(flat.size):
        flat[x] = flat[x] if flat[x] < threshold else _ONE - flat[x]


@cached_njit(fastmath=True)
def _fill_views(
    crops: npt.NDArray[np.uint8],
    sequences: npt.NDArray[np.int64],
    drawn: FLOAT32,
    gray_first: bool,
    radius: int,
    mean: FLOAT32,
    std: FLOAT32,
    out: FLOAT32,
    first: int,
    last: int,
) -> None:
    """Fill views ``first`` to ``last - 1``; arguments as in `cpu_views`, in NumPy."""
    count, _, height, width, _ = crops.shape
    planes = np.empty((height, 3, width), np.float32)
    wide = np.empty((3, width + 2 * radius), np.float32)
    blurred = np.empty((3, width), np.float32)
    for view in range(first, last):
        crop = crops[view % count, view // count]
        _color(crop, sequences[view], drawn[view], gray_first, planes)
        sigma = drawn[view, SIGMA]
        weights = _blur_weights(sigma, radius) if sigma > _ZERO else np.ones(1, np.float32)
        for y in range(height):
            row = planes[y]
            if weights.size > 1:
                _blur_row(planes, y, weights, wide, blurred)
                row = blurred
            if drawn[view, THRESHOLD] <= _ONE:
                _solarize(row, drawn[view, THRESHOLD])
            _store_row(row, mean, std, out[view, y])


@torch.library.custom_op("fastmoco::host_views", mutates_args=())
def cpu_views(
    crops: Tensor,
    sequences: Tensor,
    drawn: Tensor,
    gray_first: bool,
    radius: int,
    mean: Tensor,
    std: Tensor,
) -> Tensor:
    """Flip, jitter, grayscale, blur, solarize and normalize on as many threads as torch uses.

    Args:
        crops: ``(N, V, H, W, 3)`` uint8, RGB.
        sequences: Order of each view's jitter, ``(V * N, 4)`` int64: `BRIGHTNESS` and so on.
        drawn: Other parameters, ``(V * N, 8)`` float32, one view after the other: three factors
            (neutral 1), the hue's shift in turns (neutral 0), flip and grayscale (0 or 1), the
            blur's sigma in pixels (0: none), and solarization's threshold (above 1: none).
        gray_first: Whether grayscale comes before the jitter.
        radius: Radius of the blur's kernel, pixels; at most ``min(H, W) - 1``.
        mean: Channel means in 0..1, ``(3,)`` float32.
        std: Channel standard deviations in 0..1, ``(3,)`` float32.

    Returns:
        ``(V * N, H, W, 3)`` float32.
    """
    count, views, height, width, _ = crops.shape
    # From NumPy, which asks for huge pages: without them new memory costs half as much as the work.
    out = np.empty((views * count, height, width, 3), np.float32)
    fill = partial(
        _fill_views,
        crops.contiguous().numpy(),
        sequences.contiguous().numpy(),
        drawn.contiguous().numpy(),
        gray_first,
        radius,
        mean.numpy(),
        std.numpy(),
        out,
    )
    threads = min(torch.get_num_threads(), len(out))
    if threads <= 1:
        fill(0, len(out))
        return torch.from_numpy(out)
    bounds = [len(out) * part // threads for part in range(threads + 1)]
    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(fill, bounds[:-1], bounds[1:]))  # raises the first error
    return torch.from_numpy(out)


@cpu_views.register_fake
def _(crops: Tensor, *_others: object) -> Tensor:
    count, views, height, width, _ = crops.shape
    return crops.new_empty((views * count, height, width, 3), dtype=torch.float32)
