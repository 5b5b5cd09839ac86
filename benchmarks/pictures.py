"""JPEGs to measure with: many at little cost, with the statistics of photographs.

A photograph's amplitude falls as 1/f with spatial frequency f (Field 1987), and its color channels
are correlated. Random phases make a field of it that is periodic, so that shifts and flips of a few
dozens of them are as many different pictures as wanted. Or one's own images, evenly chosen.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg  # type: ignore[import-untyped]
from numpy.typing import NDArray

NUM_CLASSES = 10
SUFFIXES = (".jpg", ".jpeg")
PHOTOGRAPH_SHAPE = (375, 500)
PHOTOGRAPH_BYTES = (100_000, 120_000)  # bounds of the mean; ImageNet's is 110 KB
QUALITY = 95
CONTRASTS = (15.0, 26.0)  # standard deviations, of 255; at QUALITY they make 110 KB a photograph
FIELDS = 32
# Red, green and blue of brightness and of two opponent colors, as in natural scenes.
COLORS = np.array([[1.0, 1.0, 1.0], [0.3, 0.0, -0.3], [-0.1, 0.2, -0.1]])


@dataclass(frozen=True, slots=True)
class Source:
    """A tree of class folders of JPEGs.

    Attributes:
        name: What they are and how large on average, for the report.
        folder: The tree.
        count: How many.
        num_bytes: Of all files.
    """

    name: str
    folder: Path
    count: int
    num_bytes: int


def make_photographs(folder: Path, count: int, own: Path | None) -> Source:
    """Photographs of ImageNet's size made by code, or as many as there are of one's own.

    Raises:
        ValueError: If the folder that is named as one's own holds no JPEG.
    """
    if own is not None:
        return gather(own, folder, count, f"JPEGs of {own.name}")
    num_bytes = write_photographs(folder, count)
    return _source("photographs of 500 x 375", folder, count, num_bytes)


def make_thumbnails(folder: Path, count: int, cifar: Path | None) -> Source:
    """CIFAR-10's JPEGs, all or evenly chosen, or a stand-in that says so.

    Raises:
        ValueError: If the folder that is named as CIFAR-10's holds no JPEG.
    """
    if cifar is not None:
        return gather(cifar, folder, count, "JPEGs of CIFAR-10")
    num_bytes = write_thumbnails(folder, count)
    return _source("JPEGs of 32 x 32, a stand-in for CIFAR-10", folder, count, num_bytes)


def gather(images: Path, tree: Path, count: int, name: str) -> Source:
    """Copies JPEGs, evenly chosen from a folder and all below it, into class folders.

    Args:
        images: Where they lie; a folder within it is a class, the folder itself one more.
        tree: Where they go.
        count: The most that are taken.
        name: What they are.

    Raises:
        ValueError: If there are none.
    """
    paths = sorted(path for path in images.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise ValueError(f"{images} holds no {' or '.join(SUFFIXES)}; name a folder of JPEGs")
    count, num_bytes = min(count, len(paths)), 0
    for number in range(count):
        path = paths[number * len(paths) // count]
        class_name = "-".join(path.parent.relative_to(images).parts) or "images"
        target = tree / class_name / f"{number:06}{path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        num_bytes += target.stat().st_size
    return _source(name, tree, count, num_bytes)


def _source(name: str, folder: Path, count: int, num_bytes: int) -> Source:
    each = f"{num_bytes / count / 1e3:.3g} kB each"
    return Source(f"{count:,} {name}, {each}", folder, count, num_bytes)


def read_blobs(source: str, count: int = 256) -> list[bytes]:
    """The first JPEGs of a tree, as they are stored."""
    paths = sorted(path for path in Path(source).rglob("*") if path.suffix.lower() in SUFFIXES)
    return [path.read_bytes() for path in paths[:count]]


def write_photographs(folder: Path, count: int, seed: int = 0) -> int:
    """Makes a tree of class folders of photographs of ImageNet's size, 500 x 375 pixels.

    Args:
        folder: Where.
        count: How many.
        seed: Same seed, same files.

    Returns:
        Their bytes in total; the mean is within `PHOTOGRAPH_BYTES`.
    """
    rng = np.random.default_rng(seed)
    fields = [natural_picture(rng, PHOTOGRAPH_SHAPE) for _ in range(min(FIELDS, count))]
    total = 0
    for number in range(count):
        total += _write_jpeg(folder, number, _varied(fields[number % len(fields)], rng))
    low, high = PHOTOGRAPH_BYTES
    assert low <= total / count <= high, f"{total / count:.0f} bytes each are no photographs"
    return total


def write_thumbnails(folder: Path, count: int, seed: int = 0) -> int:
    """Makes a tree like CIFAR-10's, of 32 x 32 pixels; 1/f pictures are so at every scale.

    Returns:
        Their bytes in total.
    """
    rng = np.random.default_rng(seed)
    fields = [natural_picture(rng, (256, 256)) for _ in range(FIELDS)]
    return sum(
        _write_jpeg(folder, number, _varied(fields[number % FIELDS], rng)[:32, :32])
        for number in range(count)
    )


def natural_picture(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.uint8]:
    """A periodic picture, ``(H, W, 3)`` uint8 RGB, of a contrast drawn from `CONTRASTS`."""
    fields = np.stack([_natural_field(rng, shape) for _ in COLORS], axis=-1)
    pixels: NDArray[np.float64] = 128 + rng.uniform(*CONTRASTS) * fields @ COLORS
    return pixels.round().clip(0, 255).astype(np.uint8)


def _natural_field(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float64]:
    """Amplitude 1/f, random phase, mean 0, standard deviation 1."""
    height, width = shape
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    phases = np.exp(2j * np.pi * rng.random(frequency.shape))
    field = np.fft.irfft2(phases / frequency, shape)
    return np.asarray(field / field.std())


def _varied(pixels: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Shifted around by any number of pixels, and flipped or not."""
    height, width, _ = pixels.shape
    shifted = np.roll(pixels, (rng.integers(height), rng.integers(width)), (0, 1))
    return shifted[:, ::-1] if rng.random() < 0.5 else shifted


def _write_jpeg(folder: Path, number: int, pixels: NDArray[np.uint8]) -> int:
    blob: bytes = simplejpeg.encode_jpeg(
        np.ascontiguousarray(pixels), quality=QUALITY, colorspace="RGB", colorsubsampling="420"
    )
    path = folder / f"class_{number % NUM_CLASSES}" / f"{number:06}.jpg"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.write_bytes(blob)
