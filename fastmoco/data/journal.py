"""Journal of a conversion, from which the same command resumes after a kill.

A text file beside the target. Each line holds a record: its CRC-32 in hex, and the record as JSON.
The first record names the recipe: what is converted, and how. A torn line, as from a full disk,
ends the journal; so does the first record that its reader refuses.
"""

import json
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from fastmoco.files import OPEN_OWN

Record = dict[str, Any]


def journal_path(target: Path) -> Path:
    """Path of a target's journal: ``train.beton`` -> ``train.beton.journal``."""
    return target.with_name(target.name + ".journal")


class Journal:
    """An open journal; the owner holds the lock of the unfinished file.

    Attributes:
        is_foreign: Whether it belonged to another recipe, and has been emptied.
        num_records: Records without the recipe; those of `replay` count once it has run.
        last: The last record before `replay`, ``{}`` if there is none.

    Args:
        path: The journal; created if missing.
        recipe: Hex digest of everything that determines the target's bytes.

    Raises:
        OSError: If it cannot be read or created.
    """

    def __init__(self, path: Path, recipe: str) -> None:
        self.path = path
        self.num_records = 0
        self._file = os.open(path, OPEN_OWN, 0o666)
        self._lines = _valid_lines(path)
        first = json.loads(self._lines[0][9:]) if self._lines else {}
        self.is_foreign = bool(self._lines) and first != {"recipe": recipe}
        self._end = 0
        if not self._lines or self.is_foreign:
            self._lines.clear()
            os.ftruncate(self._file, 0)
            self._write({"recipe": recipe})
        else:
            self._end = len(self._lines.pop(0))
        self.last: Record = json.loads(self._lines[-1][9:]) if self._lines else {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def replay(self, accept: Callable[[Record], bool]) -> None:
        """Pass each record to ``accept``, in order, up to the first that it refuses.

        That record and all later ones are removed.
        """
        for line in self._lines:
            if not accept(json.loads(line[9:])):
                break
            self._end += len(line)
            self.num_records += 1
        self._lines.clear()
        os.ftruncate(self._file, self._end)

    def append(self, record: Record) -> None:
        """Append a record.

        Raises:
            OSError: If it cannot be written; it then does not count.
        """
        self._write(record)
        self.num_records += 1

    def _write(self, record: Record) -> None:
        text = json.dumps(record, separators=(",", ":")).encode()
        line = b"%08x %s\n" % (zlib.crc32(text), text)
        done = 0
        while done < len(line):
            done += os.pwrite(self._file, line[done:], self._end + done)
        self._end += len(line)


def _valid_lines(path: Path) -> list[bytes]:
    """All lines before the first that is torn or damaged."""
    lines = []
    for line in path.read_bytes().splitlines(keepends=True):
        crc32, _, text = line.partition(b" ")
        if not line.endswith(b"\n") or crc32 != b"%08x" % zlib.crc32(text[:-1]):
            break
        lines.append(line)
    return lines
