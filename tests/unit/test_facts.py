"""Channel statistics are exact where all is measured, and come from few images where asked."""

from pathlib import Path

import numpy as np
import pytest

from fastmoco.data import encode, facts
from fastmoco.data.beton import BetonFile
from fastmoco.data.convert import Check, ConvertConfig, Encoding, Statistics, _measured, convert
from fastmoco.data.facts import channel_moments, channel_statistics
from fastmoco.data.verify import describe
from tests.pictures import encoded, picture


@pytest.mark.parametrize("count", [1, 511, 512, 3 * 512 + 7, 512 * 4096 + 513])
@pytest.mark.parametrize("level", [None, 255])
def test_moments_are_exact(count: int, level: int | None) -> None:
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (count, 3), dtype=np.uint8)
    pixels = pixels if level is None else np.full_like(pixels, level)
    levels = pixels.astype(np.int64)
    assert facts._MAX_ROWS * 255**2 < 1 << 32  # else the sums of so many would wrap around
    expected = [[count] * 3, levels.sum(0), (levels**2).sum(0)]
    assert np.array_equal(channel_moments(pixels), expected)
    found = channel_statistics(channel_moments(pixels))
    assert np.allclose(found["channel_mean"], pixels.mean(0) / 255, atol=1e-6)
    assert np.allclose(found["channel_std"], pixels.std(0) / 255, atol=1e-6)


def test_a_set_of_one_tone_has_no_deviation(tmp_path: Path) -> None:
    """Rounded, its variance would be negative for some tones, and the deviation no number."""
    for tone in range(256):
        pixels = np.full((7, 3), tone, np.uint8)
        assert channel_statistics(channel_moments(pixels))["channel_std"] == [0, 0, 0]
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "x.png").write_bytes(encoded(np.full((9, 9, 3), 77, np.uint8), "PNG"))
    convert(str(tmp_path / "src"), tmp_path / "x.beton", ConvertConfig(encoding=Encoding.raw))
    with BetonFile.open(tmp_path / "x.beton") as beton:
        assert beton.facts["channel_std"] == [0, 0, 0]


@pytest.mark.parametrize(
    ("count", "options", "expected"),
    [
        (50_000, {}, 50_000),
        (50_001, {}, 10_000),
        (9_000, {"statistics": Statistics.sample}, 9_000),
        (60_000, {"statistics": Statistics.exact}, 60_000),
        (60_000, {"statistics": Statistics.none}, 0),
        (100, {"check": Check.header}, 100),
        (1_500, {"check": Check.header}, 128),
        (48_000, {"check": Check.header}, 3_000),
        (1_281_167, {"check": Check.header}, 10_000),
        (1_500, {"check": Check.header, "statistics": Statistics.exact}, 1_500),
    ],
)
def test_how_many_images_are_measured(
    count: int, options: dict[str, object], expected: int
) -> None:
    measured = _measured(count, ConvertConfig(**options))
    assert len(measured) == count
    assert measured.sum() == expected
    halves = measured[: count // 2].sum(), measured[count // 2 :].sum()
    assert abs(halves[0] - halves[1]) <= 1 + 0.1 * expected  # over the whole source


def test_a_check_of_headers_decodes_no_more_than_it_measures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "src").mkdir()
    for index in range(300):
        (tmp_path / "src" / f"{index}.jpg").write_bytes(encoded(picture(index % 5)))
    decoded = []
    real = encode.decode_jpeg
    monkeypatch.setattr(encode, "decode_jpeg", lambda blob: (decoded.append(0), real(blob))[1])
    monkeypatch.setattr(encode, "prove_jpeg", lambda *_: decoded.append(1))
    target = tmp_path / "x.beton"
    convert(str(tmp_path / "src"), target, ConvertConfig(check=Check.header))
    assert decoded == [0] * 128
    decoded.clear()
    convert(str(tmp_path / "src"), target, ConvertConfig(statistics=Statistics.none))
    assert decoded == [1] * 300
    with BetonFile.open(target) as beton:
        assert "channel_mean" not in beton.facts


def test_info_prints_the_deviation_over_pixels_and_that_of_images(tmp_path: Path) -> None:
    """Two images of other tones: each has its own spread, and all pixels a larger one."""
    images = [np.full((8, 8, 3), tone, np.uint8) for tone in (50, 200)]
    for number, pixels in enumerate(images):
        pixels[::2] += 10
        (tmp_path / "src").mkdir(exist_ok=True)
        (tmp_path / "src" / f"{number}.png").write_bytes(encoded(pixels, "PNG"))
    convert(str(tmp_path / "src"), tmp_path / "x.beton", ConvertConfig(encoding=Encoding.raw))
    found = describe(tmp_path / "x.beton")
    own = np.mean([pixels.std((0, 1)) for pixels in images], axis=0) / 255
    assert found["channel_std_per_image"] == pytest.approx(own, abs=1e-4)
    assert found["channel_std"] == pytest.approx(np.stack(images).std((0, 1, 2)) / 255, abs=1e-4)
