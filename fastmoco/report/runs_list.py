"""`fastmoco runs`: what each run folder holds."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from fastmoco.errors import UsageError, one_line
from fastmoco.files import locked
from fastmoco.report.recorded import RecordedRun, read_run
from fastmoco.report.settings import RunsConfig
from fastmoco.runs.checkpoint_files import (
    CheckpointError,
    newest_first,
    read_record,
    retire,
    step_of,
)
from fastmoco.runs.run_folder import LOCK_NAME


class State(StrEnum):
    """State of a run."""

    training = "training"
    """A process has the folder locked."""
    finished = "finished"
    stopped = "stopped"
    """The same command resumes it, with more steps if train.max_steps stopped it."""


@dataclass(slots=True)
class ListedRun:
    """One run."""

    path: str
    state: State
    verdict: str
    """Outcome, empty without one."""
    step: int
    """Steps in the newest checkpoint."""
    total_steps: int | None
    """Steps of all epochs; None before the first row of metrics."""
    knn_top1: float | None
    """Percent, the last that the monitor measured, or else of ``fastmoco knn``."""
    num_checkpoints: int
    num_bytes: int
    """Size of the folder."""

    @property
    def steps(self) -> str:
        """``3 of 20``."""
        return f"{self.step:,}" + (f" of {self.total_steps:,}" if self.total_steps else "")


@dataclass(slots=True)
class RunsList:
    """Runs, the newest first."""

    runs: list[ListedRun]
    freed_bytes: int
    notes: list[str]

    def to_json(self) -> dict[str, Any]:
        """The list as a JSON object."""
        return asdict(self)

    def to_text(self) -> str:
        """A table, one run a line."""
        if not self.runs:
            return "no runs here; fastmoco train makes them in runs/, folder=PATH names another"
        paths = [one_line(run.path) for run in self.runs]
        steps = [run.steps for run in self.runs]
        width, wide = max(map(len, paths)), max(map(len, steps))
        head = (
            f"{'run':<{width}}  {'state':<9} {'at step':>{wide}} {'kNN %':>6} {'size':>9}  verdict"
        )
        lines = [
            f"{path:<{width}}  {run.state.value:<9} {step:>{wide}} "
            f"{'-' if run.knn_top1 is None else f'{run.knn_top1:.1f}':>6} "
            f"{run.num_bytes / 1e6:>6,.0f} MB  {run.verdict}".rstrip()
            for path, step, run in zip(paths, steps, self.runs, strict=True)
        ]
        freed = [f"freed {self.freed_bytes / 1e6:,.0f} MB"] if self.freed_bytes else []
        return "\n".join([head, *lines, *self.notes, *freed])


def list_runs(paths: Sequence[Path], cfg: RunsConfig) -> RunsList:
    """Describe run folders; with ``keep`` remove their old checkpoints first.

    Args:
        paths: Run folders.
        cfg: Options, from `load_config`.
    """
    found, freed, notes = [], 0, []
    for path in paths:
        try:
            run = read_run(path)
        except UsageError as error:  # an imported encoder has no config.yaml
            notes.append(one_line(f"not listed: {str(error).partition(';')[0]}"))
            continue
        before, lock = _num_bytes(path), path / LOCK_NAME
        try:
            with locked(lock, in_use="in use") if lock.exists() else nullcontext():
                state = _state_at_rest(run)
                if cfg.keep:
                    _remove_old(path / "checkpoints", cfg.keep)
        except UsageError:
            state = State.training
        except (OSError, CheckpointError) as error:  # a folder that only others may write
            state = _state_at_rest(run)
            if cfg.keep:
                notes.append(one_line(f"{path}: nothing removed ({error})"))
        size = _num_bytes(path)
        freed += max(0, before - size)
        found.append(_described(run, state, size))
    return RunsList(found, freed, notes)


def _state_at_rest(run: RecordedRun) -> State:
    return State.finished if run.is_finished else State.stopped


def _remove_old(folder: Path, keep: int) -> None:
    """Remove all checkpoints but the newest and the best; nothing if the newest is damaged.

    Raises:
        CheckpointError: If the newest is damaged.
        OSError: If it cannot be read.
    """
    if found := newest_first(folder):
        retire(folder, step_of(found[0]), read_record(found[0])["sha256"], keep=keep)


def _described(run: RecordedRun, state: State, num_bytes: int) -> ListedRun:
    found = newest_first(run.folder.checkpoints)
    measured = [row["knn_top1"] for row in run.rows if row.get("knn_top1") is not None]
    if not measured and run.knn:
        measured = [run.knn["top1"]]
    return ListedRun(
        path=str(run.folder.path),
        state=state,
        verdict=run.verdict["outcome"] if run.verdict else "",
        step=step_of(found[0]) if found else 0,
        total_steps=run.total_steps,
        knn_top1=measured[-1] if measured else None,
        num_checkpoints=len(found),
        num_bytes=num_bytes,
    )


def _num_bytes(path: Path) -> int:
    total = 0
    for one in path.rglob("*"):
        try:
            total += one.lstat().st_size
        except OSError:  # removed meanwhile
            continue
    return total
