"""The built-in image set: ten classes of gray textures, made by code.

It serves the demo and the tests, so it needs no download and must not be easy: the class is the
structure of a two-tone pattern, with its size, and nothing else. An image is a patchwork of nine
cells, each with an angle, period, phase, mean tone and contrast of its own, all drawn alike for
every class. Two crops of an image so share the structure, and little else by which one could tell
images apart: MoCo finds the classes. Raw pixels see the cells' tones and an untrained encoder
little (kNN, k = 20: 25% and 12 to 14%), while crops, flips and jitter leave the class intact. With
one angle, one period or one light for the whole image, MoCo tells images by these instead; with
patterns of one size it waits long before it learns anything. Colored shapes on clutter, tried
first, stay at chance under MoCo, which tells instances by the clutter (docs/log.md).

A pattern maps coordinates ``(u, v)``, in periods and already rotated and shifted, to a boolean
mask of the same shape, which fills 39 to 59% of the plane.
"""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

IMAGE_SIZE = 48
SPLIT_SIZES: dict[str, int] = {"train": 6000, "test": 1200}

_SPLIT_CODES = {"train": 1, "test": 2}
_SUPERSAMPLING = 2  # samples per pixel and axis; their mean is the antialiasing
_CELLS = 3  # along each axis
_CELL_JITTER = 0.4  # largest distance of a cell's site from its place on the grid, in cells
_PERIOD_PIXELS = (6.0, 9.0)  # a crop of a fifth of the image (21 pixels) still shows a period
_MEAN_TONE = (0.35, 0.65)
_CONTRAST = (0.09, 0.17)  # standard deviation of the two tones around their mean
_NOISE = 0.04  # half width of the uniform noise
_SHIFT_PERIODS = 64.0
_SAMPLES = IMAGE_SIZE * _SUPERSAMPLING

# Plane waves of `blobs`: fixed directions and lengths without a common period.
_WAVES = tuple(
    (math.cos(angle) * 2 * math.pi * cycles, math.sin(angle) * 2 * math.pi * cycles)
    for angle, cycles in (
        (0.11, 0.83), (0.62, 0.71), (1.03, 0.92), (1.47, 0.64),
        (1.93, 0.79), (2.29, 0.97), (2.71, 0.68), (3.01, 0.88),
    )
)  # fmt: skip


def _centered(x: Floats) -> Floats:
    """Signed offset of ``x`` from the nearest integer, in [-0.5, 0.5]."""
    offset: Floats = x - np.rint(x)
    return offset


def _odd(x: Floats) -> Mask:
    """Whether the integer part of ``x`` is odd."""
    return (np.floor(x).astype(np.int64) & 1).astype(np.bool_)


def _stripes(u: Floats, _v: Floats) -> Mask:
    """Straight bands."""
    return _odd(2 * u)


def _checker(u: Floats, v: Floats) -> Mask:
    """Squares that alternate along both axes."""
    return _odd(1.5 * u) ^ _odd(1.5 * v)


def _dots(u: Floats, v: Floats) -> Mask:
    """Discs on a triangular lattice."""
    row_height = math.sqrt(0.75)
    row = np.rint(v / row_height)
    across = _centered(u - 0.5 * (row % 2))
    along = v - row * row_height
    return across**2 + along**2 < 0.34**2


def _rings(u: Floats, v: Floats) -> Mask:
    """Rings with a dot inside, on a square lattice."""
    scale = 2.0
    radius = scale * np.hypot(_centered(u / scale), _centered(v / scale))
    return (np.abs(radius - 0.75) < 0.23) | (radius < 0.25)


def _bricks(u: Floats, v: Floats) -> Mask:
    """Running bond: rows of oblongs with joints, every other row shifted by half."""
    joint, scale = 0.16, 1.1
    u, v = u / scale, v / scale
    ends = np.abs(2 * _centered(0.5 * u + 0.5 * _odd(v + 0.5))) < joint
    return ends | (np.abs(_centered(v)) > 0.5 - joint)


def _zigzag(u: Floats, v: Floats) -> Mask:
    """Bands bent into chevrons."""
    return _odd(2 * (u * 0.8 + np.abs(_centered(v / 2)) * 2))


def _grid(u: Floats, v: Floats) -> Mask:
    """Lines along both axes."""
    return (np.abs(_centered(u)) < 0.14) | (np.abs(_centered(v)) < 0.14)


def _scales(u: Floats, v: Floats) -> Mask:
    """Fish scales: rows of half discs that overlap the next row, shown by their rims."""
    scale = 1.7
    u, v = u / scale, 2 * v / scale
    row = np.floor(v)
    down = 0.5 * (v - row)
    shift = 0.5 * (row % 2)
    upper = np.hypot(_centered(u - shift), down)
    lower = np.hypot(_centered(u - shift - 0.5), 0.5 - down)
    return np.where(upper < 0.5, upper, lower) > 0.36


def _blobs(u: Floats, v: Floats) -> Mask:
    """Irregular islands: the sign of a sum of plane waves without a common period."""
    total = np.zeros_like(u)
    for along_u, along_v in _WAVES:
        total += np.cos(along_u * u + along_v * v)
    return total > 0


def _crosses(u: Floats, v: Floats) -> Mask:
    """Plus signs, every other column shifted by half."""
    scale = 1.4
    u, v = u / scale, v / scale
    v = v - 0.5 * _odd(u + 0.5)
    across, along = np.abs(_centered(u)), np.abs(_centered(v))
    return (np.minimum(across, along) < 0.15) & (np.maximum(across, along) < 0.40)


