"""Files of labels for images that are listed already: in the images' order, or by path."""

import re
from pathlib import Path

from fastmoco.data.sources.array_files import read_array
from fastmoco.data.sources.labels import (
    Labels,
    expect_count,
    label_texts,
    labels_by_class,
    labels_of_array,
    labels_of_texts,
)
from fastmoco.data.sources.recognition import EXTENSIONS
from fastmoco.data.sources.samples import SampleSet
from fastmoco.data.sources.table_paths import rows_of_images
from fastmoco.data.sources.tables import Table, read_table, read_text
from fastmoco.errors import UsageError
from fastmoco.files import regular_file

_TABLE = re.compile(r"(.+\.(?:csv|tsv|parquet))(?::([^/]+))?", re.IGNORECASE)
_IMAGE = "|".join(extension[1:] for extension in sorted(EXTENSIONS))
_LISTED = re.compile(rf"(.+?\.(?:{_IMAGE}))(?:[\s,;]+(.*))?", re.IGNORECASE)
_FIELDS = re.compile(r"([^\s,;]+)[\s,;]+(.+)")
_NUMBERS = re.compile(r"[-+.0-9]+([\s,;]+[-+.0-9]+)+")


def split_table_name(labels: str) -> tuple[Path, str] | None:
    """Split ``noisy.csv:COLUMN`` into path and column (default: ``label``); None if not a table."""
    match = _TABLE.fullmatch(labels)
    return (Path(match[1]).expanduser(), match[2] or "label") if match else None


def relabel(samples: SampleSet, folder: Path, labels: str) -> None:
    """Assign the labels of a file to the images of a folder, in place.

    The file gives them by path, as a table or a text file of lines such as ``cat/1.jpg 3``, or in
    the order of the images' numbers.

    Args:
        samples: Images of the folder.
        folder: The folder, absolute.
        labels: The file; of a table also the column, ``FILE.csv:COLUMN``.

    Raises:
        ValueError: If the labels do not fit the images.
        FileNotFoundError: If the file is missing.
    """
    if named := split_table_name(labels):
        _expect_file(named[0])
        table = read_table(named[0], ["path", named[1]])
        _relabel_by_path(samples, folder, table, named[1])
        return
    path = Path(labels).expanduser()
    _expect_file(path)
    stems = {part for name in samples.names for part in (_stem(name), _stem(Path(name).name))}
    if not _is_array(path) and (listed := _read_list(path, stems)):
        _relabel_by_path(samples, folder, listed, "label")
    else:
        _relabel_by_number(samples, path)


def read_labels(path: Path) -> Labels:
    """Read the labels of a file: ``.npy``, ``.npz``, ``.pt``, or text with one per line.

    Raises:
        ValueError: If the file holds no labels, or more than one field in a line.
        FileNotFoundError: If the file does not exist.
    """
    _expect_file(path)
    if _is_array(path):
        return labels_of_array(read_array(path), path)
    lines = read_text(path).splitlines()
    _refuse_fields(path, lines)
    return labels_of_texts(lines, path, lambda index: f"line {index + 1}")


def number_of_image(name: str) -> int | None:
    """Last digits of a file's name, ``img_000123.jpg`` -> 123; None if it has none."""
    digits = re.findall(r"[0-9]+", _stem(name.rpartition("/")[2]))
    return int(digits[-1]) if digits else None


def _expect_file(path: Path) -> None:
    if not path.exists():
        raise FileNotFoundError(f"labels={path}: no such file")
    regular_file(path)


def _is_array(path: Path) -> bool:
    return path.suffix.lower() in (".npy", ".npz", ".pt", ".pth")


def _stem(name: str) -> str:
    return name.rpartition(".")[0]


def _read_list(path: Path, stems: set[str]) -> Table | None:
    """Read lines of a path and a label, such as ``cat/1.jpg 3``; None for one label a line.

    Args:
        path: A text file.
        stems: Paths and names of the images without their extensions, which lines may also have.

    Raises:
        UsageError: If only some lines have a path, or one has several labels.
    """
    lines = {n: line.strip() for n, line in enumerate(read_text(path).splitlines(), 1)}
    lines = {number: line for number, line in lines.items() if line}
    for pattern in (_LISTED, _FIELDS):
        found = {number: pattern.fullmatch(line) for number, line in lines.items()}
        if any(match and (pattern is _LISTED or match[1] in stems) for match in found.values()):
            break
    else:
        return None
    columns: dict[str, list[str]] = {"path": [], "label": []}
    for number, match in found.items():
        if not match or match[2] is None or _NUMBERS.fullmatch(match[2]):
            raise UsageError(
                f"{path}: line {number} is no path and one label: {lines[number]}; write lines "
                "such as cat/1.jpg 3, or a table with the columns path and label"
            )
        columns["path"].append(match[1])
        columns["label"].append(match[2])
    return Table(path=path, header=list(columns), columns=columns, places=list(lines))


def _refuse_fields(path: Path, lines: list[str]) -> None:
    """Refuse lines of several fields, which would make a class of each line.

    A class name may have blanks; but lines that are all different are no classes.
    """
    filled = [line.strip() for line in lines if line.strip()]
    several = [line for line in filled if _FIELDS.fullmatch(line)]
    odd = [line for line in filled if _NUMBERS.fullmatch(line) or _LISTED.fullmatch(line)]
    if len(several) > 1 and len(set(filled)) == len(filled):
        odd += several
    if odd:
        raise UsageError(
            f"{path}: line {lines.index(odd[0]) + 1} has several fields: {odd[0]}; write one label "
            "a line, or for images in a folder lines such as cat/1.jpg 3"
        )


def _relabel_by_number(samples: SampleSet, path: Path) -> None:
    """Sort images by number and assign the labels of a file, in place.

    Raises:
        ValueError: If an image has no number, two share one, or the number of labels differs.
    """
    labels, classes = read_labels(path)
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
    expect_count(labels, len(seen), path)
    order = {name: index for index, name in enumerate(samples.names)}
    samples.names = [seen[number] for number in sorted(seen)]
    samples.keys = samples.names
    samples.stamps = samples.stamps[[order[name] for name in samples.names]]
    samples.labels, samples.classes = labels, classes


def _relabel_by_path(samples: SampleSet, folder: Path, table: Table, column: str) -> None:
    """Assign the labels of a table with the column ``path``, in place.

    If all labels are names of the folder's classes, the classes keep their numbers.

    Raises:
        ValueError: If a column or an image is missing, or labels disagree.
    """
    texts = label_texts(table.column(column), table.path, frozenset(samples.classes))
    chosen = rows_of_images(table, texts, samples.names, folder)
    wanted = [texts[row] for row in chosen]
    if {*samples.classes, ""}.issuperset(wanted):
        samples.labels = labels_by_class(wanted, samples.classes)
    else:
        samples.labels, samples.classes = labels_of_texts(
            wanted, table.path, lambda index: table.place(chosen[index])
        )
