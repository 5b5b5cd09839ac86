"""A dataset in several files: what goes where, and that they read as one."""

from pathlib import Path

import numpy as np
import pytest

from fastmoco.data import conversion
from fastmoco.data.beton import BetonError, BetonFile
from fastmoco.data.beton_set import BetonSet
from fastmoco.data.convert import ConvertConfig, convert
from fastmoco.data.dataset import open_dataset
from fastmoco.data.shards import shard_path, shard_samples
from fastmoco.data.verify import describe, verify
from tests.pictures import encoded, picture, write_class_folders

SHARDS = 3


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "src"
    write_class_folders(root, classes=3, per_class=10)
    (root / "class_1" / "bad.jpg").write_bytes(b"no image")
    return root


@pytest.fixture
def whole(folder: Path, tmp_path: Path) -> Path:
    convert(str(folder), tmp_path / "whole.beton", ConvertConfig())
    return tmp_path / "whole.beton"


def test_shards_are_equal_and_mix_classes() -> None:
    count, shards = 10_007, 8
    parts = [shard_samples(count, shard, shards) for shard in range(shards)]
    assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(count))
    assert {len(part) for part in parts} == {count // shards, count // shards + 1}
    classes = np.arange(count) * 10 // count  # sorted, as class folders are
    for part in parts:
        assert (np.diff(part) > 0).all()
        shares = np.bincount(classes[part], minlength=10) / len(part)
        assert np.abs(shares - 0.1).max() < 0.03


def test_shards_read_as_one_file(folder: Path, whole: Path, tmp_path: Path) -> None:
    target = tmp_path / "train.beton"
    summary = convert(str(folder), target, ConvertConfig(shards=SHARDS))
    pattern = tmp_path / "train-*.beton"
    assert (summary.num_samples, summary.num_quarantined, summary.path) == (30, 1, pattern)
    assert not target.exists()
    with open_dataset(pattern) as dataset, BetonFile.open(whole) as single:
        assert isinstance(dataset, BetonSet)
        assert len(dataset) == len(single) == 30
        assert dataset.fingerprint == summary.fingerprint
        assert dataset.classes == single.classes
        assert np.allclose(dataset.facts["channel_mean"], single.facts["channel_mean"], atol=2e-6)
        assert np.allclose(dataset.facts["channel_std"], single.facts["channel_std"], atol=2e-6)
        places = {single.name(i): i for i in range(30)}
        for sample in range(30):
            place = places.pop(dataset.name(sample))
            assert dataset.labels[sample] == single.labels[place]
            assert dataset.blob(sample) == single.blob(place)
            assert np.array_equal(dataset.decode(sample), single.decode(place))
            assert dataset.decode(sample).shape[:2] == (
                dataset.heights[sample],
                dataset.widths[sample],
            )
        assert not places
        for outside in (-1, 30):
            with pytest.raises(IndexError, match="no sample"):
                dataset.blob(outside)
    assert verify(pattern).num_samples == describe(pattern)["num_samples"] == 30
    assert describe(pattern)["num_files"] == SHARDS


def test_one_shard_each_makes_the_same_files(folder: Path, tmp_path: Path) -> None:
    whole = convert(str(folder), tmp_path / "all" / "t.beton", ConvertConfig(shards=SHARDS))
    assert whole.next == f"fastmoco train experiment=own 'data.train={tmp_path}/all/t-*.beton'"
    for number in range(SHARDS):
        options = ConvertConfig(shard=f"{number}/{SHARDS}")
        part = convert(str(folder), tmp_path / "each" / "t.beton", options)
        assert "fastmoco train" not in part.to_text()  # the others are made elsewhere
    for path in (tmp_path / "all").iterdir():
        assert (tmp_path / "each" / path.name).read_bytes() == path.read_bytes()


def test_shards_that_are_done_are_not_made_again(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "t.beton"
    convert(str(folder), tmp_path / "alone" / "t.beton", ConvertConfig(shards=SHARDS))
    real = conversion._Conversion._encode_rest
    calls = []

    def fail_in_the_second(self: conversion._Conversion) -> None:
        calls.append(self.job.target.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        real(self)

    monkeypatch.setattr(conversion._Conversion, "_encode_rest", fail_in_the_second)
    with pytest.raises(KeyboardInterrupt, match="the same command resumes"):
        convert(str(folder), target, ConvertConfig(shards=SHARDS))
    summary = convert(str(folder), target, ConvertConfig(shards=SHARDS))
    first, second, third = (shard_path(target, i, SHARDS).name for i in range(SHARDS))
    assert calls == [first, second, second, third]
    assert summary.num_resumed == 11
    assert {p.name: p.read_bytes() for p in tmp_path.glob("t-*")} == {
        p.name: p.read_bytes() for p in (tmp_path / "alone").iterdir()
    }


def test_incomplete_and_mixed_sets_are_refused(folder: Path, tmp_path: Path) -> None:
    target = tmp_path / "t.beton"
    convert(str(folder), target, ConvertConfig(shards=SHARDS))
    with pytest.raises(FileNotFoundError, match="no such files"):
        open_dataset(tmp_path / "other-*.beton")
    convert(str(folder), tmp_path / "t-more.beton", ConvertConfig())
    with pytest.raises(ValueError, match="not the shards of one set"):
        open_dataset(tmp_path / "t-*.beton")
    (tmp_path / "t-more.beton").unlink()
    shard_path(target, 1, SHARDS).unlink()
    with pytest.raises(ValueError, match=r"1 of 3 shards are missing, such as t-00001-of-00003"):
        open_dataset(tmp_path / "t-*.beton")
    other = tmp_path / "other"
    write_class_folders(other, classes=2)
    convert(str(other), target, ConvertConfig(shard=f"1/{SHARDS}"))
    with pytest.raises(BetonError, match="its classes differ"):
        open_dataset(tmp_path / "t-*.beton")


@pytest.mark.parametrize(
    "options",
    [{"shard": "3/3"}, {"shard": "1"}, {"shard": "a/b"}, {"shard": "0/2", "shards": 3}],
)
def test_odd_shards_are_refused(options: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="shard="):
        ConvertConfig(**options)


def test_more_shards_than_images_are_refused(tmp_path: Path) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "x.jpg").write_bytes(encoded(picture(1)))
    with pytest.raises(ValueError, match="shards=2 is more than the 1 images"):
        convert(str(tmp_path / "src"), tmp_path / "x.beton", ConvertConfig(shards=2))
