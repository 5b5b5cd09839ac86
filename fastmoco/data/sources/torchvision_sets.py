"""Datasets that torchvision reads, from existing files; downloads need ``download=true``."""

import warnings
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.sources.arrays import array_samples, as_hwc
from fastmoco.data.sources.folder import open_folder
from fastmoco.data.sources.labels import Labels, labels_of_array
from fastmoco.data.sources.samples import SampleSet, SourceOptions, stamps_of
from fastmoco.errors import UsageError

_File = tuple[str, str | None]
_TRAIN_TEST = {"train": {"train": True}, "test": {"train": False}}


def _by_name(*splits: str) -> dict[str, dict[str, Any]]:
    return {split: {"split": split} for split in splits}


# Splits of each dataset, and for each split the arguments of torchvision's class.
SETS: dict[str, dict[str, dict[str, Any]]] = {
    "CIFAR10": _TRAIN_TEST,
    "CIFAR100": _TRAIN_TEST,
    "FashionMNIST": _TRAIN_TEST,
    "Imagenette": _by_name("train", "val"),
    "MNIST": _TRAIN_TEST,
    "STL10": _by_name("train", "test", "unlabeled", "train+unlabeled"),
    "SVHN": _by_name("train", "test", "extra"),
}
_IMAGENETTE_FOLDERS = {
    "imagenette2": "full",
    "imagenette2-320": "320px",
    "imagenette2-160": "160px",
}


def open_torchvision(name: str, options: SourceOptions) -> SampleSet:
    """Open a dataset by the name of torchvision's class, below ``options.root``.

    Raises:
        UsageError: If there is no such dataset or split.
        ValueError: If a file is damaged.
        FileNotFoundError: If a file is missing, and is not or cannot be downloaded; the message
            names the file and how to get it.
    """
    if name not in SETS:
        spelled = {known.lower(): known for known in SETS}
        near = get_close_matches(name.lower(), spelled, 1)
        guess = f"; did you mean {spelled[near[0]]}?" if near else ""
        raise UsageError(f"torchvision:{name} is unknown; known: {', '.join(SETS)}{guess}")
    split = options.split or "train"
    if split not in SETS[name]:
        known = ", ".join(SETS[name])
        raise UsageError(f"torchvision:{name} has no split={split}; its splits are {known}")
    root = Path(options.root or "data").expanduser()
    if name == "Imagenette":
        return _open_imagenette(root, split, options)
    if options.labels:
        raise UsageError(f"torchvision:{name} has its own labels; remove labels={options.labels}")
    return _open_arrays(name, root, split, download=options.download)


def _open_arrays(name: str, root: Path, split: str, *, download: bool) -> SampleSet:
    from torchvision import datasets

    kind = getattr(datasets, name)
    arguments = SETS[name][split]
    files = _files(kind, arguments)
    for file, md5 in files:
        if not (root / file).is_file():
            remedy = _remedy(kind, root, file, md5)
            if not download:
                raise _missing(root / file, remedy)
            _download(kind, root, arguments, remedy)
            break
    dataset = _build(kind, root, arguments, files)
    pixels = as_hwc(np.asarray(dataset.data), f"torchvision:{name}")
    names = [f"{split}/{index:05d}" for index in range(len(pixels))]
    stamps = stamps_of(root / file for file, _ in files)
    return array_samples(names, pixels, _labels(dataset), stamps)


def _build(kind: Any, root: Path, arguments: dict[str, Any], files: list[_File]) -> Any:
    """Torchvision's dataset, which checks the MD5 of most files."""
    from torchvision.datasets.utils import check_integrity

    try:
        with warnings.catch_warnings():
            # NumPy 2.4.0 to 2.4.4 warn about dtypes in old pickles, such as CIFAR's (PR 31177).
            warnings.filterwarnings("ignore", message=r"dtype\(\): align should be passed")
            return kind(root, download=False, **arguments)
    except ImportError as error:
        raise ValueError(f"torchvision:{kind.__name__} needs scipy; pip install scipy") from error
    except (RuntimeError, AssertionError, ValueError) as error:
        for file, md5 in files:
            if not check_integrity(root / file, md5):
                raise ValueError(
                    f"{root / file}: is damaged, its md5 is not {md5}; remove it and get it again"
                ) from error
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"torchvision:{kind.__name__}: the files in {root} cannot be read ({reason})"
        ) from error


