"""Tiny ImageNet's validation and test images; its training images are in class folders.

The folder ``images`` is not a class: the labels are in ``val_annotations.txt``.
"""

import re
from pathlib import Path

import numpy as np

from fastmoco.data.sources.labels import Labels, labels_by_class
from fastmoco.data.sources.listing import Listing

_NAME = re.compile(r"(images/)?((val|test)_[0-9]+\.JPEG)")
_ANNOTATIONS = "val_annotations.txt"


def tiny_imagenet_labels(listing: Listing) -> Labels | None:
    """Labels of ``val/images`` by its annotations, -1 for ``test/images``; None for other folders.

    An image of another name among them has no label. Classes are the WordNet ids of ``wnids.txt``,
    else of the annotations, sorted: those of train.

    Raises:
        ValueError: If an image or a class is unknown.
        FileNotFoundError: If the annotations are missing.
    """
    matches = [_NAME.fullmatch(name) for name in listing.names]
    found = [match for match in matches if match]
    if len(found) <= len(matches) / 2:
        return None
    root = listing.root.absolute()
    if all(match[3] == "test" for match in found):
        return np.full(len(matches), -1, np.int64), []
    for folder in (root, root.parent):
        if (folder / _ANNOTATIONS).is_file():
            files = [match[2] if match else "" for match in matches]
            return _annotated(files, folder / _ANNOTATIONS)
    if not all(match[1] for match in found):
        return None
    raise FileNotFoundError(f"{root / _ANNOTATIONS}: no such file; it holds Tiny ImageNet's labels")


def _annotated(files: list[str], annotations: Path) -> Labels:
    """Labels from lines such as ``val_0.JPEG<TAB>n03444034<TAB>0<TAB>32<TAB>44<TAB>62``.

    A file named ``""`` has no label.
    """
    rows = [line.split("\t") for line in annotations.read_text().splitlines() if line.strip()]
    named = [file for file in files if file]
    wnid_of = {row[0]: row[1].strip() for row in rows if len(row) > 1}
    if missing := next((file for file in named if file not in wnid_of), None):
        raise ValueError(f"{annotations}: has no line for {missing}")
    listed = annotations.parent.parent / "wnids.txt"
    classes = sorted(set(listed.read_text().split() if listed.is_file() else wnid_of.values()))
    if unknown := next((wnid_of[file] for file in named if wnid_of[file] not in classes), None):
        raise ValueError(f"{annotations}: {unknown} is not in {listed}")
    return labels_by_class([wnid_of.get(file, "") for file in files], classes), classes
