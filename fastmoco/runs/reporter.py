"""Log file, metrics rows and progress line of a run."""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fastmoco.ranks import ALONE, Ranks
from fastmoco.runs.metrics_file import MetricsFile
from fastmoco.runs.run_folder import RunFolder


@contextmanager
def run_logger(run: RunFolder, ranks: Ranks = ALONE) -> Iterator[logging.Logger]:
    """A logger that writes to ``train.log`` and stderr on the first rank, nowhere on the others."""
    logger = logging.Logger("fastmoco.train", logging.INFO)
    if not ranks.is_first:
        logger.addHandler(logging.NullHandler())
        yield logger
        return
    file = logging.FileHandler(run.log, encoding="utf-8")
    file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    screen = logging.StreamHandler(sys.stderr)
    logger.addHandler(file)
    logger.addHandler(screen)
    try:
        yield logger
    finally:
        file.close()


class Reporter:
    """Writes rows to ``metrics.jsonl``, TensorBoard and the progress line."""

    def __init__(
        self,
        run: RunFolder,
        logger: logging.Logger,
        *,
        resume_step: int,
        total_steps: int,
        epochs: int,
    ) -> None:
        """Open the files; rows after `resume_step` are removed.

        Args:
            run: Folder to write to.
            logger: Gets a plain line per row where stderr is not a terminal.
            resume_step: Steps done before.
            total_steps: Steps of the run.
            epochs: Epochs of the run.
        """
        from torch.utils.tensorboard import SummaryWriter  # 1 s to import

        self.file = MetricsFile(run.metrics, resume_step=resume_step)
        self._board = SummaryWriter(str(run.tensorboard), purge_step=resume_step + 1)
        self._logger = logger
        self._epochs = epochs
        columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TimeRemainingColumn())
        self._progress = Progress(
            *columns, console=Console(stderr=True), disable=not sys.stderr.isatty()
        )
        self._task = self._progress.add_task("starting", total=total_steps, completed=resume_step)
        self._progress.start()

    def advance(self, step: int) -> None:
        """Move the progress bar; reads nothing from the device."""
        self._progress.update(self._task, completed=step)

    def row(self, row: dict[str, Any]) -> None:
        """Write one row to all of them."""
        self.file.write(row)
        for name, value in row.items():
            if isinstance(value, (int, float)) and name != "step":
                self._board.add_scalar(name, value, row["step"])
        line = progress_line(row, self._epochs)
        self._progress.update(self._task, description=line)
        if self._progress.disable:
            self._logger.info(line)

    def sync(self) -> None:
        """Write all rows through to the disk."""
        self.file.sync()
        self._board.flush()

    def close(self) -> None:
        """Close the progress line and the files."""
        self._progress.stop()
        self.file.close()
        self._board.close()


class SilentReporter:
    """Reporter of the ranks that neither write nor print."""

    def advance(self, step: int) -> None:
        """Nothing."""

    def row(self, row: dict[str, Any]) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def progress_line(row: dict[str, Any], epochs: int) -> str:
    """One line to read: progress, loss and accuracy, speed, time spent waiting for data."""
    parts = [f"epoch {row['epoch']:.2f}/{epochs}", f"step {row['step']}", f"loss {row['loss']:.3f}"]
    parts.append(f"top-1 {row['accuracy_top1']:.1f}%")
    if row["images_per_second"] is not None:
        parts.append(f"{row['images_per_second']:.0f} images/s")
        parts.append(f"data wait {100 * row['data_wait_fraction']:.0f}%")
    if row.get("knn_top1") is not None:
        parts.append(f"kNN {row['knn_top1']:.1f}%")
    return "  ".join(parts)
