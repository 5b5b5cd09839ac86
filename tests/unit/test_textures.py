"""The built-in image set: pure, balanced, gray, and without a shortcut to its classes."""

import itertools
from functools import cache

import numpy as np
import numpy.typing as npt
import pytest

from fastmoco.data import textures
from fastmoco.data.textures import CLASS_NAMES, IMAGE_SIZE, SPLIT_SIZES, label_of, render

PER_CLASS = 20
COUNT = PER_CLASS * len(CLASS_NAMES)

# The first image of each class of the training split: mean gray level, and the mean weighted by
# the pixel's position in row-major order, which moving or turning the pattern changes.
GOLDEN = {
    "stripes": (117.419, 118.645),
    "checker": (103.550, 95.974),
    "dots": (111.656, 110.356),
    "rings": (130.667, 135.143),
    "bricks": (107.806, 104.347),
    "zigzag": (132.835, 138.216),
    "grid": (109.616, 108.880),
    "scales": (122.614, 121.400),
    "blobs": (138.690, 133.019),
    "crosses": (148.207, 154.698),
}


@cache
def first_images(split: str) -> npt.NDArray[np.uint8]:
    return np.stack([render(split, index) for index in range(COUNT)])


@cache
def masks() -> dict[str, npt.NDArray[np.bool_]]:
    """Each pattern on the same 24 x 24 periods."""
    steps = (np.arange(240) + 0.5) / 10
    u, v = np.meshgrid(steps, steps)
    return {name: pattern(u, v) for name, pattern in textures._PATTERNS.items()}


def test_images_are_gray_bytes() -> None:
    images = first_images("train")
    assert images.shape == (COUNT, IMAGE_SIZE, IMAGE_SIZE, 3)
    assert images.dtype == np.uint8
    assert (images == images[..., :1]).all()
    assert images.std(axis=(1, 2, 3)).min() > 15


def test_labels_are_balanced() -> None:
    for split, size in SPLIT_SIZES.items():
        labels = [label_of(split, index) for index in range(size)]
        assert np.bincount(labels).tolist() == [size // len(CLASS_NAMES)] * len(CLASS_NAMES)


def test_an_image_depends_on_split_and_index_alone() -> None:
    expected = first_images("test")
    for index in (13, 2, 13):
        np.random.seed(index)
        np.testing.assert_array_equal(render("test", index), expected[index])


def test_no_two_images_are_equal_within_or_between_splits() -> None:
    images = [*first_images("train"), *first_images("test")]
    assert len({image.tobytes() for image in images}) == 2 * COUNT


def test_the_label_names_the_pattern_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    before = [render("train", index) for index in range(10)]
    monkeypatch.setitem(textures._PATTERNS, "dots", textures._PATTERNS["stripes"])
    changed = [not np.array_equal(render("train", index), before[index]) for index in range(10)]
    expected = [CLASS_NAMES[label_of("train", index)] == "dots" for index in range(10)]
    assert changed == expected


@pytest.mark.parametrize(
    ("split", "index", "message"),
    [
        ("valid", 0, r"unknown split 'valid'; the built-in set has train, test"),
        ("train", 6000, r"index=6000 is not in 0\.\.5999 of split 'train'"),
        ("test", 1200, r"index=1200 is not in 0\.\.1199 of split 'test'"),
        ("test", -1, r"index=-1 is not in 0\.\.1199 of split 'test'"),
    ],
)
def test_unknown_images_are_refused(split: str, index: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        render(split, index)
    with pytest.raises(ValueError, match=message):
        label_of(split, index)


def test_tone_and_contrast_do_not_tell_the_class() -> None:
    gray = first_images("train")[..., 0].astype(np.float64)
    by_class = gray.reshape(PER_CLASS, len(CLASS_NAMES), -1)  # labels run 0..9, 0..9, ...
    means, deviations = by_class.mean(axis=2), by_class.std(axis=2)
    # Images of one class differ by 15 and 6 gray levels: a band of 3 standard errors either way.
    assert np.ptp(means.mean(axis=0)) < 2 * 3 * 15 / PER_CLASS**0.5
    assert np.ptp(deviations.mean(axis=0)) < 2 * 3 * 6 / PER_CLASS**0.5


@pytest.mark.parametrize("fill", [0.05, 0.5, 0.8])
def test_tones_have_the_drawn_mean_and_contrast_for_any_fill(fill: float) -> None:
    coverage = (np.arange(IMAGE_SIZE**2) < fill * IMAGE_SIZE**2).astype(np.float64)
    random = np.random.default_rng(0)
    drawn = [textures._draw_tones(coverage, random) for _ in range(100)]
    low, high = textures._MEAN_TONE
    assert all(low <= tones.mean() <= high for tones in drawn)
    low, high = textures._CONTRAST
    assert all(low <= tones.std() <= high for tones in drawn)
    assert 30 < sum(tones[0] > tones[-1] for tones in drawn) < 70


def test_patterns_fill_near_half_and_differ() -> None:
    for name, mask in masks().items():
        assert 0.35 < mask.mean() < 0.65, name
    for first, second in itertools.combinations(CLASS_NAMES, 2):
        agreement = float((masks()[first] == masks()[second]).mean())
        assert 0.15 < agreement < 0.85, (first, second)


def test_edges_are_antialiased() -> None:
    coverage = textures._draw_pattern(textures._PATTERNS["stripes"], np.random.default_rng(0))
    levels = np.unique(np.rint(coverage * textures._SUPERSAMPLING**2))
    assert len(levels) == textures._SUPERSAMPLING**2 + 1
    assert (coverage.min(), coverage.max()) == (0, 1)


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_golden_images(name: str) -> None:
    gray = render("train", CLASS_NAMES.index(name))[..., 0].astype(np.float64)
    weighted = float(np.average(gray.ravel(), weights=np.arange(gray.size)))
    # A cosine that differs in its last bit may move one sample: far less than 0.05 gray levels.
    assert (float(gray.mean()), weighted) == pytest.approx(GOLDEN[name], abs=0.05)
