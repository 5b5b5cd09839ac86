"""Log file, metrics rows and progress line of a run."""

import logging
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import Progress, TextColumn

from fastmoco.device import peak_memory_bytes, reserved_memory_bytes
from fastmoco.errors import without_controls
from fastmoco.output import display_stream
from fastmoco.ranks import ALONE, Ranks
from fastmoco.runs.metrics_file import MetricsFile, damaged_path
from fastmoco.runs.run_folder import RunFolder

SCREEN_SECONDS = 10.0
"""Longest time between two lines on the screen, if steps are that quick."""
WIDTH = 80
SHOWN_WAIT = 0.1
"""Fraction of the time spent waiting for data from which the screen says so."""


@contextmanager
def run_logger(
    run: RunFolder, ranks: Ranks = ALONE, *, to_file: bool = True
) -> Iterator[logging.Logger]:
    """A logger that writes to ``train.log`` and stderr on the first rank, nowhere on the others.

    Without `to_file`, it writes to stderr only.
    """
    logger = logging.Logger("fastmoco.train", logging.INFO)
    if not (ranks.is_first and to_file):
        logger.addHandler(_Screen() if ranks.is_first else logging.NullHandler())
        yield logger
        return
    # Paths are logged as they are: data may be in a folder whose name is not UTF-8.
    file = _LogFile(run.log, encoding="utf-8", errors="surrogateescape")
    file.setFormatter(_OneLine("%(asctime)s %(message)s"))
    screen = _Screen()
    screen.setFormatter(_OneLine())
    logger.addHandler(file)
    logger.addHandler(screen)
    try:
        yield logger
    finally:
        file.close()


def say_unwritten(logger: logging.Logger, path: Path, error: OSError) -> None:
    """Warn that a file cannot be written, which training can do without."""
    logger.warning(
        "warning   %s cannot be written (%s); training goes on", path, error.strerror or error
    )


@contextmanager
def dispensable(logger: logging.Logger, path: Path) -> Iterator[None]:
    """Turn a file that cannot be written in the block into a warning."""
    try:
        yield
    except OSError as error:
        say_unwritten(logger, path, error)


class _OneLine(logging.Formatter):
    """Escapes line breaks and control codes of names and of other packages' errors.

    A name could otherwise forge a line. Bytes that are not UTF-8 stay as they are.
    """

    def format(self, record: logging.LogRecord) -> str:
        """The record on one line."""
        return without_controls(super().format(record)).replace("\n", "\\n")


class _LogFile(logging.FileHandler):
    """A log file that says once that it cannot be written."""

    _said = False

    def handleError(self, record: logging.LogRecord) -> None:
        """Say it on stderr: the logger would come here again."""
        del record
        if not self._said:
            self._said = True
            error = sys.exc_info()[1]
            reason = getattr(error, "strerror", None) or error
            print(f"warning   {self.baseFilename} cannot be written ({reason})", file=sys.stderr)  # noqa: T201

    def close(self) -> None:
        """Close the file, also if its last lines cannot be written."""
        try:
            super().close()
        except OSError:
            self.handleError(logging.makeLogRecord({}))


class _Screen(logging.Handler):
    """Writes to stderr as it is at that moment: a progress line puts text above itself.

    A terminal shows the line of a running training anyway.
    """

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line."""
        if not (getattr(record, "live", False) and sys.stderr.isatty()):
            print(self.format(record), file=sys.stderr)  # noqa: T201


class Board(Protocol):
    """Another program that draws the rows: `event_file.EventFile`, `wandb_run.WandbRun`."""

    path: Path
    """Its folder in the run folder."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a row; raise OSError if that fails."""

    def close(self) -> None:
        """End; raise OSError if that fails."""


