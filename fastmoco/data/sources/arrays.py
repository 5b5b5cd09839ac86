"""Images in one array: ``.npy``, ``.npz`` and ``.pt``.

A sample's key is its pixels: only a batch's travel to a worker, and no worker opens the file,
checks it, or holds a copy of it. The price is one copy of each image through a pipe.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.sources.labels import Labels, expect_count, labels_of_array, read_labels
from fastmoco.data.sources.samples import SampleSet, SourceOptions, stamps_of

_IMAGES = ("images", "x", "data")
_LABELS = ("labels", "y", "targets", "label")


def open_arrays(path: Path, options: SourceOptions) -> SampleSet:
    """The images of an array file, with its labels or those of ``options.labels``.

    Raises:
        ValueError: If it holds no uint8 images, or labels do not fit.
        FileNotFoundError: If the file of labels is missing.
    """
    images, label_array = _read_pair(path, options.split or "train")
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
    """Samples whose keys are rows of ``pixels``, as of `as_hwc`."""
    return SampleSet(
        names=names,
        labels=labels[0],
        classes=labels[1],
        load=as_rgb,
        keys=list(pixels),
        stamps=stamps,
    )


def as_rgb(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A copy of ``(H, W)``, ``(H, W, 1)`` or ``(H, W, 3)``, as ``(H, W, 3)``."""
    pixels = pixels[..., None] if pixels.ndim == 2 else pixels
    return np.array(np.broadcast_to(pixels, (*pixels.shape[:2], 3)), order="C")


def as_hwc(images: NDArray[Any], where: object) -> NDArray[np.uint8]:
    """A view of images with channels last, or without any.

    Args:
        images: ``(N, H, W)``, ``(N, H, W, C)`` or ``(N, C, H, W)`` uint8; C is 1 or 3.
        where: File, for messages.

    Raises:
        ValueError: If type or shape is another.
    """
    if images.dtype != np.uint8:
        raise ValueError(
            f"{where}: images are {images.dtype}; give uint8 levels 0..255, such as "
            "(255 * x).round().astype('uint8') of floats 0..1"
        )
    shape = images.shape
    is_last = len(shape) == 4 and shape[3] in (1, 3)
    is_first = len(shape) == 4 and shape[1] in (1, 3) and not is_last
    is_gray = len(shape) == 3 and shape[2] not in (1, 3)
    if not (is_last or is_first or is_gray) or 0 in shape:
        raise ValueError(
            f"{where}: images are of shape {shape}; give (N, H, W, 3), (N, 3, H, W) or (N, H, W)"
        )
    return np.moveaxis(images, 1, 3) if is_first else np.asarray(images)


def read_array(path: Path) -> NDArray[Any]:
    """The array of a ``.npy`` file, mapped, or the tensor of a ``.pt`` file.

    Raises:
        ValueError: If it is none, or holds several.
    """
    array, labels = _read_pair(path, "")
    if labels is not None:
        raise ValueError(f"{path}: holds images and labels; name a file with labels alone")
    return array


def _read_pair(path: Path, split: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Images, and labels if there are any."""
    if path.suffix.lower() in (".pt", ".pth"):
        return _read_torch(path, split)
    if path.suffix.lower() == ".npy":
        with _explained(path):
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)), None
    with path.open("rb") as file:  # np.load by name leaves a damaged archive open
        with _explained(path):
            found = np.load(file, allow_pickle=False)
        if isinstance(found, np.ndarray):
            return found, None
        images, labels = _choose(found.files, split, path)
        with _explained(path):
            return found[images], None if labels is None else found[labels]


def _read_torch(path: Path, split: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Of a tensor, ``(images, labels)``, or a dict; never unpickles anything else."""
    import torch

    with _explained(path):
        found = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(found, Mapping):
        images, labels = _choose(found, split, path)
        chosen = [found[images]] if labels is None else [found[images], found[labels]]
    elif isinstance(found, tuple | list) and found and isinstance(found[0], torch.Tensor):
        chosen = list(found)
    else:
        chosen = [found]
    if len(chosen) > 2:
        raise ValueError(f"{path}: holds {len(chosen)} tensors; give images, or images and labels")
    arrays = [_as_array(one, path) for one in chosen]
    return arrays[0], arrays[1] if len(arrays) == 2 else None


def _as_array(found: Any, where: object) -> NDArray[Any]:
    import torch

    if isinstance(found, torch.Tensor):
        # NumPy has no bfloat16; its float32 is refused as well, and by name.
        found = found.float() if found.dtype is torch.bfloat16 else found
        array: NDArray[Any] = found.numpy(force=True)
        return array
    if isinstance(found, list):
        return np.asarray(found)
    raise ValueError(f"{where}: holds a {type(found).__name__}; give tensors of images and labels")


def _choose(names: Iterable[str], split: str, where: object) -> tuple[str, str | None]:
    """Names of the images' array and, if there is one, of the labels'."""
    spelling = {str(name).lower(): name for name in names}
    images, labels = _pick(spelling, _IMAGES, split), _pick(spelling, _LABELS, split)
    if images is None:
        raise ValueError(
            f"{where}: holds {', '.join(sorted(spelling)) or 'nothing'}; name the images "
            f"{', '.join(_IMAGES)} or, by their split, images_{split}, and the labels likewise"
        )
    return images, labels


def _pick(spelling: Mapping[str, str], names: Iterable[str], split: str) -> str | None:
    """The array of a name, or of that and the split: ``x``, ``x_train``, ``train_x``."""
    for name in names:
        for candidate in (f"{name}_{split}", f"{split}_{name}", name):
            if candidate in spelling:
                return spelling[candidate]
    return None


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Makes one line of what NumPy and torch raise on a damaged file or one of objects."""
    try:
        yield
    except (RuntimeError, ValueError, EOFError, BadZipFile, UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: is damaged, or no file of arrays ({reason})") from error
