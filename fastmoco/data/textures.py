"""The built-in image set: ten classes of gray textures, made by code.

It serves the demo and the tests, so it needs no download and must not be easy: the class is the
structure of a two-tone pattern and nothing else. Angle, period, phase, bend, mean tone, contrast,
which tone is the darker, light and noise are drawn alike for every class. The pattern is laid in a
ring around a far center, so that its angle and period change across the image: two crops of it
share the structure, and little else by which one could tell images apart. Raw pixels and untrained
encoders tell little (kNN, k = 20: 16% and 12 to 13%), while crops, flips and jitter leave the class
intact (supervised, 8 epochs: 99%). With straight rows pixels reach 22% (36% without bends), and
MoCo tells images by their angles instead. Colored shapes on clutter, tried first, stay at chance
under MoCo, which tells instances by the clutter.

A pattern maps coordinates ``(u, v)``, in periods and already rotated and shifted, to a boolean
mask of the same shape. Each fills 39 to 59% of the plane and has its strongest spatial frequency
at 0.7 to 1.3 cycles per unit, a spread like that of the periods drawn, so that neither tone nor
frequency gives it away.
"""

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]

IMAGE_SIZE = 48
SPLIT_SIZES: dict[str, int] = {"train": 6000, "test": 1200}

_SPLIT_CODES = {"train": 1, "test": 2}
_SUPERSAMPLING = 2  # samples per pixel and axis; their mean is the antialiasing
_PERIOD_PIXELS = (6.0, 11.0)  # a crop of a fifth of the image (21 pixels) still shows a period
_MEAN_TONE = (0.40, 0.60)
_CONTRAST = (0.09, 0.17)  # standard deviation of the two tones around their mean
_LIGHT = 0.12  # largest change of tone from the center to the edge
_NOISE = 0.04  # half width of the uniform noise
_SHIFT_PERIODS = 64.0
_BEND_PERIODS = (0.05, 0.3)  # height of the waves that bend the pattern
_BEND_LENGTH = (3.5, 6.0)  # length of those waves in periods
_RING_PIXELS = (40.0, 60.0)  # from the image's center to the ring's, which lies outside of it

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


_PATTERNS: dict[str, Callable[[Floats, Floats], Mask]] = {
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
    pattern = _PATTERNS[CLASS_NAMES[label_of(split, index)]]
    random = np.random.Generator(np.random.PCG64([_SPLIT_CODES[split], index]))
    coverage = _draw_pattern(pattern, random)
    tones = _draw_tones(coverage, random) + _draw_light(random) + _draw_noise(random)
    gray = np.rint(255 * np.clip(tones, 0, 1)).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2)


def _uniform(random: np.random.Generator, low: float, high: float) -> float:
    return low + (high - low) * random.random()


def _positions(samples: int) -> Floats:
    """Centers of ``samples`` equal parts of the image's side, in pixels from its center."""
    parts: Floats = (np.arange(samples, dtype=np.float64) + 0.5) * (
        IMAGE_SIZE / samples
    ) - IMAGE_SIZE / 2
    return parts


def _draw_pattern(pattern: Callable[[Floats, Floats], Mask], random: np.random.Generator) -> Floats:
    """Part of each pixel that the pattern covers, ``(48, 48)`` in [0, 1]."""
    angle = _uniform(random, -math.pi, math.pi)
    period = _uniform(random, *_PERIOD_PIXELS)
    shift_u, shift_v = _SHIFT_PERIODS * random.random(2)
    positions = _positions(IMAGE_SIZE * _SUPERSAMPLING)
    plane = _draw_ring(positions, random) * (complex(math.cos(angle), math.sin(angle)) / period)
    u = plane.real + shift_u + _draw_bend(positions / period, random)
    v = plane.imag + shift_v + _draw_bend(positions / period, random)
    cells = pattern(u, v).reshape(IMAGE_SIZE, _SUPERSAMPLING, IMAGE_SIZE, _SUPERSAMPLING)
    covered: Floats = cells.mean(axis=(1, 3))
    return covered


def _draw_ring(positions: Floats, random: np.random.Generator) -> npt.NDArray[np.complex128]:
    """The plane laid in a ring, in pixels: the complex logarithm, which keeps right angles.

    At the image's center it is as large as before; nearer to the ring's center it is smaller.
    """
    direction, distance = _uniform(random, 0, 2 * math.pi), _uniform(random, *_RING_PIXELS)
    toward = complex(math.cos(direction), -math.sin(direction)) / distance
    offsets = positions[None, :] + 1j * positions[:, None]
    logarithm: npt.NDArray[np.complex128] = np.log(1 + toward * offsets, dtype=np.complex128)
    return distance * logarithm


def _draw_bend(positions: Floats, random: np.random.Generator) -> Floats:
    """A slow wave over the plane, in periods: no two images have lines that match throughout."""
    height = _uniform(random, *_BEND_PERIODS)
    angle, length = _uniform(random, 0, 2 * math.pi), _uniform(random, *_BEND_LENGTH)
    x = 2 * math.pi * (math.cos(angle) / length * positions + random.random())
    y = 2 * math.pi * math.sin(angle) / length * positions
    # The sine of a sum, from sines of one axis only.
    wave: Floats = np.outer(np.cos(y), np.sin(x))
    wave += np.outer(np.sin(y), np.cos(x))
    wave *= height
    return wave


def _draw_tones(coverage: Floats, random: np.random.Generator) -> Floats:
    """Two gray tones; their mean and deviation over the image do not depend on the class."""
    mean, deviation = _uniform(random, *_MEAN_TONE), _uniform(random, *_CONTRAST)
    sign = 1.0 if random.random() < 0.5 else -1.0
    tones: Floats = mean + sign * deviation * (coverage - coverage.mean()) / coverage.std()
    return tones


def _draw_light(random: np.random.Generator) -> Floats:
    """A linear change of tone across the image, of random strength and direction."""
    angle, strength = _uniform(random, 0, 2 * math.pi), _uniform(random, 0, _LIGHT)
    toward = _positions(IMAGE_SIZE) * (2 * strength / IMAGE_SIZE)
    light: Floats = math.cos(angle) * toward[None, :] + math.sin(angle) * toward[:, None]
    return light


def _draw_noise(random: np.random.Generator) -> Floats:
    """Independent uniform noise per pixel; of one strength, which crops could not hide."""
    noise: Floats = _NOISE * (2 * random.random((IMAGE_SIZE, IMAGE_SIZE)) - 1)
    return noise
