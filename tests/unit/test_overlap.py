"""Images in training and test set alike: their count, and when they are refused."""

from pathlib import Path

import numpy as np
import pytest

from fastmoco.data.convert import ConvertConfig, Encoding, convert
from fastmoco.data.dataset import Dataset, open_dataset
from fastmoco.data.shared_images import count_shared
from fastmoco.errors import UsageError
from fastmoco.evaluate.overlap import check_overlap
from fastmoco.evaluate.results import better_baselines
from tests.pictures import encoded, picture


def write(folder: Path, seeds: range) -> Path:
    folder.mkdir(parents=True)
    for seed in seeds:
        (folder / f"{seed}.jpg").write_bytes(encoded(picture(seed, 40, 56)))
    return folder


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Images 0 to 11 to train on, 9 to 15 to test on, as folders, files, shards and raw pixels."""
    root = tmp_path_factory.mktemp("overlap")
    for name, seeds in {"train": range(12), "test": range(9, 16), "other": range(16, 18)}.items():
        folder = str(write(root / name, seeds))
        convert(folder, root / f"{name}.beton", ConvertConfig())
        convert(folder, root / f"{name}-raw.beton", ConvertConfig(encoding=Encoding.raw))
        convert(folder, root / f"{name}_set.beton", ConvertConfig(shards=2))
    return root


@pytest.mark.parametrize("train", ["train", "train.beton", "train_set-*.beton"])
@pytest.mark.parametrize("test", ["test", "test.beton", "test_set-*.beton"])
def test_shared_images_are_counted_whatever_holds_them(root: Path, train: str, test: str) -> None:
    with open_dataset(root / train) as one, open_dataset(root / test) as other:
        assert count_shared(one, other) == 3
        assert count_shared(other, one) == 3
        with open_dataset(root / "other") as apart:
            assert count_shared(one, apart) == 0


def test_raw_pixels_of_one_size_are_compared_too(root: Path) -> None:
    with (
        open_dataset(root / "train-raw.beton") as one,
        open_dataset(root / "test-raw.beton") as two,
    ):
        assert len(np.unique(one.sizes)) == 1
        assert count_shared(one, two) == 3


def test_files_with_checksums_are_not_read(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_dataset(root / "train.beton") as one, open_dataset(root / "test.beton") as two:
        monkeypatch.setattr(type(one), "blob", None)
        assert count_shared(one, two) == 3


def checked(train: Dataset, test: Dataset, *, is_allowed: bool = False) -> int:
    return check_overlap(train, test, is_allowed=is_allowed)


def test_the_same_set_is_refused_by_any_path(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "link.beton").symlink_to(root / "train.beton")
    (root / "link").symlink_to(root / "train")
    monkeypatch.chdir(root / "train")
    for one, other in (
        ("train.beton", "link.beton"),
        ("train.beton", "train/../train.beton"),
        ("train", "link"),
        ("train_set-*.beton", "train_set-*.beton"),
    ):
        with open_dataset(root / one) as train, open_dataset(root / other) as test:
            with pytest.raises(UsageError, match=r"same images.*leave_one_out=true.*holdout=0\.2"):
                checked(train, test)
            assert checked(train, test, is_allowed=True) == 12
    with open_dataset("../train.beton") as train, open_dataset(root / "train.beton") as test:
        with pytest.raises(UsageError, match="are the same images"):
            checked(train, test)


def test_up_to_one_percent_is_said_and_more_is_refused(root: Path, tmp_path: Path) -> None:
    for count in (300, 299):  # 3 of them shared: 1% and a little more
        convert(
            str(write(tmp_path / str(count), range(9, 9 + count))),
            tmp_path / f"{count}.beton",
            ConvertConfig(workers=1),
        )
    with open_dataset(root / "train.beton") as train:
        with open_dataset(root / "other.beton") as test:
            assert checked(train, test) == 0
        with open_dataset(tmp_path / "300.beton") as test:
            assert checked(train, test) == 3
        with open_dataset(tmp_path / "299.beton") as test:
            with pytest.raises(
                UsageError, match=r"3 of the 299 images .* \(1.00%\).*allow_overlap"
            ):
                checked(train, test)
            assert checked(train, test, is_allowed=True) == 3


def test_baselines_that_are_better_are_said() -> None:
    assert better_baselines(40.0, {"untrained": 30.0, "pixels": 40.0}, 40) == ""
    said = better_baselines(17.5, {"untrained": 28.78, "pixels": 35.36}, 100)
    assert said.startswith("17.50% is below the untrained encoder (28.78%) and raw pixels (35.36%)")
    assert said.endswith("(standard error 3.8 points, 100 test images)")
    assert "pretraining did not help here" in said
    assert "training from scratch (50.15%)" in better_baselines(49.5, {"random": 50.15}, 9)


def test_a_difference_within_two_standard_errors_is_not_called_worse() -> None:
    said = better_baselines(85.0, {"untrained": 76.67, "pixels": 88.33}, 60)
    assert said.startswith("85.00% is not clearly above raw pixels (88.33%): too few test images")
    assert said.endswith("(standard error 4.6 points, 60 test images)")
