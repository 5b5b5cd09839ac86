"""``sweep.json`` in a run folder: what a run of a sweep was, how it ended, what was measured."""

import fcntl
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from fastmoco.files import atomic_write_text
from fastmoco.schema import UsageError

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


@contextmanager
def alone(log: Path, label: str) -> Iterator[None]:
    """Within the block no other process does the same run.

    Linux frees the lock however this process ends.

    Args:
        log: The run's log file, which the lock is on.
        label: The run's, for people.

    Raises:
        UsageError: If another process does it.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("a", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise UsageError(f"run {label} is being done by another process") from error
        yield


@contextmanager
def in_turn(lock: Path) -> Iterator[None]:
    """Within the block no other process is in a block of the same lock; waits for them."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