Pattern = Callable[[Floats, Floats], Mask]

_PATTERNS: dict[str, Pattern] = {
    "stripes": _stripes,
    "checker": _checker,
    "dots": _dots,
    "rings": _rings,
    "bricks": _bricks,
    "zigzag": _zigzag,
    "grid": _grid,
    "scales": _scales,
    "blobs": _blobs,
    "crosses": _crosses,
}

# A pattern's period in units of the one drawn.
_SIZES: dict[str, float] = {
    "stripes": 0.55,
    "checker": 1.0,
    "dots": 0.6,
    "rings": 1.25,
    "bricks": 1.25,
    "zigzag": 0.8,
    "grid": 1.0,
    "scales": 0.9,
    "blobs": 1.6,
    "crosses": 0.7,
}

CLASS_NAMES: tuple[str, ...] = tuple(_PATTERNS)


def label_of(split: str, index: int) -> int:
    """Class of an image, an index into ``CLASS_NAMES``; each class has equally many images.

    Args:
        split: A key of ``SPLIT_SIZES``.
        index: Position in the split, from 0.

    Raises:
        ValueError: If there is no such split or index.
    """
    if split not in SPLIT_SIZES:
        raise ValueError(f"unknown split {split!r}; the built-in set has {', '.join(SPLIT_SIZES)}")
    if not 0 <= index < SPLIT_SIZES[split]:
        raise ValueError(f"index={index} is not in 0..{SPLIT_SIZES[split] - 1} of split {split!r}")
    return index % len(CLASS_NAMES)


def render(split: str, index: int) -> npt.NDArray[np.uint8]:
    """One image, a pure function of split and index.

    It draws with ``Generator.random`` on PCG64 alone and rounds float64 results to bytes, so that
    processes, machines and NumPy versions agree as far as their cosines do.

    Args:
        split: A key of ``SPLIT_SIZES``.
        index: Position in the split, from 0.

    Returns:
        Gray in three equal channels, ``(48, 48, 3)`` uint8.

    Raises:
        ValueError: If there is no such split or index.
    """
    name = CLASS_NAMES[label_of(split, index)]
    random = np.random.Generator(np.random.PCG64([_SPLIT_CODES[split], index]))
    tones = _draw_patchwork(_PATTERNS[name], _SIZES[name], random) + _draw_noise(random)
    gray = np.rint(255 * np.clip(tones, 0, 1)).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def _draw_patchwork(pattern: Pattern, size: float, random: np.random.Generator) -> Floats:
    """An image's tones, ``(48, 48)``: cells that each show a plane of the pattern of their own."""
    x, y = np.meshgrid(*[(np.arange(_SAMPLES) + 0.5) / _SUPERSAMPLING] * 2)
    cell = _draw_cells(x, y, random)
    angle, period, shift_u, shift_v, mean, contrast = random.random((6, _CELLS**2))
    angle, period = 2 * math.pi * angle, size * _between(_PERIOD_PIXELS, period)
    along, across = (np.cos(angle) / period)[cell], (np.sin(angle) / period)[cell]
    u = along * x - across * y + _SHIFT_PERIODS * shift_u[cell]
    v = across * x + along * y + _SHIFT_PERIODS * shift_v[cell]
    light, dark = _tones_of(pattern, _between(_MEAN_TONE, mean), _between(_CONTRAST, contrast))
    tones = np.where(pattern(u, v), light[cell], dark[cell])
    pixels: Floats = tones.reshape(IMAGE_SIZE, _SUPERSAMPLING, IMAGE_SIZE, -1).mean(axis=(1, 3))
    return pixels


def _between(bounds: tuple[float, float], share: Floats) -> Floats:
    low, high = bounds
    return low + (high - low) * share


def _draw_cells(x: Floats, y: Floats, random: np.random.Generator) -> npt.NDArray[np.intp]:
    """Which of the sites, a grid moved at random, is nearest to each position."""
    grid = np.indices((_CELLS, _CELLS)).reshape(2, -1) + 0.5
    sites = grid + _CELL_JITTER * (2 * random.random(grid.shape) - 1)
    site_x, site_y = sites[:, :, None, None] * (IMAGE_SIZE / _CELLS)
    nearest: npt.NDArray[np.intp] = ((x - site_x) ** 2 + (y - site_y) ** 2).argmin(axis=0)
    return nearest


@cache
def _fill(pattern: Pattern) -> float:
    """Part of the plane that a pattern covers, in (0, 1)."""
    steps = (np.arange(240) + 0.5) / 10
    return float(pattern(*np.meshgrid(steps, steps)).mean())


def _tones_of(pattern: Pattern, mean: Floats, contrast: Floats) -> tuple[Floats, Floats]:
    """The pattern's tone and the background's: mean and deviation do not depend on the class."""
    odds = math.sqrt((1 - _fill(pattern)) / _fill(pattern))
    return mean + contrast * odds, mean - contrast / odds


def _draw_noise(random: np.random.Generator) -> Floats:
    """Independent uniform noise per pixel; of one strength, which crops could not hide."""
    noise: Floats = _NOISE * (2 * random.random((IMAGE_SIZE, IMAGE_SIZE)) - 1)
    return noise
