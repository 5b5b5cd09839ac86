"""A folder of images: class folders, a flat folder, or a known layout."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from fastmoco.data.sources.imagenet import imagenet_labels
from fastmoco.data.sources.labels import (
    Labels,
    labels_by_class,
    relabel_by_number,
    relabel_by_path,
    split_table_name,
)
from fastmoco.data.sources.listing import Listing, list_images
from fastmoco.data.sources.recognition import EXTENSIONS
from fastmoco.data.sources.samples import SampleSet, SourceOptions, read_image_file
from fastmoco.data.sources.tiny_imagenet import tiny_imagenet_labels
from fastmoco.errors import UsageError

_SPLIT_FOLDERS = frozenset({"train", "training", "val", "valid", "validation", "test"})


def open_folder(root: Path, options: SourceOptions) -> SampleSet:
    """List a folder and open its images; see `open_listing`."""
    return open_listing(list_images(root), options)


def open_listing(listing: Listing, options: SourceOptions) -> SampleSet:
    """Open the images of a folder, labeled by ``options.labels``, by their layout, or not at all.

    Raises:
        UsageError: If the folder holds no images.
        ValueError: If it holds only splits, or the labels do not match.
    """
    for name in listing.archives:
        listing.passed_over.add("archives", name)
    if not listing.names:
        raise UsageError(
            f"{listing.root}: holds no images; searched it and its subfolders for "
            f"{' '.join(sorted(EXTENSIONS))} ({listing.passed_over.total} other files)"
        )
    if not options.labels:
        return _samples(listing, _labels_by_layout(listing))
    table = split_table_name(options.labels)
    samples = _samples(listing, _class_folder_labels(listing) or _unlabeled(listing))
    if table:
        relabel_by_path(samples, listing.root.absolute(), *table)
    else:
        relabel_by_number(samples, Path(options.labels).expanduser())
    return samples


def _class_folder_labels(listing: Listing) -> Labels | None:
    """Labels by the names of the first level, if every image is below it."""
    if not all("/" in name for name in listing.names):
        return None
    firsts = [name.partition("/")[0] for name in listing.names]
    classes = sorted(set(firsts))
    _refuse_splits(listing.root, classes)
    return labels_by_class(firsts, classes), classes


def _unlabeled(listing: Listing) -> Labels:
    return np.full(len(listing.names), -1, np.int64), []


_LAYOUTS: tuple[Callable[[Listing], Labels | None], ...] = (
    imagenet_labels,
    tiny_imagenet_labels,
    _class_folder_labels,
    _unlabeled,
)


def _labels_by_layout(listing: Listing) -> Labels:
    """Labels by the first layout that the folder has."""
    found = (layout(listing) for layout in _LAYOUTS)
    return next(labels for labels in found if labels is not None)


def _samples(listing: Listing, labels: Labels) -> SampleSet:
    return SampleSet(
        names=listing.names,
        labels=labels[0],
        classes=labels[1],
        load=partial(read_image_file, str(listing.root.absolute())),
        stamps=listing.stamps,
        passed_over=listing.passed_over,
    )


def _refuse_splits(root: Path, classes: list[str]) -> None:
    """Refuse splits as classes: a model would learn the split of an image."""
    if _SPLIT_FOLDERS.issuperset(classes):
        raise ValueError(
            f"{root}: holds the splits {', '.join(classes)}, not classes; convert each of them, "
            f"such as {root / classes[0]}"
        )
