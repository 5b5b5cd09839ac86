"""Known sets in their true layouts, made small: ImageNet, Tiny ImageNet, and torchvision's.

Torchvision checks the MD5 of most files. The tests put those of the small files into its lists, so
that its check runs, and passes, and still finds a file that was damaged afterwards.
"""

import gzip
import hashlib
import pickle
import struct
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from numpy.typing import NDArray
from torchvision import datasets

from fastmoco.data.sources import SourceOptions, open_source
from tests.optional import require
from tests.pictures import encoded, picture
from tests.sample_sets import labels_by_name, opened, pixels_of


def write_images(root: Path, *names: str) -> None:
    for index, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encoded(picture(index), "PNG"))


def refused(source: object, message: str, **options: str) -> None:
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        open_source(str(source), SourceOptions(**options))
    assert "\n" not in str(caught.value)


VALIDATION = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in (1, 2, 3)]


def write_devkit(folder: Path, ids: str) -> None:
    """Three classes, whose ids are not in the order of their WordNet ids, and one above them."""
    from scipy.io import savemat

    rows = [(1, "n03", 0), (2, "n01", 0), (3, "n02", 0), (4, "n00", 3)]
    kinds = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("num_children", "O")]
    synsets = np.array([(id_, wnid, "words", n) for id_, wnid, n in rows], kinds)[:, None]
    data = folder / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    savemat(data / "meta.mat", {"synsets": synsets})
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text(ids)


@pytest.mark.parametrize("place", ["val", "."])
def test_imagenet_validation_labels_agree_with_class_folders(tmp_path: Path, place: str) -> None:
    require("scipy.io")
    write_images(tmp_path / "val", *VALIDATION)
    write_images(tmp_path / "train", "n01/n01_1.JPEG", "n02/n02_1.JPEG", "n03/n03_1.JPEG")
    write_devkit(tmp_path / place, "1\n3\n2\n")
    samples = opened(tmp_path / "val")
    assert list(labels_by_name(samples).items()) == list(
        zip(VALIDATION, ["n03", "n02", "n01"], strict=True)
    )
    assert samples.classes == opened(tmp_path / "train").classes
    (tmp_path / "val" / "logo.svg").write_text("<svg/>")  # has no label, and takes none away
    assert opened(tmp_path / "val").labels.tolist() == [*samples.labels, -1]
    assert all(np.array_equal(image, picture(n)) for n, image in enumerate(pixels_of(samples)))


def test_imagenet_devkits_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    require("scipy.io")
    write_images(tmp_path / "val", *VALIDATION)
    write_devkit(tmp_path, "1\n3\n")
    refused(tmp_path / "val", r"ground_truth\.txt: has no label for ILSVRC2012_val_00000003\.JPEG")
    data = tmp_path / "ILSVRC2012_devkit_t12" / "data"
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("1\n3\n4\n")
    refused(tmp_path / "val", r"4 is not a class of meta\.mat")
    (data / "meta.mat").write_bytes(b"no mat file" * 99)
    refused(tmp_path / "val", r"is not the devkit's meta\.mat")


def test_imagenet_without_scipy_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_images(tmp_path / "val", *VALIDATION)
    truth = tmp_path / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
    truth.parent.mkdir(parents=True)
    truth.write_text("1\n2\n3\n")
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    refused(tmp_path / "val", r"cannot be read without scipy; run pip install scipy")


def test_imagenet_from_kaggle(tmp_path: Path) -> None:
    folder = tmp_path / "ILSVRC" / "Data" / "CLS-LOC" / "val"
    write_images(folder, *VALIDATION)
    refused(folder, r"found no labels of .*; unpack ILSVRC2012_devkit_t12\.tar\.gz in .*CLS-LOC")
    (tmp_path / "LOC_val_solution.csv").write_text(
        "ImageId,PredictionString\n"
        "ILSVRC2012_val_00000003,n01 85 1 499 272\n"
        "ILSVRC2012_val_00000001,n03 1 1 2 2 n03 1 1 5 5 \n"
        "ILSVRC2012_val_00000002,n01 1 2 3 4\n"
    )
    assert list(labels_by_name(opened(folder)).values()) == ["n03", "n01", "n01"]
    (tmp_path / "wnids.txt").write_text("n02\nn03\nn01\n")
    named = opened(folder, labels=str(tmp_path / "wnids.txt"))
    assert list(labels_by_name(named).values()) == ["n02", "n03", "n01"]


