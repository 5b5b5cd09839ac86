"""CSV, TSV or Parquet tables of image files: ``path``, and optionally ``label`` and ``split``."""

import os
from functools import partial
from pathlib import Path

from fastmoco.data.sources.labels import labels_of_texts
from fastmoco.data.sources.samples import SampleSet, SourceOptions, read_image_file, stamps_of
from fastmoco.data.sources.table_paths import image_path
from fastmoco.data.sources.tables import Table, read_table
from fastmoco.errors import UsageError


def open_manifest(path: Path, options: SourceOptions) -> SampleSet:
    """Open the images of a table, in its order; paths are relative to its folder.

    Classes come from all rows, so that their numbers agree between splits. A missing file is a bad
    image, found when it is loaded.

    Raises:
        UsageError: If the table has no rows of the split, no path that can be read, or no file
            of it exists.
        ValueError: If it has no column ``path``, a path twice, or labels of two kinds.
    """
    table = read_table(path, ["path", "label", "split"])
    paths = table.column("path")
    texts = table.columns.get("label", [""] * len(paths))
    labels, classes = labels_of_texts(texts, path, table.place)
    rows = _rows_of_split(table, options.split)
    names = [image_path(table, row) for row in rows]
    _refuse_repeats(table, rows, names)
    stamps = stamps_of(path.parent / name for name in names)
    if (stamps < 0).all():
        raise UsageError(
            f"{path}: none of its {len(names)} files exists; the first is {names[0]}; write paths "
            f"relative to {path.parent}"
        )
    return SampleSet(
        names=names,
        labels=labels[rows],
        classes=classes,
        load=partial(read_image_file, str(path.parent.absolute())),
        stamps=stamps,
    )


def _rows_of_split(table: Table, split: str) -> list[int]:
    """Rows to use: all if no split is named and there is no column ``split``."""
    count = len(table.column("path"))
    if not count:
        raise ValueError(f"{table.path}: lists no images")
    if "split" not in table.columns and not split:
        return list(range(count))
    splits, split = [cell.strip() for cell in table.column("split")], split or "train"
    rows = [row for row, cell in enumerate(splits) if cell == split]
    if not rows:
        known = ", ".join(sorted(set(splits) - {""})) or "none"
        raise UsageError(f"{table.path}: has no split={split}; its splits are {known}")
    return rows


def _refuse_repeats(table: Table, rows: list[int], names: list[str]) -> None:
    """Refuse an image that is listed twice: training would see it twice, maybe in two classes."""
    seen, folder = dict[str, int](), str(table.path.parent)
    for row, name in zip(rows, names, strict=True):
        first = seen.setdefault(os.path.normpath(os.path.join(folder, name)), row)
        if first != row:
            raise ValueError(
                f"{table.path}: {table.place(row)} repeats {name} of {table.place(first)}"
            )
