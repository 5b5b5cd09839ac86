"""Folders, labels for their images, manifests, and what a source may not be."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet

from fastmoco.data.sources import SampleSet, SourceOptions, open_source
from tests.pictures import encoded, picture
from tests.sample_sets import labels_by_name, opened, pixels_of

pytestmark = pytest.mark.usefixtures("pickles_here")


def write_images(root: Path, *names: str) -> None:
    """PNG files; the n-th holds ``picture(n)``."""
    for index, name in enumerate(names):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(picture(index), "PNG"))


def has_pictures(samples: SampleSet, *seeds: int) -> bool:
    """Whether the images are these pictures, in order."""
    images = pixels_of(samples)
    assert len(images) == len(seeds)
    return all(np.array_equal(image, picture(n)) for image, n in zip(images, seeds, strict=True))


def test_folders_give_names_labels_pixels_and_stamps(tmp_path: Path) -> None:
    write_images(tmp_path, "b/1.png", "a b/deep/2.PNG", "a/3.png")
    (tmp_path / "a" / "notes.txt").write_text("no image")
    samples = opened(tmp_path)
    assert samples.names == ["a/3.png", "a b/deep/2.PNG", "b/1.png"]
    assert labels_by_name(samples) == dict(zip(samples.names, ["a", "a b", "b"], strict=True))
    assert has_pictures(samples, 2, 1, 0)
    statuses = [(tmp_path / name).stat() for name in samples.names]
    assert samples.stamps.tolist() == [[s.st_size, s.st_mtime_ns] for s in statuses]
    assert samples.passed_over.total == 1
    write_images(tmp_path, "flat.png")
    with pytest.warns(UserWarning, match=r"1 of 4 images are beside the class folders .*flat\.png"):
        assert labels_by_name(opened(tmp_path)) == labels_by_name(samples) | {"flat.png": None}


NUMBERED = ("img_10.png", "img_9.png", "img_0100.png")  # by number: 1, 0, 2


@pytest.mark.parametrize("kind", ["txt", "npy", "pt"])
def test_numbered_images_take_labels_in_order_of_number(tmp_path: Path, kind: str) -> None:
    write_images(tmp_path / "images", *NUMBERED)
    path = tmp_path / f"labels.{kind}"
    if kind == "txt":
        path.write_text("5\n\n0\n")
    elif kind == "npy":
        np.save(path, np.array([[5], [-1], [0]], np.int32))
    else:
        torch.save(torch.tensor([5, -1, 0]), path)
    samples = opened(tmp_path / "images", labels=str(path))
    assert samples.names == ["img_9.png", "img_10.png", "img_0100.png"]
    assert samples.labels.tolist() == [5, -1, 0]
    assert samples.classes == list("012345")
    assert has_pictures(samples, 1, 0, 2)
    sizes = [(tmp_path / "images" / name).stat().st_size for name in samples.names]
    assert samples.stamps[:, 0].tolist() == sizes


def test_numbered_images_take_class_names(tmp_path: Path) -> None:
    write_images(tmp_path / "images", *NUMBERED)
    (tmp_path / "labels.txt").write_text("dog\ncat\ndog")
    samples = opened(tmp_path / "images", labels=str(tmp_path / "labels.txt"))
    assert list(labels_by_name(samples).values()) == ["dog", "cat", "dog"]
    assert samples.classes == ["cat", "dog"]


@pytest.mark.parametrize(
    ("names", "text", "message"),
    [
        (("1.png", "2.png"), "0\n1\n2\n", r"labels\.txt: 3 labels for 2 images"),
        (("1.png", "x_001.png"), "0\n1\n", r"x_001\.png: has the same number as 1\.png"),
        (("1.png", "x.png"), "0\n1\n", r"x\.png: has no number .*labels=FILE\.csv"),
        (
            ("1.png", "2.png"),
            "0\ncat\n",
            r"mix numbers and names: line 1 has 0, line 2 has cat",
        ),
        (("1.png", "2.png"), "0\n-2\n", r"label -2 is not in -1\.\."),
        (("1.png", "2.png"), "0\n99999999999999999999\n", r"label 9+ is not in -1\.\."),
        (("1.png", "2.png"), None, r"labels=.*labels\.txt: no such file"),
    ],
)
def test_labels_that_do_not_fit_are_refused(
    tmp_path: Path, names: tuple[str, ...], text: str | None, message: str
) -> None:
    write_images(tmp_path / "images", *names)
    if text is not None:
        (tmp_path / "labels.txt").write_text(text)
    refused(tmp_path / "images", message, labels=str(tmp_path / "labels.txt"))


def refused(source: object, message: str, **options: str) -> None:
    """Checks that opening fails with one line."""
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        open_source(str(source), SourceOptions(**options))
    assert "\n" not in str(caught.value)


def test_noisy_labels_of_imagenette_keep_the_class_numbers(tmp_path: Path) -> None:
    train = tmp_path / "imagenette2" / "train"
    write_images(train, "n01/n01_1.JPEG", "n02/n02_1.JPEG", "n03/n03_1.JPEG")
    table = tmp_path / "imagenette2" / "noisy_imagenette.csv"
    table.write_text(
        "path,noisy_labels_0,noisy_labels_25,is_valid\n"
        "train/n02/n02_1.JPEG,n02,n03,False\n"
        "train/n01/n01_1.JPEG,n01,n03,False\n"
        "train/n03/n03_1.JPEG,n03,,False\n"
        "val/n01/n01_9.JPEG,n01,n01,True\n"
    )
    clean = opened(train, labels=f"{table}:noisy_labels_0")
    assert clean.labels.tolist() == opened(train).labels.tolist() == [0, 1, 2]
    noisy = opened(train, labels=f"{table}:noisy_labels_25")
    assert noisy.classes == ["n01", "n02", "n03"]
    assert noisy.labels.tolist() == [2, 2, -1]
    assert has_pictures(noisy, 0, 1, 2)
    refused(train, "no column label; its columns are path, noisy_labels_0", labels=str(table))
    write_images(train, "n01/new.JPEG")
    refused(train, r"no row for train/n01/new\.JPEG", labels=f"{table}:noisy_labels_0")
    refused(train, r"labels=.*gone\.csv: no such file", labels=f"{tmp_path}/gone.csv:x")


def test_a_table_labels_a_flat_folder_by_names(tmp_path: Path) -> None:
    write_images(tmp_path / "images", "x.png", "y.png")
    (tmp_path / "labels.csv").write_text("path,label\ny.png,cat\nx.png,dog\n")
    samples = opened(tmp_path / "images", labels=str(tmp_path / "labels.csv"))
    assert labels_by_name(samples) == {"x.png": "dog", "y.png": "cat"}


def write_manifest(path: Path, rows: list[dict[str, str | int | None]]) -> None:
    """A CSV or Parquet file, by the suffix."""
    if path.suffix == ".parquet":
        parquet.write_table(pa.Table.from_pylist(rows), path)
        return
    lines = [",".join(rows[0]), *(",".join(str(c or "") for c in row.values()) for row in rows)]
    path.write_text("\r\n".join(lines) + "\r\n", "utf-8-sig")


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_manifest_keeps_its_order_and_counts_classes_over_all_splits(
    tmp_path: Path, suffix: str
) -> None:
    write_images(tmp_path, "in/b.png", "a.png", "in/c.png")
    outside = tmp_path / "outside" / "d.png"
    write_images(outside.parent, "unused.png", "d.png")
    manifest = tmp_path / f"list.{suffix}"
    columns = ("path", "label", "split")
    rows = [
        ("in/b.png", "dog", "train"),
        ("in/c.png", "ant", "test"),
        (str(outside), None, "train"),
        ("a.png", "cat", "train"),
    ]
    write_manifest(manifest, [dict(zip(columns, row, strict=True)) for row in rows])
    samples = opened(manifest)
    assert labels_by_name(samples) == {"in/b.png": "dog", str(outside): None, "a.png": "cat"}
    assert samples.classes == ["ant", "cat", "dog"]
    assert has_pictures(samples, 0, 1, 1)
    test = opened(manifest, split="test")
    assert labels_by_name(test) == {"in/c.png": "ant"}
    assert test.classes == samples.classes
    place = "row" if suffix == "parquet" else "line"
    refused(manifest, "has no split=val; its splits are test, train$", split="val")
    write_manifest(manifest, [{"path": "a.png"}, {"path": "b.png"}, {"path": "./a.png"}])
    first, third = (1, 3) if suffix == "parquet" else (2, 4)
    refused(manifest, rf"{place} {third} repeats \./a\.png of {place} {first}$")
    write_manifest(manifest, [{"path": "a.png", "label": 3}, {"path": "in/b.png", "label": None}])
    assert opened(manifest).labels.tolist() == [3, -1]
    if suffix == "parquet":  # as pandas writes them
        rows = [{"path": "a.png", "label": 3.0}, {"path": "in/b.png", "label": float("nan")}]
        write_manifest(manifest, rows)
        assert opened(manifest).labels.tolist() == [3, -1]


def test_missing_file_of_a_manifest_is_a_bad_image(tmp_path: Path) -> None:
    write_images(tmp_path, "a.png")
    (tmp_path / "list.csv").write_text("path\na.png\ngone.png\n")
    samples = opened(tmp_path / "list.csv")
    assert samples.stamps[1].tolist() == [-1, -1]
    assert samples.load("a.png") == (tmp_path / "a.png").read_bytes()
    with pytest.raises(FileNotFoundError):
        samples.load("gone.png")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,label\na.png,1\n", "has no column path; its columns are file, label"),
        ("", "is empty; its first line must name the columns"),
        ("path\n", "lists no images"),
        ("path,label\na.png,1\n,2\n", "line 3 has no path"),
        (
            "path,label\na.png,1\nb.png,cat\n",
            "mix numbers and names: line 2 has 1, line 3 has cat",
        ),
        ("path,label\na.png,c\0at\n", r"(holds a zero byte; remove it|line contains NUL)"),
        ('path,label\n"a.png,1\n', r"line 2 is not CSV \(unexpected end of data\)"),
    ],
)
def test_bad_manifests_name_the_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "list.csv").write_text(text)
    refused(tmp_path / "list.csv", rf"list\.csv: .*{message}")
    (tmp_path / "list.parquet").write_text("no parquet")
    refused(tmp_path / "list.parquet", r"list\.parquet: is not a Parquet file")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("gone", r"gone: no such folder or file; name a folder.*\.csv.*torchvision:NAME"),
        ("torchvison:CIFAR10", r"no such folder or file; did you mean torchvision:CIFAR10\?"),
        ("cifar100", r"did you mean torchvision:CIFAR100\?"),
        ("builtin:texture", "use builtin:textures"),
        ("torchvision:cifar10", r"unknown; known: CIFAR10, .*; did you mean CIFAR10\?"),
        ("torchvision:CIFAR10 split=val", "no split=val; its splits are train, test"),
        ("builtin:textures split=val", "no split=val; its splits are train, test"),
        ("{dir} split=val", "has no split=val; name the files of that split"),
        ("{dir}/x-{{0..3}}.tar split=val", "has no split=val"),
        ("{dir}/list.csv split=val", "has no column split; its columns are path"),
        ("builtin:textures root=x", "takes no root=x; only torchvision:NAME does"),
        ("builtin:textures download=true", "takes no download=true"),
        ("{dir}/x.docx", "of an unknown kind; name a folder"),
        ("{dir}/x.zip", "is an archive; unpack it and name its folder"),
        ("{dir}", r"no images but archives, such as x\.zip; unpack them there"),
        ("{dir}/list.csv labels=x.txt", "takes no labels=x.txt; only folders"),
        ("{dir}/x-{{0..3}}.tar", "x-0.tar: no such shard"),
        ("{dir}/x-{{0..999999}}.tar", "more than 100,000 shards"),
        ("{dir}/*.docx", "x.docx, which is no .tar file"),
    ],
)
def test_what_is_no_source_is_refused(tmp_path: Path, source: str, message: str) -> None:
    (tmp_path / "x.docx").write_text("")
    (tmp_path / "x.zip").write_bytes(b"PK\x03\x04")
    (tmp_path / "list.csv").write_text("path\nx.docx\n")
    name, *options = source.format(dir=tmp_path).split()
    refused(name, message, **dict(option.split("=") for option in options))


def test_messages_do_not_guess_wildly() -> None:
    with pytest.raises(FileNotFoundError) as caught:
        open_source("/some/where/textures", SourceOptions())
    assert not re.search("did you mean", str(caught.value))
