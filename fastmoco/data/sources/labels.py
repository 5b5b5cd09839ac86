"""Labels as class numbers, from class numbers or class names in texts and arrays."""

import re
import warnings
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

MAX_CLASSES = 1 << 20  # a larger number is probably an id, not a class

Labels = tuple[NDArray[np.int64], list[str]]

# Words that pandas writes or reads for a missing value; another case ("none") may be a class.
MISSING = frozenset(
    {"#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>"}
    | {"N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"}
)
_NUMBER = re.compile(r"[+-]?[0-9]+(\.[0-9]*)?")
_WHOLE = re.compile(r"([+-]?[0-9]+)\.0*")


def label_texts(cells: Sequence[str], where: object, known: Collection[str] = ()) -> list[str]:
    """Clean the texts of labels: ``11.0`` becomes ``11``, and a word of `MISSING` becomes ``""``.

    Every text label of a file goes through here. Words for "missing" cause a warning, since a class
    may have such a name.

    Args:
        cells: One for each sample.
        where: File, for messages.
        known: Names of classes, which stay as they are.
    """
    texts = [_label_text(cell.strip(), known) for cell in cells]
    words = Counter(cell.strip() for cell, text in zip(cells, texts, strict=True) if not text)
    del words[""]
    if words:
        warnings.warn(
            f"{where}: {words.total():,} labels ({', '.join(sorted(words))}) count as missing; "
            "rename the class if that is one",
            stacklevel=2,
        )
    return texts


def _label_text(text: str, known: Collection[str]) -> str:
    if text in known:
        return text
    whole = _WHOLE.fullmatch(text)
    return whole[1] if whole else "" if text in MISSING else text


def labels_of_texts(texts: Sequence[str], where: object, place: Callable[[int], str]) -> Labels:
    """Convert texts to labels: numbers stay, names are numbered in sorted order, missing is -1.

    Args:
        texts: One for each sample, cleaned here by `label_texts`; all numbers, or all names.
        where: File, for messages.
        place: Describes the position of an index in the file, for messages.

    Raises:
        ValueError: If numbers and names are mixed, or a number is not a class.
    """
    cleaned = label_texts(texts, where)
    is_number = [bool(_NUMBER.fullmatch(text)) for text in cleaned]
    names = sorted({text for text, number in zip(cleaned, is_number, strict=True) if not number})
    names = [name for name in names if name]
    if odd := next((name for name in names if "\0" in name), None):
        raise ValueError(f"{where}: the class name {odd!r} holds a zero byte; remove it")
    if any(is_number) and names:
        one = is_number.index(True)
        other = cleaned.index(names[0])
        raise ValueError(
            f"{where}: labels mix numbers and names: {place(one)} has {cleaned[one]}, "
            f"{place(other)} has {names[0]}; use only one kind"
        )
    if names:
        return labels_by_class(cleaned, names), names
    if fraction := next((text for text in cleaned if "." in text), None):
        raise ValueError(
            f"{where}: {place(cleaned.index(fraction))} has the label {fraction}; a class is a "
            "whole number or a name"
        )
    return _numbered(np.array([int(text or -1) for text in cleaned], object), where)


def labels_by_class(names: Sequence[str], classes: Sequence[str]) -> NDArray[np.int64]:
    """Index in ``classes`` of each name; -1 for an empty name."""
    number_of = {name: number for number, name in enumerate(classes)} | {"": -1}
    return np.array([number_of[name] for name in names], np.int64)


def labels_of_array(array: NDArray[Any], where: object) -> Labels:
    """Convert an array to labels: class numbers, or strings as in `labels_of_texts`.

    Args:
        array: ``(n,)`` or ``(n, 1)``: integers, booleans, whole floats with NaN for a missing
            label, or strings.
        where: File, for messages.

    Raises:
        ValueError: If shape or type differs, or a number is not a class.
    """
    flat = array[:, 0] if array.ndim == 2 and array.shape[1] == 1 else array
    if flat.ndim != 1 or flat.dtype.kind not in "biufU":
        raise ValueError(
            f"{where}: labels are {array.dtype} of shape {array.shape}; save one integer or class "
            "name for each image (argmax(1) of one-hot rows)"
        )
    if flat.dtype.kind == "U":
        return labels_of_texts(flat.tolist(), where, lambda index: f"entry {index}")
    if flat.dtype.kind == "f":
        flat = np.where(np.isnan(flat), -1, flat)
        if (odd := flat[flat != np.round(flat)]).size:
            raise ValueError(f"{where}: a label is {odd[0]:g}; a class is a whole number or a name")
    return _numbered(flat, where)


def _numbered(numbers: NDArray[Any], where: object) -> Labels:
    """Labels and class names of class numbers, ``(n,)`` of any type of number."""
    bad = (numbers < -1) | (numbers >= MAX_CLASSES)
    if bad.any():
        raise ValueError(
            f"{where}: label {numbers[bad][0]} is not in -1..{MAX_CLASSES - 1} (-1: unlabeled); "
            "use class names instead of larger numbers"
        )
    labels = numbers.astype(np.int64)
    return labels, [str(number) for number in range(int(labels.max(initial=-1)) + 1)]


def expect_count(labels: NDArray[np.int64], count: int, where: object) -> None:
    """Refuse labels whose number differs from that of the images.

    Raises:
        ValueError: If the numbers differ.
    """
    if len(labels) != count:
        raise ValueError(f"{where}: {len(labels)} labels for {count} images; give one for each")
