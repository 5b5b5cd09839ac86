"""Images in one array: ``.npy``, ``.npz`` and ``.pt``.

A sample's key is its pixels. So only a batch's pixels travel to a worker, and no worker opens,
checks or copies the file. The price is one copy of each image through a pipe.
"""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.sources.array_files import read_pair
from fastmoco.data.sources.label_files import read_labels
from fastmoco.data.sources.labels import Labels, expect_count, labels_of_array
from fastmoco.data.sources.samples import SampleSet, SourceOptions, stamps_of


def open_arrays(path: Path, options: SourceOptions) -> SampleSet:
    """Open the images of an array file, with its labels or those of ``options.labels``.

    Raises:
        ValueError: If the file holds no uint8 images, or labels do not match.
        FileNotFoundError: If the file of labels is missing.
    """
    images, label_array = read_pair(path, options.split)
    pixels = as_hwc(images, path)
    files = [path]
    if options.labels:
        files.append(Path(options.labels).expanduser())
        labels, classes = read_labels(files[1])
    elif label_array is None:
        labels, classes = np.full(len(pixels), -1, np.int64), []
    else:
        labels, classes = labels_of_array(label_array, path)
    expect_count(labels, len(pixels), files[-1])
    width = len(str(len(pixels) - 1))
    names = [f"{index:0{width}d}" for index in range(len(pixels))]
    return array_samples(names, pixels, (labels, classes), stamps_of(files))


def array_samples(
    names: list[str], pixels: NDArray[np.uint8], labels: Labels, stamps: NDArray[np.int64]
) -> SampleSet:
    """Samples whose keys are rows of ``pixels``, which come from `as_hwc`."""
    return SampleSet(
        names=names,
        labels=labels[0],
        classes=labels[1],
        load=as_rgb,
        keys=list(pixels),
        stamps=stamps,
    )


def as_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Copy ``(H, W)``, ``(H, W, 1)`` or ``(H, W, 3)`` to ``(H, W, 3)``."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return np.array(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), order="C")


def as_hwc(images: NDArray[Any], where: object) -> NDArray[np.uint8]:
    """View images with channels last, or without channels.

    Args:
        images: ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)`` uint8; C is 1 or 3.
        where: File, for messages.

    Raises:
        ValueError: If type or shape is not one of these.
    """
    if images.dtype != np.uint8:
        raise ValueError(
            f"{where}: images are {images.dtype}, not uint8; convert them to levels 0..255, from "
            "floats 0..1 by (255 * x).round().astype('uint8')"
        )
    shape = images.shape
    is_last = len(shape) == 4 and shape[3] in (1, 3)
    is_first = len(shape) == 4 and shape[1] in (1, 3) and not is_last
    is_gray = len(shape) == 3 and shape[2] not in (1, 3)
    if not (is_last or is_first or is_gray) or 0 in shape:
        raise ValueError(
            f"{where}: images are of shape {shape}; save (N, H, W, 3), (N, 3, H, W) or (N, H, W)"
        )
    return np.moveaxis(images, 1, 3) if is_first else np.asarray(images)
