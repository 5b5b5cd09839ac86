"""Readers of array files: ``.npy``, ``.npz``, and torch's tensors; nothing is unpickled."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fastmoco.errors import UsageError

_IMAGES = ("images", "x", "data")
_LABELS = ("labels", "y", "targets", "label")


def read_array(path: Path) -> NDArray[Any]:
    """Read the array of a ``.npy`` file (memory-mapped) or the tensor of a ``.pt`` file.

    Raises:
        ValueError: If the file holds no array, or images and labels.
    """
    array, labels = read_pair(path, "")
    if labels is not None:
        raise ValueError(f"{path}: holds images and labels; name a file with only labels")
    return array


def read_pair(path: Path, split: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Read images, and labels if there are any.

    Args:
        path: The file.
        split: Split in the names of the arrays, such as ``x_test``; empty: ``train``, else arrays
            without a split.

    Raises:
        UsageError: If there is no such split.
        ValueError: If the file is damaged, or its arrays cannot be told apart.
    """
    if path.suffix.lower() in (".pt", ".pth"):
        return _read_torch(path, split)
    if path.suffix.lower() == ".npy":
        _refuse_split(path, split)
        with _explained(path):
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)), None
    with path.open("rb") as file:  # np.load by name leaves a damaged archive open
        with _explained(path):
            found = np.load(file, allow_pickle=False)
        if isinstance(found, np.ndarray):
            _refuse_split(path, split)
            return found, None
        images, labels = _choose(found.files, split, path)
        with _explained(path):
            return found[images], None if labels is None else found[labels]


def _read_torch(path: Path, split: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Read a tensor, ``(images, labels)``, or a dict; never unpickle anything else."""
    import torch

    with _explained(path):
        found = torch.load(path, map_location="cpu", weights_only=True)
    if isinstance(found, Mapping):
        images, labels = _choose(found, split, path)
        chosen = [found[images]] if labels is None else [found[images], found[labels]]
    else:
        _refuse_split(path, split)
        is_pair = isinstance(found, tuple | list) and found and isinstance(found[0], torch.Tensor)
        chosen = list(found) if is_pair else [found]
    if len(chosen) > 2:
        raise ValueError(f"{path}: holds {len(chosen)} tensors; save images, or images and labels")
    arrays = [_as_array(one, path) for one in chosen]
    return arrays[0], arrays[1] if len(arrays) == 2 else None


def _as_array(found: Any, where: object) -> NDArray[Any]:
    import torch

    if isinstance(found, torch.Tensor):
        # NumPy has no bfloat16; float32 is refused later, by a message that names the type.
        found = found.float() if found.dtype is torch.bfloat16 else found
        array: NDArray[Any] = found.numpy(force=True)
        return array
    if isinstance(found, list):
        return np.asarray(found)
    raise ValueError(f"{where}: holds a {type(found).__name__}; save tensors of images and labels")


def _refuse_split(path: Path, split: str) -> None:
    """Refuse a split of a file that holds one array of images."""
    if split:
        raise UsageError(f"{path}: has no split={split}; it holds one set of images")


def _choose(names: Iterable[str], split: str, where: object) -> tuple[str, str | None]:
    """Names of the images' array and, if there is one, of the labels', both of one split."""
    spelling = {str(name).lower(): name for name in names}
    wanted = split.lower() or "train"
    of_split, of_none = (f"{{}}_{wanted}", f"{wanted}_{{}}"), ("{}",)
    for forms in (of_split,) if split else (of_split, of_none):
        images, labels = (_pick(spelling, known, forms) for known in (_IMAGES, _LABELS))
        other = _pick(spelling, _LABELS, (*of_split, *of_none))
        if images is not None and labels is None and other is not None:
            raise ValueError(
                f"{where}: the labels {other} are not of the split of the images {images}; name "
                "both alike, such as x_train and y_train"
            )
        if images is not None:
            return images, labels
    holds = ", ".join(sorted(spelling)) or "nothing"
    if split:
        raise UsageError(f"{where}: has no images_{split} for split={split}; it holds {holds}")
    raise ValueError(
        f"{where}: holds {holds}; name the images {', '.join(_IMAGES)} or images_train, and the "
        "labels labels or labels_train"
    )


def _pick(spelling: Mapping[str, str], names: Iterable[str], forms: Iterable[str]) -> str | None:
    """The array of a name in one of the forms, such as ``{}_train``."""
    candidates = (form.format(name) for name in names for form in forms)
    return next((spelling[one] for one in candidates if one in spelling), None)


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Shorten errors of NumPy and torch on damaged files or object arrays to one line."""
    try:
        yield
    except (RuntimeError, ValueError, EOFError, BadZipFile, UnpicklingError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: is damaged, or not an array file ({reason})") from error