@pytest.mark.parametrize("source", ["val", "val/images"])
def test_tiny_imagenet(tmp_path: Path, source: str) -> None:
    write_images(tmp_path / "train", "n02/images/n02_0.JPEG", "n01/images/n01_0.JPEG")
    (tmp_path / "train" / "n02" / "n02_boxes.txt").write_text("n02_0.JPEG\t0\t32\t44\t62\n")
    write_images(tmp_path / "val" / "images", "val_0.JPEG", "val_1.JPEG", "val_10.JPEG")
    refused(tmp_path / "val", r"val_annotations\.txt: no such file")
    annotations = tmp_path / "val" / "val_annotations.txt"
    annotations.write_text("val_10.JPEG\tn01\t0\t32\t44\t62\nval_0.JPEG\tn02\t0\t0\t9\t9\n")
    refused(tmp_path / source, r"has no line for val_1\.JPEG")
    annotations.write_text(annotations.read_text() + "val_1.JPEG\tn02\t0\t0\t9\t9\n")
    train, val = opened(tmp_path / "train"), opened(tmp_path / source)
    assert train.classes == val.classes == ["n01", "n02"]
    assert list(labels_by_name(val).values()) == ["n02", "n02", "n01"]
    assert np.array_equal(pixels_of(val)[2], picture(2))
    stray = tmp_path / source / "zebra.svg"
    stray.write_text("<svg/>")  # has no label, and makes no class of the folder
    assert list(labels_by_name(opened(tmp_path / source)).values()) == ["n02", "n02", "n01", None]
    stray.unlink()
    (tmp_path / "wnids.txt").write_text("n02\nn01\nn00\n")
    assert opened(tmp_path / source).classes == ["n00", "n01", "n02"]
    (tmp_path / "wnids.txt").write_text("n02\n")
    refused(tmp_path / source, r"n01 is not in .*wnids\.txt")
    write_images(tmp_path / "test" / "images", "test_0.JPEG")
    assert opened(tmp_path / "test").classes == []


