"""Rows of small images, filled without Python, are those of the twin that fills them by it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmoco.data.beton import BetonError, BetonFile
from fastmoco.data.convert import ConvertConfig, Encoding, convert
from fastmoco.data.dataset import Dataset, open_dataset
from fastmoco.data.stored_rows import stored_rows
from fastmoco.pipelines.build import build_loader
from fastmoco.pipelines.contract import EpochPlan
from fastmoco.pipelines.small_rows import SmallRows
from tests.loader_data import picture, training, use_decode, write_beton

NUM_SAMPLES, BATCH = 16, 8
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of JPEGs, one of pixels, and two shards; one image is large, one progressive."""
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(1)
    (folder / "images" / "class0").mkdir(parents=True)
    picture(rng, 140, 40).save(folder / "images" / "class0" / "large.jpg")
    picture(rng, 50, 40).save(folder / "images" / "class0" / "scans.jpg", progressive=True)
    write_beton(folder, NUM_SAMPLES - 2).close()
    source = str(folder / "images")
    convert(source, folder / "raw.beton", ConvertConfig(encoding=Encoding.raw))
    convert(source, folder / "part.beton", ConvertConfig(shards=2))
    return folder


@pytest.fixture(params=["set.beton", "raw.beton", "part-*.beton"])
def dataset(folder: Path, request: pytest.FixtureRequest) -> Iterator[Dataset]:
    with open_dataset(folder / request.param) as dataset:
        yield dataset


def crops(dataset: Dataset) -> torch.Tensor:
    plan = EpochPlan(seed=0, epoch=0, num_samples=NUM_SAMPLES, global_batch_size=BATCH)
    arguments = {"spec": training(num_threads=2), "stop_epoch": 2, "device": CPU, "name": "beton"}
    return torch.cat([batch.crops.clone() for batch in build_loader(dataset, plan, **arguments)])


def test_crops_are_those_of_the_twin(dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    left: list[int] = []
    filled = SmallRows.__call__

    def counted(self: SmallRows, *arguments) -> list[int]:
        left.extend(rows := filled(self, *arguments))
        return rows

    monkeypatch.setattr(SmallRows, "__call__", counted)
    found = crops(dataset)
    # In each of two epochs the large image is left, and the progressive one where it is a JPEG.
    assert len(left) == (2 if "raw" in dataset.path.name else 4)
    use_decode(monkeypatch)
    assert torch.equal(found, crops(dataset))
    assert found.float().std() > 30


def test_damaged_image_among_good_ones_is_named_and_the_others_are_filled(
    folder: Path, tmp_path: Path
) -> None:
    content = bytearray((folder / "set.beton").read_bytes())
    with BetonFile.open(folder / "set.beton") as intact:
        bad = next(i for i in range(NUM_SAMPLES) if intact.heights[i] == 48)
        content[content.index(bytes(intact.blob(bad))) + 250] ^= 1
    (tmp_path / "set.beton").write_bytes(content)
    with BetonFile.open(tmp_path / "set.beton") as damaged:
        with pytest.raises(BetonError, match=f"sample {bad} .*checksum") as caught:
            crops(damaged)
        assert caught.value.__notes__ == [f"while loading {damaged.name(bad)}"]


def test_a_closed_file_is_left_to_the_twin(folder: Path) -> None:
    with BetonFile.open(folder / "set.beton") as beton:
        pass
    with pytest.raises(BetonError, match="is closed"):
        crops(beton)


def test_without_checksums_all_rows_are_left_to_the_twin(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with BetonFile.open(folder / "set.beton") as beton:
        assert stored_rows(beton) is not None
        monkeypatch.setattr(beton, "checksums", None)  # as in files of FFCV
        assert stored_rows(beton) is None


def test_a_set_of_large_images_is_left_to_the_twin(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is compiled for it."""
    with BetonFile.open(folder / "set.beton") as beton:
        assert SmallRows.of(beton) is not None
        monkeypatch.setattr(beton, "heights", beton.heights + 100)
        assert SmallRows.of(beton) is None


def test_a_folder_of_images_is_left_to_the_twin(folder: Path) -> None:
    with open_dataset(folder / "images") as images:
        assert stored_rows(images) is None
