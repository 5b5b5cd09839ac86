"""Columns of CSV, TSV or Parquet files, as text."""

import csv
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
            raise ValueError(
                f"{self.path}: has no column {name}; its columns are {', '.join(self.header)}"
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


def _read_csv(path: Path, wanted: Sequence[str]) -> Table:
    """Read a CSV file; undecodable bytes of file names become surrogates."""
    delimiter = "\t" if path.suffix.lower() == ".tsv" else ","
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        reader = csv.reader(file, delimiter=delimiter, strict=True)
        try:
            header = [cell.strip() for cell in next(reader, [])]
            indices = {name: header.index(name) for name in wanted if name in header}
            cells: list[list[str]] = [[] for _ in indices]
            lines = []
            for row in reader:
                if not row:
                    continue
                lines.append(reader.line_num)
                for column, index in zip(cells, indices.values(), strict=True):
                    column.append(row[index] if index < len(row) else "")
        except csv.Error as error:
            raise ValueError(f"{path}: line {reader.line_num} is not CSV ({error})") from error
    if not header:
        raise ValueError(f"{path}: is empty; its first line must name the columns")
    columns = dict(zip(indices, cells, strict=True))
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
        raise ValueError(f"{path}: is not a Parquet file ({reason})") from error
    columns = {
        name: [_text(cell) for cell in table.column(name).to_pylist()]
        for name in table.column_names
    }
    return Table(path=path, header=header, columns=columns, places=range(1, table.num_rows + 1))


def _text(cell: Any) -> str:
    """Format a cell as in CSV; pandas turns a column of integers with gaps into floats."""
    if cell is None or cell != cell:
        return ""
    if isinstance(cell, float) and cell.is_integer():
        return str(int(cell))
    return os.fsdecode(cell) if isinstance(cell, bytes) else str(cell)
