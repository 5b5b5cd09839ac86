"""JPEGs read where they lie, against the dataset file that `convert` makes of them."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastmoco.data import source_set
from fastmoco.data.convert import ConvertConfig, convert
from fastmoco.data.dataset import Dataset, open_dataset
from fastmoco.data.jpeg_markers import ImageError
from fastmoco.data.source_set import SourceSet
from fastmoco.pipelines.build import build_loader
from fastmoco.pipelines.contract import Batch, EpochPlan
from tests.equivalence.test_loaders import assert_equal
from tests.loader_data import SIZES, picture, training
from tests.optional import require

CPU = torch.device("cpu")
NUM_SAMPLES = 12
ORIENTATION = 274


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve JPEGs in two class folders."""
    rng = np.random.default_rng(0)
    for i in range(NUM_SAMPLES):
        path = tmp_path / "photos" / f"class{i % 2}" / f"{i:03d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(rng, *SIZES[i % len(SIZES)]).save(path, quality=90)
    return tmp_path / "photos"


def pack(folder: Path) -> Path:
    """The same images as two tar shards."""
    images = sorted(folder.rglob("*.jpg"))
    for shard in range(2):
        with tarfile.open(folder.parent / f"photos-{shard}.tar", "w") as archive:
            for path in images[shard * 6 : shard * 6 + 6]:
                archive.add(path, path.name)
    return folder.parent / "photos-*.tar"


def load(dataset: Dataset, name: str) -> list[Batch]:
    plan = EpochPlan(seed=3, epoch=0, num_samples=NUM_SAMPLES, global_batch_size=4)
    loader = build_loader(dataset, plan, spec=training(), stop_epoch=2, device=CPU, name=name)
    return list(loader) if name == "dali" else [copied(batch) for batch in loader]


def copied(batch: Batch) -> Batch:
    fields = ("crops", "boxes", "sample_id", "draw_key", "label")
    return Batch(**{f: getattr(batch, f).clone() for f in fields}, data_wait_seconds=0)


@pytest.mark.parametrize("name", ["beton", "dali", "resident", "torchvision"])
@pytest.mark.parametrize("packed", [False, True], ids=["folder", "tar shards"])
def test_batches_are_those_of_the_converted_file(
    folder: Path, tmp_path: Path, name: str, packed: bool
) -> None:
    if name == "dali":
        require("nvidia.dali")
    source = pack(folder) if packed else folder
    convert(str(source), tmp_path / "set.beton", ConvertConfig(workers=1))
    with open_dataset(tmp_path / "set.beton") as file, open_dataset(source) as dataset:
        assert isinstance(dataset, SourceSet)
        assert len(dataset) == len(file) == NUM_SAMPLES
        assert dataset.classes == file.classes
        assert np.array_equal(dataset.sizes, file.sizes)
        assert [dataset.name(i) for i in range(12)] == [file.name(i) for i in range(12)]
        assert_equal(load(dataset, name), load(file, name))


def test_what_is_no_jpeg_that_can_be_read_is_left_out(folder: Path) -> None:
    image = picture(np.random.default_rng(1), 40, 40)
    image.save(folder / "class0" / "a.png")
    (folder / "class0" / "d.jpg").write_bytes(b"\xff\xd8\xff" + bytes(500))
    (folder / "class0" / "e.jpg").write_bytes(b"")
    with pytest.warns(
        UserWarning, match=r"3 of 15 .*first class0/a\.png: is not a JPEG.*fastmoco convert"
    ):
        dataset = open_dataset(folder)
    assert len(dataset) == NUM_SAMPLES
    assert dataset.labels.tolist() == [0] * 6 + [1] * 6
    assert "class0/a.png" not in [dataset.name(i) for i in range(NUM_SAMPLES)]


def broken_profile(blob: bytes) -> bytes:
    """The JPEG with the first of two parts of a color profile."""
    profile = b"ICC_PROFILE\0\x01\x02" + bytes(200)
    return blob[:2] + b"\xff\xe2" + (len(profile) + 2).to_bytes(2, "big") + profile + blob[2:]


