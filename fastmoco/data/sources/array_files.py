"""Readers of array files: ``.npy``, ``.npz``, and torch's tensors; nothing is unpickled."""

import math
import zlib
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import IO, Any
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from fastmoco.errors import UsageError
from fastmoco.memory import free_bytes
from fastmoco.torch_files.child import RefusedFileError, read_arrays

_IMAGES = ("images", "x", "data")
_LABELS = ("labels", "y", "targets", "label")

_DAMAGE: tuple[type[Exception], ...] = (
    *(RuntimeError, ValueError, EOFError, BadZipFile, zlib.error, KeyError, MemoryError),
    *(SyntaxError, TokenError, OverflowError),
)
"""What NumPy and zipfile raise for damaged files; the last three by a header."""


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
            with path.open("rb") as file:
                _check_header(file, path.stat().st_size)
            return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False)), None
    with path.open("rb") as file:  # np.load by name leaves a damaged archive open
        with _explained(path):
            found = np.load(file, allow_pickle=False)
        if isinstance(found, np.ndarray):
            _refuse_split(path, split)
            return found, None
        images, labels = _choose(found.files, split, path)
        with _explained(path):
            return _member(found, images), None if labels is None else _member(found, labels)


def _member(archive: Any, name: str) -> NDArray[Any]:
    """An array of a ``.npz`` file, if memory has room for it."""
    record = archive.zip.NameToInfo.get(f"{name}.npy") or archive.zip.getinfo(name)
    with archive.zip.open(record) as file:
        claimed = _check_header(file, record.file_size)
    if claimed > (free := free_bytes()):
        room = f"{free / 1e9:.1f} are free"
        raise ValueError(f"{name} needs {claimed / 1e9:.1f} GB of memory, {room}")
    array: NDArray[Any] = archive[name]
    return array


def _check_header(file: IO[bytes], num_bytes: int) -> int:
    """Bytes that the header of an array claims; NumPy would ask for them before it reads.

    Raises:
        ValueError: If they are more than there are.
    """
    form = np.lib.format
    is_first = form.read_magic(file) == (1, 0)
    shape, _, dtype = (form.read_array_header_1_0 if is_first else form.read_array_header_2_0)(file)
    claimed = math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or claimed > num_bytes:
        raise ValueError(f"its header claims {claimed:,} bytes of {num_bytes:,}")
    return claimed


def _read_torch(path: Path, split: str) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Read a tensor, ``(images, labels)``, or a dict of them, by a process of its own."""
    try:
        found = read_arrays(path)
    except RefusedFileError as error:
        raise ValueError(f"{path}: {error}") from error
    if "" in found or "0" in found:
        _refuse_split(path, split)
        chosen = list(found)
    else:
        images, labels = _choose(found, split, path)
        chosen = [images] if labels is None else [images, labels]
    if len(chosen) > 2:
        raise ValueError(f"{path}: holds {len(chosen)} tensors; save images, or images and labels")
    arrays = [_expect_array(found[name], path) for name in chosen]
    return arrays[0], arrays[1] if len(arrays) == 2 else None


def _expect_array(found: NDArray[Any] | str, where: object) -> NDArray[Any]:
    if isinstance(found, str):
        raise ValueError(f"{where}: holds a {found}; save tensors of images and labels")
    return found


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
    """Shorten errors of NumPy on damaged files or object arrays to one line."""
    try:
        yield
    except _DAMAGE as error:
        reason = str(error).partition("\n")[0]
        if "pickle" in reason:  # NumPy's own message tells how to load it unsafely
            reason = "it holds Python objects"
        raise ValueError(f"{path}: is damaged, or not an array file ({reason})") from error
