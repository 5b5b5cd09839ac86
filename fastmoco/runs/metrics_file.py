"""``metrics.jsonl``: one JSON object per line, cut to the checkpoint's step on resume.

The last item of a row is the CRC-32 of the line without it. Rows of older versions have none.
"""

import json
import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from fastmoco.files import atomic_path
from fastmoco.parsing import parse_json

_SEAL = re.compile(rb', "crc32": ([0-9]+)\}$')
_SPOILED_SEAL = re.compile(rb'": [0-9]{6,}\}$')
"""Ends no row of a version without checksums: their last value is a fraction or null."""


class MetricsFile:
    """Writer of ``metrics.jsonl``; every line is flushed.

    Rows that could not be written, such as on a full disk, are kept and written with the next one.

    Attributes:
        damaged: Lines of an earlier process that were no rows, moved to `damaged_path`.
    """

    def __init__(self, path: Path, *, resume_step: int) -> None:
        """Open for appending; later rows than `resume_step` are removed first, atomically."""
        lines = list(_lines(path)) if path.exists() else []
        self.damaged = [one for one in lines if one.step is None]
        if self.damaged:
            with damaged_path(path).open("ab") as file:
                file.writelines(one.data + b"\n" for one in self.damaged)
        good = [(one.step, one.data) for one in lines if one.step is not None]
        kept = [data + b"\n" for step, data in good if step <= resume_step]
        with atomic_path(path) as temporary:
            temporary.write_bytes(b"".join(kept))
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._pending = b""

    def write(self, row: dict[str, Any]) -> None:
        """Append one row, after those that are pending.

        Raises:
            OSError: If not all could be written; they stay pending.
        """
        self._pending += _sealed(row) + b"\n"
        self._flush()

    def _flush(self) -> None:
        try:
            while self._pending:
                self._pending = self._pending[os.write(self._descriptor, self._pending) :]
        except OSError as error:
            error.filename = str(self._path)
            raise

    def sync(self) -> None:
        """Write all rows through to the disk, before the checkpoint that belongs to them.

        Raises:
            OSError: If that fails.
        """
        self._flush()
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Close the file; may be called twice."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def damaged_path(path: Path) -> Path:
    """Where damaged lines of a metrics file are kept."""
    return path.with_name(f"{path.name}.damaged")


def _sealed(row: dict[str, Any]) -> bytes:
    text = json.dumps(row).encode()
    return b'%s, "crc32": %d}' % (text[:-1], zlib.crc32(text))


class _Line(NamedTuple):
    """A line, and its row; None, with the reason, if it is damaged."""

    number: int
    data: bytes
    row: dict[str, Any] | None
    reason: str = ""

    @property
    def step(self) -> int | None:
        """The row's step, if it has one."""
        step = self.row.get("step") if self.row else None
        return step if isinstance(step, int) and not isinstance(step, bool) else None


def _lines(path: Path) -> Iterator[_Line]:
    """All lines but a last one without a line break: it is being written, or a kill cut it."""
    *lines, _ = path.read_bytes().split(b"\n")
    any_sealed = False
    for number, data in enumerate(lines, start=1):
        seal = _SEAL.search(data)
        try:
            row = parse_json(data)
            if not isinstance(row, dict):
                raise ValueError("it holds no object")
            if not seal and (any_sealed or _SPOILED_SEAL.search(data)):
                raise ValueError("it has no checksum")
            if seal and zlib.crc32(data[: seal.start()] + b"}") != int(seal[1]):
                raise ValueError("wrong checksum")
        except ValueError as error:
            yield _Line(number, data, None, str(error))
        else:
            any_sealed |= bool(seal)
            row.pop("crc32", None)
            yield _Line(number, data, row)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All rows of a ``metrics.jsonl``, or of another file with one JSON object per line.

    A last line without a line break is left out.

    Raises:
        OSError: If the file is missing or cannot be read.
        ValueError: If another line is damaged, naming the file and the line.
    """
    rows = []
    for line in _lines(path):
        if line.row is None:
            advice = "resume the run, which keeps the line aside, or remove it"
            raise ValueError(f"{path}: line {line.number} is damaged ({line.reason}); {advice}")
        rows.append(line.row)
    return rows
