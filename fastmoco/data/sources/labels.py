"""Labels: numbers or class names, from a list, an array, a file or a table."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.sources.array_files import read_array
from fastmoco.data.sources.samples import SampleSet
from fastmoco.data.sources.tables import read_table

MAX_CLASSES = 1 << 20  # a larger number is no class but an id of something

Labels = tuple[NDArray[np.int64], list[str]]

_INTEGER = re.compile(r"[+-]?[0-9]+")
_TABLE = re.compile(r"(.+\.(?:csv|tsv|parquet))(?::([^/]+))?")


def labels_of_texts(texts: Sequence[str], where: object, place: Callable[[int], str]) -> Labels:
    """Numbers stay; names count in sorted order; empty is -1, unlabeled.

    Args:
        texts: One for each sample; all numbers, or all names.
        where: File, for messages.
        place: Where in it the text of an index stands, for messages.

    Raises:
        ValueError: If numbers and names are mixed, or a number is no class.
    """
    stripped = [text.strip() for text in texts]
    is_number = [bool(_INTEGER.fullmatch(text)) for text in stripped]
    names = sorted({text for text, number in zip(stripped, is_number, strict=True) if not number})
    names = [name for name in names if name]
    if odd := next((name for name in names if "\0" in name), None):
        raise ValueError(f"{where}: the class name {odd!r} holds a zero byte; take it out")
    if any(is_number) and names:
        one = is_number.index(True)
        other = stripped.index(names[0])
        raise ValueError(
            f"{where}: labels are numbers and names mixed: {place(one)} has {stripped[one]}, "
            f"{place(other)} has {names[0]}; use one of them"
        )
    if names:
        number_of = {name: number for number, name in enumerate(names)} | {"": -1}
        return np.array([number_of[text] for text in stripped], np.int64), names
    # Digits beyond int64 would fail in NumPy: cut, they are too large all the same.
    numbers = [int(text[:12]) if text else -1 for text in stripped]
    return labels_of_array(np.array(numbers, np.int64), where)


def labels_of_array(array: NDArray[Any], where: object) -> Labels:
    """Class numbers, or strings as of `labels_of_texts`.

    Args:
        array: ``(n,)`` or ``(n, 1)``, integers or strings.
        where: File, for messages.

    Raises:
        ValueError: If it is of another shape or type, or holds what is no class number.
    """
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1 or array.dtype.kind not in "iuU":
        raise ValueError(
            f"{where}: labels are {array.dtype} of shape {array.shape}; give one integer or class "
            "name for each image"
        )
    if array.dtype.kind == "U":
        return labels_of_texts(array.tolist(), where, lambda index: f"entry {index}")
    bad = (array < -1) | (array >= MAX_CLASSES)
    if bad.any():
        raise ValueError(
            f"{where}: label {array[bad][0]} is not in -1..{MAX_CLASSES - 1}; -1 is unlabeled, and "
            "larger ones can be given as class names"
        )
    return array.astype(np.int64), [str(number) for number in range(int(array.max(initial=-1)) + 1)]


def read_labels(path: Path) -> Labels:
    """The labels of a file: ``.npy``, ``.pt``, or text with one on each line.

    Raises:
        ValueError: If it holds no labels.
        FileNotFoundError: If there is no such file.
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
    """Refuses labels that are not one for each image.

    Raises:
        ValueError: If their number differs.
    """
    if len(labels) != count:
        raise ValueError(f"{where}: {len(labels)} labels for {count} images; give one for each")


def split_table_name(labels: str) -> tuple[Path, str] | None:
    """``noisy.csv:COLUMN`` -> path and column, ``label`` where none is named; None if no table."""
    match = _TABLE.fullmatch(labels)
    return (Path(match[1]).expanduser(), match[2] or "label") if match else None


def number_of_image(name: str) -> int | None:
    """``img_000123.jpg`` -> 123: the last digits of the file's name; None without any."""
    digits = re.findall(r"[0-9]+", name.rpartition("/")[2].rpartition(".")[0])
    return int(digits[-1]) if digits else None


def relabel_by_number(samples: SampleSet, path: Path) -> None:
    """Sorts images by number and gives them the labels of a file, in place.

    Raises:
        ValueError: If an image has no number or another's, or the labels are more or fewer.
        FileNotFoundError: If the file of labels is missing.
    """
    _expect_file(path)
    seen: dict[int, str] = {}
    for name in samples.names:
        number = number_of_image(name)
        if number is None:
            raise ValueError(
                f"{name}: has no number by which to find its label in {path}; name labels by path, "
                "as labels=FILE.csv with the columns path and label"
            )
        if seen.setdefault(number, name) != name:
            raise ValueError(
                f"{name}: has the number of {seen[number]}; labels={path} needs one each"
            )
    labels, classes = read_labels(path)
    expect_count(labels, len(seen), path)
    order = {name: place for place, name in enumerate(samples.names)}
    samples.names = [seen[number] for number in sorted(seen)]
    samples.keys = samples.names
    samples.stamps = samples.stamps[[order[name] for name in samples.names]]
    samples.labels, samples.classes = labels, classes


def relabel_by_path(samples: SampleSet, folder: Path, path: Path, column: str) -> None:
    """Gives images the labels of a table with the column ``path``, in place.

    Paths are relative to the folder or, as in Imagenette's ``noisy_imagenette.csv``, to the one
    above it. Where all labels are names of the folder's classes, these keep their numbers.

    Raises:
        ValueError: If a column or an image is missing.
        FileNotFoundError: If the table is.
    """
    _expect_file(path)
    table = read_table(path, ["path", column])
    rows = {name: row for row, name in enumerate(table.column("path"))}
    texts = table.column(column)
    chosen = []
    for name in samples.names:
        row = rows.get(f"{folder.name}/{name}", rows.get(name))
        if row is None:
            raise ValueError(f"{path}: has no row for {folder.name}/{name} nor for {name}")
        chosen.append(row)
    wanted = [texts[row].strip() for row in chosen]
    number_of = {name: number for number, name in enumerate(samples.classes)} | {"": -1}
    if number_of.keys() >= set(wanted):
        samples.labels = np.array([number_of[text] for text in wanted], np.int64)
    else:
        samples.labels, samples.classes = labels_of_texts(
            wanted, path, lambda index: table.place(chosen[index])
        )
