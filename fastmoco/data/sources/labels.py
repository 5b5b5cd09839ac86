"""Labels, as numbers or class names, from a list, an array, a file or a table."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.sources.array_files import read_array
from fastmoco.data.sources.samples import SampleSet
from fastmoco.data.sources.tables import read_table

MAX_CLASSES = 1 << 20  # a larger number is probably an id, not a class

Labels = tuple[NDArray[np.int64], list[str]]

_INTEGER = re.compile(r"[+-]?[0-9]+")
_TABLE = re.compile(r"(.+\.(?:csv|tsv|parquet))(?::([^/]+))?")


def labels_of_texts(texts: Sequence[str], where: object, place: Callable[[int], str]) -> Labels:
    """Convert texts to labels: numbers stay, names are numbered in sorted order, empty is -1.

    Args:
        texts: One for each sample; all numbers, or all names.
        where: File, for messages.
        place: Describes the position of an index in the file, for messages.

    Raises:
        ValueError: If numbers and names are mixed, or a number is not a class.
    """
    stripped = [text.strip() for text in texts]
    is_number = [bool(_INTEGER.fullmatch(text)) for text in stripped]
    names = sorted({text for text, number in zip(stripped, is_number, strict=True) if not number})
    names = [name for name in names if name]
    if odd := next((name for name in names if "\0" in name), None):
        raise ValueError(f"{where}: the class name {odd!r} holds a zero byte; remove it")
    if any(is_number) and names:
        one = is_number.index(True)
        other = stripped.index(names[0])
        raise ValueError(
            f"{where}: labels mix numbers and names: {place(one)} has {stripped[one]}, "
            f"{place(other)} has {names[0]}; use only one kind"
        )
    if names:
        return labels_by_class(stripped, names), names
    # Cut digits that int64 could not hold; the number is still too large and thus refused.
    numbers = [int(text[:12]) if text else -1 for text in stripped]
    return labels_of_array(np.array(numbers, np.int64), where)


def labels_by_class(names: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """Index in ``classes`` of each name; -1 for an empty name."""
    number_of = {name: number for number, name in enumerate(classes)} | {"": -1}
    return np.array([number_of[name] for name in names], np.int64)


def labels_of_array(array: NDArray[Any], where: object) -> Labels:
    """Convert an array to labels: class numbers, or strings as in `labels_of_texts`.

    Args:
        array: ``(n,)`` or ``(n, 1)``, integers or strings.
        where: File, for messages.

    Raises:
        ValueError: If shape or type differs, or a number is not a class.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iuU":
        raise ValueError(
            f"{where}: labels are {array.dtype} of shape {array.shape}; save one integer or class "
            "name for each image"
        )
    if array.dtype.kind == "U":
        return labels_of_texts(array.tolist(), where, lambda index: f"entry {index}")
    bad = (array < -1) | (array >= MAX_CLASSES)
    if bad.any():
        raise ValueError(
            f"{where}: label {array[bad][0]} is not in -1..{MAX_CLASSES - 1} (-1: unlabeled); use "
            "class names instead of larger numbers"
        )
    return array.astype(np.int64), [str(number) for number in range(int(array.max(initial=-1)) + 1)]


def read_labels(path: Path) -> Labels:
    """Read the labels of a file: ``.npy``, ``.npz``, ``.pt``, or text with one per line.

    Raises:
        ValueError: If the file holds no labels.
        FileNotFoundError: If the file does not exist.
    """
    _expect_file(path)
    if path.suffix.lower() in (".npy", ".npz", ".pt", ".pth"):
        return labels_of_array(read_array(path), path)
    lines = path.read_text("utf-8-sig", "surrogateescape").splitlines()
    return labels_of_texts(lines, path, lambda index: f"line {index + 1}")


def _expect_file(path: Path) -> None:
    if not path.is_file():
        raise FileNotFoundError(f"labels={path}: no such file")


def expect_count(labels: NDArray[np.int64], count: int, where: object) -> None:
    """Refuse labels whose number differs from that of the images.

    Raises:
        ValueError: If the numbers differ.
    """
    if len(labels) != count:
        raise ValueError(f"{where}: {len(labels)} labels for {count} images; give one for each")


def split_table_name(labels: str) -> tuple[Path, str] | None:
    """Split ``noisy.csv:COLUMN`` into path and column (default: ``label``); None if not a table."""
    match = _TABLE.fullmatch(labels)
    return (Path(match[1]).expanduser(), match[2] or "label") if match else None


def number_of_image(name: str) -> int | None:
    """Last digits of a file's name, ``img_000123.jpg`` -> 123; None if it has none."""
    digits = re.findall(r"[0-9]+", name.rpartition("/")[2].rpartition(".")[0])
    return int(digits[-1]) if digits else None


def relabel_by_number(samples: SampleSet, path: Path) -> None:
    """Sort images by number and assign the labels of a file, in place.

    Raises:
        ValueError: If an image has no number, two share one, or the number of labels differs.
        FileNotFoundError: If the file of labels is missing.
    """
    _expect_file(path)
    seen: dict[int, str] = {}
    for name in samples.names:
        number = number_of_image(name)
        if number is None:
            raise ValueError(
                f"{name}: has no number to find its label in {path}; set labels=FILE.csv to a "
                "table with the columns path and label"
            )
        if seen.setdefault(number, name) != name:
            raise ValueError(
                f"{name}: has the same number as {seen[number]}; labels={path} needs unique numbers"
            )
    labels, classes = read_labels(path)
    expect_count(labels, len(seen), path)
    order = {name: index for index, name in enumerate(samples.names)}
    samples.names = [seen[number] for number in sorted(seen)]
    samples.keys = samples.names
    samples.stamps = samples.stamps[[order[name] for name in samples.names]]
    samples.labels, samples.classes = labels, classes


def relabel_by_path(samples: SampleSet, folder: Path, path: Path, column: str) -> None:
    """Assign the labels of a table with the column ``path``, in place.

    Paths are relative to the folder or, as in Imagenette's ``noisy_imagenette.csv``, to its parent.
    If all labels are names of the folder's classes, the classes keep their numbers.

    Raises:
        ValueError: If a column or an image is missing.
        FileNotFoundError: If the table is missing.
    """
    _expect_file(path)
    table = read_table(path, ["path", column])
    rows = {name: row for row, name in enumerate(table.column("path"))}
    texts = table.column(column)
    chosen = []
    for name in samples.names:
        row = rows.get(f"{folder.name}/{name}", rows.get(name))
        if row is None:
            raise ValueError(f"{path}: has no row for {folder.name}/{name} or for {name}")
        chosen.append(row)
    wanted = [texts[row].strip() for row in chosen]
    if {*samples.classes, ""}.issuperset(wanted):
        samples.labels = labels_by_class(wanted, samples.classes)
    else:
        samples.labels, samples.classes = labels_of_texts(
            wanted, path, lambda index: table.place(chosen[index])
        )