class Reporter:
    """Writes rows to ``metrics.jsonl``, a board and the progress line."""

    def __init__(
        self,
        run: RunFolder,
        logger: logging.Logger,
        device: torch.device,
        *,
        resume_step: int,
        total_steps: int,
        board: Board | None = None,
    ) -> None:
        """Open the files; rows after `resume_step` are removed.

        Args:
            run: Folder to write to.
            logger: Gets all lines; a terminal shows the progress line in one place.
            device: Device whose memory is shown.
            resume_step: Steps done before.
            total_steps: Steps of the run.
            board: Gets the rows too, and is closed with the reporter.
        """
        self.file = MetricsFile(run.metrics, resume_step=resume_step)
        self._board = board
        self._failing: set[Path] = set()
        self._paths = run
        self._logger, self._device = logger, device
        if self.file.damaged:
            number, kept = len(self.file.damaged), damaged_path(run.metrics)
            text = "warning   %s: %d damaged lines were moved to %s"
            logger.warning(text, run.metrics, number, kept)
        self._clock = StepsLeft(total_steps)
        self._progress = Progress(
            TextColumn("step {task.completed:.0f}/{task.total:.0f}  {task.description}"),
            console=Console(file=display_stream(sys.stderr)),
            disable=not sys.stderr.isatty(),
        )
        self._task = self._progress.add_task("", total=total_steps, completed=resume_step)
        self._next_line = 0.0

    @property
    def line_is_due(self) -> bool:
        """Whether nothing was shown for `SCREEN_SECONDS`, or nothing at all."""
        return time.monotonic() >= self._next_line

    def advance(self, step: int) -> None:
        """Count a step; reads nothing from the device."""
        self._clock.count(step)
        self._progress.update(self._task, completed=step)

    def row(self, row: dict[str, Any]) -> None:
        """Write one row to all of them; what cannot be written is said once."""
        values = {k: float(v) for k, v in row.items() if isinstance(v, int | float) and k != "step"}
        self._try(self._paths.metrics, lambda: self.file.write(row))
        if board := self._board:
            self._try(board.path, lambda: board.write(row["step"], values))
        self.show(row)

    def _try(self, path: Path, write: Callable[[], None]) -> None:
        try:
            write()
        except OSError as error:
            if path not in self._failing:
                self._failing.add(path)
                say_unwritten(self._logger, path, error)
        else:
            self._failing.discard(path)

    def show(self, row: dict[str, Any]) -> None:
        """Show a row, or the means since the last one, on the screen and in ``train.log``."""
        self._progress.start()
        self._next_line = time.monotonic() + SCREEN_SECONDS
        step = f"step {row['step']}/{self._clock.total}  "
        memory, reserved = peak_memory_bytes(self._device), reserved_memory_bytes(self._device)
        line = progress_line(row, self._clock.left(), memory, WIDTH - len(step), reserved)
        self._progress.update(self._task, description=line)
        self._logger.info("%s", step + line, extra={"live": True})

    def say(self, line: str) -> None:
        """Log a line of its own."""
        self._logger.info("%s", line)

    @contextmanager
    def busy(self, text: str) -> Iterator[None]:
        """Show in the progress line what is done instead of steps."""
        before = self._progress.tasks[0].description
        self._progress.update(self._task, description=text)
        yield
        self._progress.update(self._task, description=before)

    def sync(self) -> None:
        """Write all rows through to the disk; if that fails, say it once."""
        self._try(self._paths.metrics, self.file.sync)

    def close(self) -> None:
        """Close the progress line and the files."""
        self._progress.stop()
        self.file.close()
        if self._board:
            self._try(self._board.path, self._board.close)


class SilentReporter:
    """Reporter of the ranks that neither write nor print."""

    line_is_due = False

    def advance(self, step: int) -> None:
        """Nothing."""

    def row(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def show(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def say(self, line: str) -> None:
        """Nothing."""

    def busy(self, text: str) -> AbstractContextManager[None]:
        """Nothing."""
        del text
        return nullcontext()

    def sync(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


class StepsLeft:
    """Estimates the time that a run still needs, from all steps after the first one.

    The first step is left out, because it compiles. Saving and measuring count: they come again.
    """

    def __init__(self, total: int) -> None:
        """Start before the first step."""
        self.total = total
        self._first: tuple[int, float] | None = None
        self._step = 0

    def count(self, step: int) -> None:
        """Count a step that is done."""
        self._step = step
        if self._first is None:
            self._first = step, time.monotonic()

    def left(self) -> timedelta | None:
        """The estimate, in full seconds; None after the first step."""
        if self._first is None or self._step == self._first[0]:
            return None
        seconds = (time.monotonic() - self._first[1]) / (self._step - self._first[0])
        return timedelta(seconds=round(seconds * (self.total - self._step)))


def progress_line(
    row: dict[str, Any],
    left: timedelta | None,
    memory_bytes: int,
    width: int,
    reserved_bytes: int | None = None,
) -> str:
    """Means of the last steps and what is left, in one line; what does not fit is left out.

    On a GPU memory is what torch allocated at most, of what it reserved.

    ``look-up`` is the percentage of queries whose positive is found among K negatives: not an
    accuracy of classes.
    """
    parts = [f"loss {row['loss']:.3f}", f"look-up {row['accuracy_top1']:.1f}%"]
    if left is not None:
        parts.append(f"ETA {left}")
    if row.get("images_per_second") is not None:
        parts.append(f"{row['images_per_second']:,.0f} images/s")
        if row["data_wait_fraction"] >= SHOWN_WAIT:
            parts.append(f"waits {100 * row['data_wait_fraction']:.0f}%")
    reserved = "" if reserved_bytes is None else f" of {reserved_bytes / 1e9:.1f}"
    parts.append(f"{memory_bytes / 1e9:.1f}{reserved} GB")
    while len(line := "  ".join(parts)) > width:
        parts.pop()
    return line
