"""Columns of CSV, TSV or Parquet files, as text."""

import csv
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastmoco.files import regular_file
from fastmoco.parsing import plain_cell


@dataclass(kw_only=True, slots=True)
class Table:
    """Some columns of a file."""

    path: Path
    """The file."""
    header: list[str]
    """Names of all its columns."""
    columns: dict[str, list[str]]
    """Cells of the wanted columns that exist; an empty cell is ``""``."""
    places: Sequence[int]
    """Line (CSV) or row (Parquet) of each row in the file, counted from 1."""

    def column(self, name: str) -> list[str]:
        """Cells of a column.

        Raises:
            ValueError: If there is no such column.
        """
        if name not in self.columns:
            advice = f"call one of them {name}"
            if _is_parquet(self.path) and name == "path":
                advice += " (images inside a table are not read; write them to files)"
            raise ValueError(
                f"{self.path}: has no column {name}; its columns are {', '.join(self.header)}; "
                f"{advice}"
            )
        return self.columns[name]

    def place(self, row: int) -> str:
        """Position of a row in the file, for messages."""
        return f"{'row' if _is_parquet(self.path) else 'line'} {self.places[row]}"


def read_table(path: Path, wanted: Sequence[str]) -> Table:
    """Read some columns of a table.

    Args:
        path: A ``.csv``, ``.tsv`` or ``.parquet`` file.
        wanted: Names of columns; missing ones are skipped.

    Raises:
        ValueError: If the file is empty or cannot be parsed.
        OSError: If the file cannot be read.
    """
    return (_read_parquet if _is_parquet(path) else _read_csv)(path, wanted)


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def read_text(path: Path) -> str:
    """Read a text file in UTF-8 or UTF-16; undecodable bytes of file names become surrogates.

    Raises:
        ValueError: If it begins as UTF-16 does, but is something else.
        OSError: If the file cannot be read.
    """
    data = regular_file(path).read_bytes()
    if not data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-8-sig", "surrogateescape")
    try:
        return data.decode("utf-16")
    except UnicodeError as error:
        raise ValueError(f"{path}: is not UTF-16 text ({error}); save it as UTF-8") from error


def _read_csv(path: Path, wanted: Sequence[str]) -> Table:
    text = read_text(path)
    reader = csv.reader(
        io.StringIO(text, newline=""), delimiter=_delimiter(path, text), strict=True
    )
    try:
        header = [cell.strip() for cell in next(reader, [])]
        indices = _columns(path, header, wanted)
        cells: list[list[str]] = [[] for _ in indices]
        places = []
        for row in reader:
            if not any(cell.strip() for cell in row):
                continue
            if any(row[len(header) :]):
                raise ValueError(
                    f"{path}: line {reader.line_num} has {len(row)} cells for {len(header)} "
                    "columns; write a cell that holds the separator in double quotes"
                )
            places.append(reader.line_num)
            for column, index in zip(cells, indices.values(), strict=True):
                column.append(plain_cell(row[index]) if index < len(row) else "")
    except csv.Error as error:
        raise ValueError(f"{path}: line {reader.line_num} is not CSV ({error})") from error
    if not header:
        raise ValueError(f"{path}: is empty; its first line must name the columns")
    columns = dict(zip(indices, cells, strict=True))
    return Table(path=path, header=header, columns=columns, places=places)


def _delimiter(path: Path, text: str) -> str:
    """Separator of a file's cells; a spreadsheet writes ``;`` where numbers have a comma."""
    if path.suffix.lower() == ".tsv":
        return "\t"
    head = text.partition("\n")[0]
    return next((one for one in ",;\t" if one in head), ",")


def _columns(path: Path, header: Sequence[str], wanted: Sequence[str]) -> dict[str, int]:
    """Index of each wanted column that exists, as spelled or else in another case.

    Raises:
        ValueError: If there are two.
    """
    indices = {}
    for name in wanted:
        found = [index for index, cell in enumerate(header) if cell == name]
        found = found or [i for i, cell in enumerate(header) if cell.lower() == name.lower()]
        if len(found) > 1:
            raise ValueError(f"{path}: has two columns {name}; rename one of them")
        if found:
            indices[name] = found[0]
    return indices


def _read_parquet(path: Path, wanted: Sequence[str]) -> Table:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(regular_file(path)) as file:
            header = list(file.schema_arrow.names)
            indices = _columns(path, header, wanted)
            table = file.read(columns=[header[index] for index in indices.values()])
    except pyarrow.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: is not a Parquet file ({reason})") from error
    columns = {
        name: [cell_text(cell, path) for cell in table.column(header[index]).to_pylist()]
        for name, index in indices.items()
    }
    return Table(path=path, header=header, columns=columns, places=range(1, table.num_rows + 1))


def cell_text(cell: Any, where: object) -> str:
    """Format a cell as in CSV.

    Raises:
        ValueError: If it holds several values.
    """
    if isinstance(cell, list | tuple | dict):
        raise ValueError(f"{where}: a cell holds several values, {cell!r:.60}; give one an image")
    if cell is None or cell != cell:
        return ""
    return os.fsdecode(cell) if isinstance(cell, bytes) else str(cell)
