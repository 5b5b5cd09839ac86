"""``sweep.json`` in a run folder: what a run of a sweep was, how it ended, what was measured."""

import json
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from fastmoco.files import atomic_write_text

FILE_NAME = "sweep.json"
"""In a run folder."""
STATE_NAME = "sweep.json"
"""In the folder of all runs: what they have in common."""
MEND_STATE = "remove it, and the sweep's next call writes it anew: fastmoco sweep"


class Status(StrEnum):
    """How far a run is."""

    started = "started"
    """Trained, or to be trained; not all is measured."""
    finished = "finished"
    diverged = "diverged"
    """Its loss left the finite numbers: a result."""
    failed = "failed"

    @property
    def is_final(self) -> bool:
        """Whether nothing more is done, unless asked for."""
        return self is not Status.started


@dataclass(kw_only=True, slots=True)
class RunRecord:
    """One run of a sweep."""

    points: dict[str, str]
    """By axis."""
    seed: int
    status: Status = Status.started
    reason: str = ""
    """Why it failed or diverged, one line."""
    overrides: list[str] = field(default_factory=list)
    """Of ``fastmoco train``, without seed, data and folder."""
    command: str = ""
    """The command line of its training alone."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Data, sizes, encoder, device."""
    measures: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By `Measure`: what was found, JSON values."""

    def write(self, folder: Path) -> None:
        """Write it, whole."""
        atomic_write_text(folder / FILE_NAME, json.dumps(asdict(self), indent=1) + "\n")


def read_record(folder: Path) -> RunRecord | None:
    """The record of a run folder; none where there is none.

    Raises:
        ValueError: If it is damaged.
    """
    path = folder / FILE_NAME
    if not path.exists():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return RunRecord(**{**values, "status": Status(values["status"])})
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged; remove it, and the sweep measures again") from error