def random_pixels(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


class OldArray:
    """An array as NumPy 1 pickled it, with integers where NumPy 2.4 wants booleans."""

    def __init__(self, array: NDArray[np.uint8]) -> None:
        self.array = array

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, arguments, state = self.array.__reduce__()
        return rebuild, arguments, (*state[:2], OldType(), *state[3:])


class OldType:
    def __reduce__(self) -> tuple[Any, ...]:
        return np.dtype, ("u1", 0, 1)


def put(path: Path, data: bytes) -> str:
    """Writes a file and gives its MD5."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return hashlib.md5(data).hexdigest()


@pytest.mark.parametrize(("name", "key"), [("CIFAR10", "labels"), ("CIFAR100", "fine_labels")])
def test_cifar(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str) -> None:
    kind = getattr(datasets, name)
    folder = tmp_path / kind.base_folder
    pixels = random_pixels(6, 3, 32, 32)
    meta = {kind.meta["key"]: ["ant", "bee", "cat"]}
    meta_md5 = put(folder / kind.meta["filename"], pickle.dumps(meta))
    monkeypatch.setattr(kind, "meta", kind.meta | {"md5": meta_md5})
    lists = {"train_list": [("p", 0, 2), ("q", 2, 4)], "test_list": [("t", 4, 6)]}
    for attribute, parts in lists.items():
        entries = []
        for file, start, stop in parts:
            rows = OldArray(pixels[start:stop].reshape(stop - start, -1))
            entry = {"data": rows, key: [start % 3, (start + 1) % 3]}
            entries.append([file, put(folder / file, pickle.dumps(entry, 2))])
        monkeypatch.setattr(kind, attribute, entries)
    train = opened(f"torchvision:{name}", root=str(tmp_path))
    assert train.names == ["train/00000", "train/00001", "train/00002", "train/00003"]
    assert list(labels_by_name(train).values()) == ["ant", "bee", "cat", "ant"]
    assert np.array_equal(pixels_of(train), pixels[:4].transpose(0, 2, 3, 1))
    assert len(train.stamps) == 4
    assert len(pickle.dumps((train.load, train.keys[:2]))) < 2 * 3072 + 1000
    test = opened(f"torchvision:{name}", root=str(tmp_path), split="test")
    assert np.array_equal(pixels_of(test), pixels[4:].transpose(0, 2, 3, 1))
    (folder / "q").write_bytes((folder / "q").read_bytes() + b"x")
    refused(f"torchvision:{name}", r"/q: is damaged, its md5 is not", root=str(tmp_path))
    (folder / "t").unlink()
    remedy = rf"unpack {kind.filename} \(md5 {kind.tgz_md5}\) in {tmp_path}"
    message = rf"/t: is missing; {remedy}, or set root=FOLDER or download=true"
    refused(f"torchvision:{name}", message, root=str(tmp_path))


def idx_file(array: NDArray[np.uint8]) -> bytes:
    head = struct.pack(">HBB", 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.tobytes()


@pytest.mark.parametrize("name", ["MNIST", "FashionMNIST"])
def test_gray_sets_become_rgb(tmp_path: Path, name: str) -> None:
    folder = tmp_path / name / "raw"
    pixels = random_pixels(5, 28, 28)
    for stem, rows in (("train", slice(0, 3)), ("t10k", slice(3, 5))):
        put(folder / f"{stem}-images-idx3-ubyte", idx_file(pixels[rows]))
        put(folder / f"{stem}-labels-idx1-ubyte", idx_file(np.arange(5, dtype=np.uint8)[rows]))
    samples = opened(f"torchvision:{name}", root=str(tmp_path), split="test")
    assert samples.names == ["test/00000", "test/00001"]
    assert samples.labels.tolist() == [3, 4]
    assert samples.classes == getattr(datasets, name).classes
    assert np.array_equal(pixels_of(samples), np.repeat(pixels[3:, ..., None], 3, axis=3))
    path = folder / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-100])
    refused(f"torchvision:{name}", f"the files in {tmp_path} cannot be read", root=str(tmp_path))
    path.unlink()
    md5 = dict(getattr(datasets, name).resources)["train-images-idx3-ubyte.gz"]
    message = (
        rf"gunzip train-images-idx3-ubyte\.gz \(md5 {md5}\) to {folder}/train-images-idx3-ubyte"
    )
    refused(f"torchvision:{name}", message, root=str(tmp_path))


def test_stl10(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = random_pixels(6, 3, 96, 96)
    files = {
        "train_X.bin": pixels[:2],
        "train_y.bin": np.array([10, 1], np.uint8),
        "unlabeled_X.bin": pixels[2:5],
        "test_X.bin": pixels[5:],
        "test_y.bin": np.array([2], np.uint8),
    }
    md5 = {name: put(tmp_path / "stl10_binary" / name, a.tobytes()) for name, a in files.items()}
    classes = [f"class {number}" for number in range(10)]
    (tmp_path / "stl10_binary" / "class_names.txt").write_text("\n".join(classes))
    monkeypatch.setattr(datasets.STL10, "train_list", list(md5.items())[:3])
    monkeypatch.setattr(datasets.STL10, "test_list", list(md5.items())[3:])
    hwc = pixels.transpose(0, 3, 2, 1)  # columns first, says its format
    expected = {
        "train": ([9, 0], hwc[:2]),
        "unlabeled": ([-1, -1, -1], hwc[2:5]),
        "train+unlabeled": ([9, 0, -1, -1, -1], hwc[:5]),
        "test": ([1], hwc[5:]),
    }
    for split, (labels, images) in expected.items():
        samples = opened("torchvision:STL10", root=str(tmp_path), split=split)
        assert samples.labels.tolist() == labels
        assert samples.classes == ([] if split == "unlabeled" else classes)
        assert np.array_equal(pixels_of(samples), images)


def test_svhn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require("scipy.io")
    from scipy.io import savemat

    message = r"is missing; put extra_32x32\.mat \(md5 [0-9a-f]{32}\) in .*download=true"
    refused("torchvision:SVHN", message, root=str(tmp_path), split="extra")
    pixels = random_pixels(32, 32, 3, 4)
    path = tmp_path / "test_32x32.mat"
    savemat(path, {"X": pixels, "y": np.array([[10], [1], [9], [10]], np.uint8)})
    entry = ["url", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setitem(datasets.SVHN.split_list, "test", entry)
    samples = opened("torchvision:SVHN", root=str(tmp_path), split="test")
    assert list(labels_by_name(samples).values()) == ["0", "1", "9", "0"]
    assert np.array_equal(pixels_of(samples), pixels.transpose(3, 0, 1, 2))
    monkeypatch.setitem(sys.modules, "scipy.io", None)
    refused("torchvision:SVHN", "needs scipy", root=str(tmp_path), split="test")


def test_imagenette(tmp_path: Path) -> None:
    refused(
        "torchvision:Imagenette",
        r"imagenette2/train: is missing; unpack imagenette2\.tgz .*download=true",
        root=str(tmp_path),
    )
    root = tmp_path / "imagenette2-160"
    write_images(root / "train", "n02102040/a_1.JPEG", "n01440764/b_2.JPEG")
    write_images(root / "val", "n01440764/c_3.JPEG")
    samples = opened("torchvision:Imagenette", root=str(tmp_path))
    assert labels_by_name(samples) == {
        "n01440764/b_2.JPEG": "tench",
        "n02102040/a_1.JPEG": "English springer",
    }
    assert np.array_equal(pixels_of(samples)[0], picture(1))
    assert opened("torchvision:Imagenette", root=str(tmp_path), split="val").classes == ["tench"]
    (root / "noisy_imagenette.csv").write_text(
        "path,noisy_labels_1\ntrain/n01440764/b_2.JPEG,n02102040\n"
        "train/n02102040/a_1.JPEG,n02102040\n"
    )
    labels = f"{root}/noisy_imagenette.csv:noisy_labels_1"
    noisy = opened("torchvision:Imagenette", root=str(tmp_path), labels=labels)
    assert noisy.labels.tolist() == [1, 1]
    assert noisy.classes == samples.classes


@pytest.mark.parametrize("name", ["CIFAR10", "MNIST", "STL10", "SVHN", "Imagenette"])
def test_what_cannot_be_downloaded_is_told_where_to_put(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    def no_network(*_: object, **__: object) -> None:
        raise URLError("Name or service not known")

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", no_network)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", no_network)
    root = tmp_path / "new"
    message = rf"torchvision:{name} cannot be downloaded \(.+\); .*\(.*\) (in|to) {root}"
    with pytest.raises(FileNotFoundError, match=message) as caught:
        open_source(f"torchvision:{name}", SourceOptions(root=str(root), download=True))
    assert "\n" not in str(caught.value)


def test_a_set_is_downloaded_where_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = random_pixels(5, 28, 28)
    packed = {}
    for stem, rows in (("train", slice(0, 3)), ("t10k", slice(3, 5))):
        packed[f"{stem}-images-idx3-ubyte.gz"] = idx_file(pixels[rows])
        packed[f"{stem}-labels-idx1-ubyte.gz"] = idx_file(np.arange(5, dtype=np.uint8)[rows])
    packed = {name: gzip.compress(data) for name, data in packed.items()}
    md5s = [(name, hashlib.md5(data).hexdigest()) for name, data in packed.items()]
    monkeypatch.setattr(datasets.MNIST, "resources", md5s)

    def get(url: str, filename: Path, *_: object) -> None:
        Path(filename).write_bytes(packed[url.rpartition("/")[2]])

    monkeypatch.setattr("torchvision.datasets.utils._get_redirect_url", lambda url, **_: url)
    monkeypatch.setattr("torchvision.datasets.utils._urlretrieve", get)
    options = SourceOptions(root=str(tmp_path / "new"), download=True)
    samples = open_source("torchvision:MNIST", options)
    assert np.array_equal(pixels_of(samples), np.repeat(pixels[:3, ..., None], 3, axis=3))
