"""A folder of images: class folders, a flat folder, or a known layout."""

import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from fastmoco.data.sources.imagenet import imagenet_labels
from fastmoco.data.sources.label_files import relabel
from fastmoco.data.sources.labels import Labels, labels_by_class
from fastmoco.data.sources.listing import Listing, list_images
from fastmoco.data.sources.recognition import EXTENSIONS
from fastmoco.data.sources.samples import SampleSet, SourceOptions, read_image_file
from fastmoco.data.sources.split_names import split_folders
from fastmoco.data.sources.tiny_imagenet import tiny_imagenet_labels
from fastmoco.errors import UsageError, one_line


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
    if not listing.names and listing.archives:
        raise UsageError(
            f"{listing.root}: holds no images but archives, such as {one_line(listing.archives[0])}"
            "; unpack them there"
        )
    if not listing.names:
        raise UsageError(
            f"{listing.root}: holds no images; searched it and its subfolders for "
            f"{' '.join(sorted(EXTENSIONS))} ({listing.passed_over.total} other files)"
        )
    if not options.labels:
        return _samples(listing, _labels_by_layout(listing))
    samples = _samples(listing, _class_folder_labels(listing) or _unlabeled(listing))
    relabel(samples, listing.root.absolute(), options.labels)
    return samples


def _class_folder_labels(listing: Listing) -> Labels | None:
    """Labels by the names of the first level; -1 for images beside it, None without folders."""
    firsts = [name.rpartition("/")[0].partition("/")[0] for name in listing.names]
    classes = sorted(set(firsts) - {""})
    if not classes:
        return None
    _refuse_splits(listing.root, classes)
    return labels_by_class(firsts, classes), classes


def _warned_class_folder_labels(listing: Listing) -> Labels | None:
    """As `_class_folder_labels`, with a warning of images that are in no folder."""
    labels = _class_folder_labels(listing)
    beside = [name for name in listing.names if "/" not in name]
    if labels and beside:
        warnings.warn(
            f"{listing.root}: {len(beside):,} of {len(listing.names):,} images are beside the "
            f"class folders and get no label (first {beside[0]}); with them no accuracy can be "
            "measured: move them into the folders of their classes, or elsewhere",
            stacklevel=2,
        )
    return labels


def _unlabeled(listing: Listing) -> Labels:
    return np.full(len(listing.names), -1, np.int64), []


_LAYOUTS: tuple[Callable[[Listing], Labels | None], ...] = (
    imagenet_labels,
    tiny_imagenet_labels,
    _warned_class_folder_labels,
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
    if splits := split_folders(classes):
        raise UsageError(
            f"{root}: holds the splits {', '.join(splits)}, not classes; convert each of them, "
            f"such as {root / splits[0]}"
        )
