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
    "stripes": (123.943, 127.796),
    "checker": (127.195, 121.296),
    "dots": (127.765, 130.631),
    "rings": (121.421, 125.524),
    "bricks": (139.215, 145.948),
    "zigzag": (123.320, 117.062),
    "grid": (130.730, 124.156),
    "scales": (137.725, 139.900),
    "blobs": (135.600, 137.975),
    "crosses": (123.636, 119.831),
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
    # Images of one class differ by 9 and 4 gray levels, and antialiasing takes up to 3 levels of
    # deviation from small patterns: a band of 3 standard errors either way.
    assert np.ptp(means.mean(axis=0)) < 2 * 3 * 9 / PER_CLASS**0.5
    assert np.ptp(deviations.mean(axis=0)) < 3 + 2 * 3 * 4 / PER_CLASS**0.5


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_tones_have_the_mean_and_contrast_asked_for(name: str) -> None:
    pattern = textures._PATTERNS[name]
    light, dark = textures._tones_of(pattern, np.array([0.4, 0.6]), np.array([0.1, 0.15]))
    plane = np.where(masks()[name][..., None], light, dark).reshape(-1, 2)
    np.testing.assert_allclose(plane.mean(axis=0), [0.4, 0.6], atol=1e-9)
    np.testing.assert_allclose(plane.std(axis=0), [0.1, 0.15], atol=1e-9)
    assert (light > dark).all()


def test_cells_are_patches_of_the_whole_image() -> None:
    positions = np.meshgrid(np.arange(IMAGE_SIZE) + 0.5, np.arange(IMAGE_SIZE) + 0.5)
    drawn = [textures._draw_cells(*positions, np.random.default_rng(i)) for i in range(50)]
    for cells in drawn:
        # Where sites are moved least, a cell has 256 pixels; a move of 0.4 cells takes or gives.
        assert np.bincount(cells.ravel(), minlength=9).min() > 60
        assert (cells[0, 0], cells[-1, -1]) == (0, 8)
    assert len({cells.tobytes() for cells in drawn}) == 50


def test_each_cell_has_a_plane_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without noise, in a patchwork of solid patterns, a cell shows its light tone alone."""
    monkeypatch.setattr(textures, "_SUPERSAMPLING", 1)
    monkeypatch.setattr(textures, "_SAMPLES", IMAGE_SIZE)

    def solid(u: npt.NDArray[np.float64], _: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
        return u > u.mean() if len(u) == 240 else np.ones(u.shape, np.bool_)

    tones = textures._draw_patchwork(solid, 1.0, np.random.default_rng(0))
    positions = np.meshgrid(np.arange(IMAGE_SIZE) + 0.5, np.arange(IMAGE_SIZE) + 0.5)
    cells = textures._draw_cells(*positions, np.random.default_rng(0))
    shown = [np.unique(tones[cells == cell]) for cell in range(9)]
    assert [len(values) for values in shown] == [1] * 9
    assert len({float(values[0]) for values in shown}) == 9


def test_patterns_fill_near_half_and_differ() -> None:
    for name, mask in masks().items():
        assert 0.35 < mask.mean() < 0.65, name
    for first, second in itertools.combinations(CLASS_NAMES, 2):
        agreement = float((masks()[first] == masks()[second]).mean())
        assert 0.15 < agreement < 0.85, (first, second)


def test_edges_are_antialiased(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(textures, "_tones_of", lambda *_: (np.ones(9), np.zeros(9)))
    coverage = textures._draw_patchwork(
        textures._PATTERNS["stripes"], 1.0, np.random.default_rng(0)
    )
    levels = np.unique(np.rint(coverage * textures._SUPERSAMPLING**2))
    assert len(levels) == textures._SUPERSAMPLING**2 + 1
    assert (coverage.min(), coverage.max()) == (0, 1)


@pytest.mark.parametrize("name", CLASS_NAMES)
def test_golden_images(name: str) -> None:
    gray = render("train", CLASS_NAMES.index(name))[..., 0].astype(np.float64)
    weighted = float(np.average(gray.ravel(), weights=np.arange(gray.size)))
    # A cosine that differs in its last bit may move one sample: far less than 0.05 gray levels.
    assert (float(gray.mean()), weighted) == pytest.approx(GOLDEN[name], abs=0.05)