def _labels(dataset: Any) -> Labels:
    """Labels, and class names if the dataset has them."""
    array: NDArray[Any] = np.asarray(getattr(dataset, "targets", getattr(dataset, "labels", None)))
    labels, numbers = labels_of_array(array.astype(np.int64), type(dataset).__name__)
    names = list(getattr(dataset, "classes", []))
    return labels, names if len(names) >= len(numbers) > 0 else numbers


def _files(kind: Any, arguments: dict[str, Any]) -> list[_File]:
    """Files that torchvision's class needs, relative to its root, with their known MD5."""
    if hasattr(kind, "resources"):
        folder = f"{kind.__name__}/raw"
        return [(f"{folder}/{Path(file).stem}", None) for file, _ in kind.resources]
    if hasattr(kind, "split_list"):
        _, file, md5 = kind.split_list[arguments["split"]]
        return [(file, md5)]
    listed: Iterable[tuple[str, str]] = [*kind.train_list, *kind.test_list]
    files: list[_File] = [(f"{kind.base_folder}/{file}", md5) for file, md5 in listed]
    if hasattr(kind, "meta"):
        files.append((f"{kind.base_folder}/{kind.meta['filename']}", kind.meta["md5"]))
    return files


def _remedy(kind: Any, root: Path, file: str, md5: str | None) -> str:
    """How to get a missing file."""
    if hasattr(kind, "resources"):
        packed = dict(kind.resources)[f"{Path(file).name}.gz"]
        return f"gunzip {Path(file).name}.gz (md5 {packed}) to {root / file}"
    if hasattr(kind, "tgz_md5"):
        return f"unpack {kind.filename} (md5 {kind.tgz_md5}) in {root}"
    return f"put {Path(file).name} (md5 {md5}) in {root}"


def _missing(path: Path, remedy: str) -> FileNotFoundError:
    return FileNotFoundError(f"{path}: is missing; {remedy}, or set root=FOLDER or download=true")


def _download(kind: Any, root: Path, arguments: dict[str, Any], remedy: str) -> None:
    """Download and unpack a dataset by torchvision, which shows a bar and checks each MD5."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        kind(root, download=True, **arguments)
    except ImportError:  # scipy is missing, after the download; `_build` reports it
        return
    except (OSError, RuntimeError) as error:  # URLError is an OSError
        reason = " ".join(str(error).split())
        raise FileNotFoundError(
            f"torchvision:{kind.__name__} cannot be downloaded ({reason}); {remedy}"
        ) from error


def _open_imagenette(root: Path, split: str, options: SourceOptions) -> SampleSet:
    """Open the largest of its three sizes that exists; class names are their first English name."""
    from torchvision.datasets import Imagenette

    folder = next((f for f in _IMAGENETTE_FOLDERS if (root / f / split).is_dir()), None)
    if folder is None:
        folder = "imagenette2"
        remedy = f"unpack {folder}.tgz (or -320, -160) in {root}"
        if not options.download:
            raise _missing(root / folder / split, remedy)
        _download(Imagenette, root, SETS["Imagenette"][split], remedy)
    dataset = Imagenette(root, split=split, size=_IMAGENETTE_FOLDERS[folder])
    samples = open_folder(root / folder / split, options)
    english = {wnid: names[0] for wnid, names in zip(dataset.wnids, dataset.classes, strict=True)}
    samples.classes = [english.get(name, name) for name in samples.classes]
    return samples
