"""Columns of a CSV, TSV or Parquet file, as text."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(kw_only=True, slots=True)
class Table:
    """Some columns of a file.

    Attributes:
        path: The file.
        header: Names of all its columns.
        columns: Cells of those that were asked for and exist; an empty cell is ``""``.
        places: Line (CSV) or row (Parquet) of each row in the file, counted from 1.
    """

    path: Path
    header: list[str]
    columns: dict[str, list[str]]
    places: Sequence[int]

    def column(self, name: str) -> list[str]:
        """A column's cells.

        Raises:
            ValueError: If there is no such column.
        """
        if name not in self.columns:
            raise ValueError(
                f"{self.path}: has no column {name}; its columns are {', '.join(self.header)}"
            )
        return self.columns[name]

    def place(self, row: int) -> str:
        """Where a row is, for messages."""
        return f"{'row' if _is_parquet(self.path) else 'line'} {self.places[row]}"


def read_table(path: Path, wanted: Sequence[str]) -> Table:
    """Reads some columns of a table.

    Args:
        path: A ``.csv``, ``.tsv`` or ``.parquet`` file.
        wanted: Names of columns; those that do not exist are left out.

    Raises:
        ValueError: If it is empty or cannot be parsed.
        OSError: If it cannot be read.
    """
    return (_read_parquet if _is_parquet(path) else _read_csv)(path, wanted)


def _is_parquet(path: Path) -> bool:
    return path.suffix.lower() == ".parquet"


def _read_csv(path: Path, wanted: Sequence[str]) -> Table:
    """File names may hold any bytes, so these pass through as surrogates."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = [cell.strip() for cell in next(reader, [])]
            places = {name: header.index(name) for name in wanted if name in header}
            cells: list[list[str]] = [[] for _ in places]
            lines = []
            for row in reader:
                if not row:
                    continue
                lines.append(reader.line_num)
                for column, place in zip(cells, places.values(), strict=True):
                    column.append(row[place] if place < len(row) else "")
        except csv.Error as error:
            raise ValueError(f"{path}: line {reader.line_num} is no CSV ({error})") from error
    if not header:
        raise ValueError(f"{path}: is empty; its first line must name the columns")
    columns = dict(zip(places, cells, strict=True))
    return Table(path=path, header=header, columns=columns, places=lines)


def _read_parquet(path: Path, wanted: Sequence[str]) -> Table:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            header = list(file.schema_arrow.names)
            table = file.read(columns=[name for name in wanted if name in header])
    except pyarrow.ArrowException as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{path}: is no Parquet file ({reason})") from error
    columns = {
        name: [_text(cell) for cell in table.column(name).to_pylist()]
        for name in table.column_names
    }
    return Table(path=path, header=header, columns=columns, places=range(1, table.num_rows + 1))


def _text(cell: Any) -> str:
    """A cell as CSV would have it; pandas makes floats of whole numbers where some are missing."""
    if cell is None or cell != cell:
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return os.fsdecode(cell) if isinstance(cell, bytes) else str(cell)
