"""ImageNet's validation images as unpacked: one flat folder, with labels in the devkit.

The classes are all WordNet ids, sorted, as for the class folders of the training images. The
devkit numbers classes differently: ``meta.mat`` maps its ILSVRC2012_ID to WordNet ids.
"""

import re
from pathlib import Path

import numpy as np

from fastmoco.data.sources.labels import Labels, labels_by_class
from fastmoco.data.sources.listing import Listing
from fastmoco.data.sources.tables import read_table

_NAME = re.compile(r"(ILSVRC2012_val_([0-9]{8}))\.JPEG")
_TRUTH = "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt"
_KAGGLE = "LOC_val_solution.csv"
_LEVELS = 4  # Kaggle's images are in ILSVRC/Data/CLS-LOC/val, its table at the top


def imagenet_labels(listing: Listing) -> Labels | None:
    """Labels from the devkit or Kaggle's table, in the folder or above it; None for other folders.

    An image of another name among them has no label.

    Raises:
        ValueError: If the table is damaged or lacks an image, or scipy is missing.
        FileNotFoundError: If neither exists.
    """
    stems = [match[1] if (match := _NAME.fullmatch(name)) else "" for name in listing.names]
    if stems.count("") >= len(stems) / 2:
        return None
    root = listing.root.absolute()
    above = (root, *root.parents[:_LEVELS])
    truth = next((base / _TRUTH for base in above if (base / _TRUTH).is_file()), None)
    table = next((base / _KAGGLE for base in above if (base / _KAGGLE).is_file()), None)
    if truth:
        wnid_of = _devkit_wnids(truth)
    elif table:
        wnid_of = _kaggle_wnids(table)
    else:
        raise FileNotFoundError(
            f"{root}: found no labels of ImageNet's validation images; unpack "
            f"ILSVRC2012_devkit_t12.tar.gz in {root.parent}, or put {_KAGGLE} there, or set "
            "labels=FILE to a file of 50,000 lines"
        )
    classes = sorted(set(wnid_of.values()))
    if missing := next((stem for stem in stems if stem and stem not in wnid_of), None):
        raise ValueError(f"{truth or table}: has no label for {missing}.JPEG")
    return labels_by_class([wnid_of.get(stem, "") for stem in stems], classes), classes


def _devkit_wnids(truth: Path) -> dict[str, str]:
    """WordNet id of each image, ``ILSVRC2012_val_00000001`` and so on."""
    wnid_by_id = _read_meta(truth.with_name("meta.mat"))
    try:
        ids = [int(line) for line in truth.read_text().split()]
        return {
            f"ILSVRC2012_val_{number:08d}": wnid_by_id[id_] for number, id_ in enumerate(ids, 1)
        }
    except (ValueError, KeyError) as error:
        raise ValueError(f"{truth}: {error} is not a class of meta.mat beside it") from error


def _read_meta(path: Path) -> dict[int, str]:
    """WordNet id of each ILSVRC2012_ID that is a class: a synset without children."""
    try:
        import scipy.io
    except ImportError as error:
        raise ValueError(
            f"{path}: cannot be read without scipy; run pip install scipy, or use {_KAGGLE}"
        ) from error
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file; unpack all files of the devkit")
    try:
        synsets = np.atleast_1d(scipy.io.loadmat(path, squeeze_me=True)["synsets"])
        leaves = [row for row in synsets if row["num_children"] == 0]
        return {int(row["ILSVRC2012_ID"]): str(row["WNID"]) for row in leaves}
    except (ValueError, KeyError, TypeError, NotImplementedError) as error:
        raise ValueError(f"{path}: is not the devkit's meta.mat ({error})") from error


def _kaggle_wnids(path: Path) -> dict[str, str]:
    """WordNet ids by rows such as ``ILSVRC2012_val_00048981,n03995372 85 1 499 272``."""
    table = read_table(path, ["ImageId", "PredictionString"])
    predictions = table.column("PredictionString")
    return {
        stem: prediction.partition(" ")[0]
        for stem, prediction in zip(table.column("ImageId"), predictions, strict=True)
    }
