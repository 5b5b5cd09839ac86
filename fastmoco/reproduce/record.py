"""``sweep.json`` in a run folder: settings, end and measurements of one run of a sweep."""

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from fastmoco.files import atomic_write_text
from fastmoco.parsing import parse_json

FILE_NAME = "sweep.json"
"""Name of the record in a run folder."""
STATE_NAME = "sweep.json"
"""Name of the file in the folder of all runs, with what they have in common."""
STATE_ADVICE = "remove it; the next call of the sweep writes it again: fastmoco sweep"


class Status(StrEnum):
    """State of a run."""

    started = "started"
    """Not all is trained and measured yet."""
    finished = "finished"
    diverged = "diverged"
    """The loss was not finite; this is a result too."""
    failed = "failed"

    @property
    def is_final(self) -> bool:
        """Whether the run has ended; it is repeated only on request."""
        return self is not Status.started


@dataclass(kw_only=True, slots=True)
class RunRecord:
    """One run of a sweep."""

    points: dict[str, str]
    """Point by axis."""
    seed: int
    status: Status = Status.started
    reason: str = ""
    """Reason why it failed or diverged, one line."""
    overrides: list[str] = field(default_factory=list)
    """Overrides of ``fastmoco train``, without seed, data and folder."""
    command: str = ""
    """The command line that trains only this run."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Data, sizes, encoder, device."""
    measures: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Results by `Measure`, JSON values."""

    def write(self, folder: Path) -> None:
        """Write the record atomically."""
        atomic_write_text(folder / FILE_NAME, json.dumps(asdict(self), indent=1) + "\n")


def read_record(folder: Path) -> RunRecord | None:
    """The record of a run folder; None if it has none.

    Raises:
        ValueError: If the record is damaged.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        values = parse_json(path.read_text(encoding="utf-8"))
        return RunRecord(**{**values, "status": Status(values["status"])})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged; remove it, the sweep then measures again") from error
