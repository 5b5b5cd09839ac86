"""``metrics.jsonl``: one JSON object per line, cut to the checkpoint's step on resume."""

import json
import os
from pathlib import Path
from typing import Any

from fastmoco.files import atomic_write_text


class MetricsFile:
    """Writer of ``metrics.jsonl``; every line is flushed."""

    def __init__(self, path: Path, *, resume_step: int) -> None:
        """Open for appending; later rows than `resume_step` are removed first, atomically."""
        rows = read_metrics(path) if path.exists() else []
        rows = [row for row in rows if row["step"] <= resume_step]
        atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in rows))
        self._file = path.open("a", encoding="utf-8")

    def write(self, row: dict[str, Any]) -> None:
        """Append one row."""
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()

    def sync(self) -> None:
        """Write all rows through to the disk, before the checkpoint that belongs to them."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


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
