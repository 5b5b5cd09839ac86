"""``metrics.jsonl``: one JSON object per line, cut to the checkpoint's step on resume."""

import json
import os
from pathlib import Path
from typing import Any

from fastmoco.files import atomic_write_text


class MetricsFile:
    """Writer of ``metrics.jsonl``; every line is flushed.

    Rows that could not be written, such as on a full disk, are kept and written with the next one.
    """

    def __init__(self, path: Path, *, resume_step: int) -> None:
        """Open for appending; later rows than `resume_step` are removed first, atomically."""
        rows = read_metrics(path) if path.exists() else []
        rows = [row for row in rows if row["step"] <= resume_step]
        atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._path = path
        self._descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        self._pending = b""

    def write(self, row: dict[str, Any]) -> None:
        """Append one row, after those that are pending.

        Raises:
            OSError: If not all could be written; they stay pending.
        """
        self._pending += json.dumps(row).encode() + b"\n"
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


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All rows of a ``metrics.jsonl``, or of another file with one JSON object per line.

    A last line without a line break is left out: it is being written, or a kill cut it short.

    Raises:
        OSError: If the file is missing or cannot be read.
        ValueError: If another line is not a JSON object, naming the file and the line.
    """
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    rows = []
    for number, line in enumerate(lines, start=1):
        if line.endswith("\n"):
            try:
                rows.append(dict(json.loads(line)))
            except (ValueError, TypeError) as error:
                raise ValueError(f"{path}: line {number} is damaged ({error})") from error
    return rows