@pytest.mark.parametrize("proved", [True, False])
def test_jpegs_that_convert_does_not_copy_are_read_as_it_stores_them(
    tmp_path: Path, proved: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not proved:
        monkeypatch.setattr(source_set, "PROVED_IMAGES", 0)
    photos = tmp_path / "photos"
    photos.mkdir()
    image = picture(np.random.default_rng(1), 40, 60)
    image.convert("CMYK").save(photos / "cmyk.jpg")
    image.save(photos / "rgb.jpg", keep_rgb=True)
    image.save(photos / "sampling.jpg", subsampling="4:1:1")
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        image.save(photos / f"turned{orientation}.jpg", exif=exif)
    for name in ("turned1", "turned6"):
        blob = (photos / f"{name}.jpg").read_bytes()
        (photos / f"{name}_broken_profile.jpg").write_bytes(broken_profile(blob))
    convert(str(photos), tmp_path / "set.beton", ConvertConfig(workers=1))
    with open_dataset(tmp_path / "set.beton") as file, open_dataset(photos) as dataset:
        assert len(dataset) == len(file) == 13
        assert dataset.heights.tolist() == file.heights.tolist()
        assert dataset.widths.tolist() == file.widths.tolist()
        for i in range(13):
            assert dataset.name(i) == file.name(i)
            assert np.array_equal(dataset.decode(i), file.decode(i)), dataset.name(i)
            if not dataset.name(i).startswith("turned1."):  # its EXIF is kept by `convert` too
                assert bytes(dataset.blob(i)) == bytes(file.blob(i)), dataset.name(i)


def test_a_turned_image_damaged_afterwards_is_named(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    exif = Image.Exif()
    exif[ORIENTATION] = 6
    picture(np.random.default_rng(1), 40, 60).save(photos / "a.jpg", exif=exif)
    with open_dataset(photos) as dataset:
        blob = (photos / "a.jpg").read_bytes()
        (photos / "a.jpg").write_bytes(blob[:-400] + bytes(400))
        with pytest.raises(ImageError, match=r"photos: a\.jpg: "):
            dataset.decode(0)


def test_a_damaged_image_is_left_out_with_its_reason(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = (folder / "class0" / "000.jpg").read_bytes()
    (folder / "class0" / "cut.jpg").write_bytes(good[: len(good) * 2 // 3])
    with pytest.warns(UserWarning, match=r"1 of 13 .*first class0/cut\.jpg.*; they are left out"):
        dataset = open_dataset(folder)
    assert isinstance(dataset, SourceSet)
    ((name, reason),) = dataset.left_out
    assert (name, len(dataset)) == ("class0/cut.jpg", NUM_SAMPLES)
    assert "cut" in reason or "damaged" in reason
    for sample_id in range(NUM_SAMPLES):
        dataset.decode(sample_id)
    monkeypatch.setattr(source_set, "PROVED_IMAGES", 12)  # of a larger set only headers are read
    assert len(open_dataset(folder)) == 13


def test_a_folder_without_a_usable_image_is_refused(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    picture(np.random.default_rng(1), 40, 40).save(tmp_path / "photos" / "a.png")
    with pytest.raises(ValueError, match=r"1 of 1 images .*is not a JPEG"):
        open_dataset(tmp_path / "photos")


@pytest.mark.parametrize("size", [20_000, 60_000])
def test_a_long_header_is_read_whole(tmp_path: Path, size: int) -> None:
    (tmp_path / "photos").mkdir()
    stream = io.BytesIO()
    picture(np.random.default_rng(1), 40, 50).save(stream, "JPEG")
    blob = stream.getvalue()
    comment = b"\xff\xfe" + (size + 2).to_bytes(2, "big") + bytes(size)
    (tmp_path / "photos" / "a.jpg").write_bytes(blob[:2] + comment + blob[2:])
    with open_dataset(tmp_path / "photos") as dataset:
        assert (dataset.heights.tolist(), dataset.widths.tolist()) == ([40], [50])
        assert dataset.decode(0).shape == (40, 50, 3)


def test_a_file_that_changes_afterwards_is_named(folder: Path) -> None:
    with open_dataset(folder) as dataset:
        cut = folder / dataset.name(2)
        cut.write_bytes(cut.read_bytes()[:-30])
        with pytest.raises(ImageError, match=f"{dataset.name(2)} was cut"):
            dataset.decode(2)
        other, wanted = folder / dataset.name(3), int(dataset.sizes[3])
        stream = io.BytesIO()
        picture(np.random.default_rng(1), 40, 50).save(stream, "JPEG", quality=20)
        other.write_bytes(stream.getvalue().ljust(wanted, b"\0"))
        with pytest.raises(ImageError, match=f"{dataset.name(3)}: has another size"):
            dataset.decode(3)


def test_names_that_are_not_utf_8_are_kept(folder: Path, tmp_path: Path) -> None:
    """As archives made under Windows unpack; a file keeps them too."""
    (folder / "class0" / "000.jpg").rename(folder / "class0" / "Mu\udcf1oz.jpg")
    (folder / "class1").rename(folder / "Se\udcf1ora")
    convert(str(folder), tmp_path / "set.beton", ConvertConfig(workers=1))
    with open_dataset(tmp_path / "set.beton") as file, open_dataset(folder) as dataset:
        assert dataset.classes == file.classes == ["Se\udcf1ora", "class0"]
        assert [dataset.name(i) for i in range(12)] == [file.name(i) for i in range(12)]
        assert "class0/Mu\udcf1oz.jpg" in [dataset.name(i) for i in range(12)]
        assert len(dataset.fingerprint) == 64


def test_the_fingerprint_tells_sets_apart(folder: Path) -> None:
    before = open_dataset(folder).fingerprint
    assert open_dataset(folder).fingerprint == before
    (folder / "class0" / "000.jpg").rename(folder / "class0" / "renamed.jpg")
    assert open_dataset(folder).fingerprint != before
