"""Saving of checkpoints during a run: when, and what is said of it.

What is learned does not depend on when it is saved. A full disk costs a checkpoint, not the run.
"""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager

from fastmoco.errors import DivergedError, Interrupted
from fastmoco.runs.checkpoint_writer import CheckpointWriter
from fastmoco.runs.reporter import Reporter, SilentReporter
from fastmoco.train.divergence import check_numbers
from fastmoco.train.trainer import Trainer


class Saver:
    """Saves the state of a run, and says each time that it could not be saved."""

    def __init__(
        self, trainer: Trainer, reporter: Reporter | SilentReporter, logger: logging.Logger
    ) -> None:
        """Save the state of `trainer`, whose rows `reporter` writes."""
        self._trainer, self._reporter, self._logger = trainer, reporter, logger
        self._writer = CheckpointWriter(trainer.run.checkpoints, keep=trainer.cfg.checkpoint.keep)
        self._failed = False
        self._count_from_here()

    def _count_from_here(self) -> None:
        minutes = self._trainer.cfg.checkpoint.every_minutes
        self._step, self._late_from = self._trainer.steps_done, time.monotonic() + 60 * minutes

    @property
    def is_late(self) -> bool:
        """Whether the last save is `checkpoint.every_minutes` ago; ranks may disagree."""
        return time.monotonic() >= self._late_from

    def is_due(self, *, is_late: bool, measured: bool) -> bool:
        """Whether a checkpoint follows the last step; the same on all ranks.

        Args:
            is_late: `is_late` of the first rank.
            measured: Whether the monitor measured the encoder: ``RUN@best`` needs its checkpoint.
        """
        if every := self._trainer.cfg.checkpoint.every_steps:
            return self._trainer.finished or self._trainer.steps_done % every == 0
        return self._trainer.finished or is_late or measured

    def save(self, *, is_last: bool) -> None:
        """Write the rows through to the disk, then begin a checkpoint; on the first rank.

        It waits for the checkpoint before it, and for its own only if it is the last.

        Args:
            is_last: Whether no later save can make up for this one.

        Raises:
            DivergedError: If a value is not finite.
            OSError: If `is_last` and it cannot be written; earlier checkpoints stay.
        """
        self._count_from_here()
        if not self._trainer.ranks.is_first:
            return
        self._reporter.sync()
        self.report(wait=True)
        try:
            self._writer.begin(self._trainer.checkpoint())
            if is_last and self._writer.wait():
                self._say_saved()
        except OSError as error:
            if is_last:
                raise
            self._say_lost(error)

    def report(self, *, wait: bool = False) -> None:
        """Say how the save that was begun last ended, once it did; `wait` for it."""
        try:
            if self._writer.wait() if wait else self._writer.poll():
                self._say_saved()
        except OSError as error:
            self._say_lost(error)

    def _say_saved(self) -> None:
        again = ", again" if self._failed else ""
        self._logger.info("saved     after step %d%s", self._writer.step, again)
        self._failed = False

    def _say_lost(self, error: OSError) -> None:
        self._failed = True
        self._logger.warning(
            "warning   THE STATE AFTER STEP %d WAS NOT SAVED: %s: %s; training continues, "
            "earlier checkpoints stay; free some space before the next save",
            self._writer.step,
            error.filename or self._trainer.run.path,
            error.strerror or error,
        )

    @contextmanager
    def saving_first(self) -> Iterator[None]:
        """Save what was learned before an error of the block is raised.

        Not after an error in a step, which leaves half of it, nor for numbers that are not finite:
        the run would continue behind them. What is being written is waited for in any case, unless
        the user gives up on it by a second signal.
        """
        try:
            yield
        except Exception as error:
            self._save_before(error)
            raise

    def _save_before(self, error: Exception) -> None:
        trainer = self._trainer
        learned = trainer.steps_done > self._step and not trainer.in_step
        try:
            if learned and not isinstance(error, DivergedError | Interrupted):
                check_numbers(trainer, self._logger)
                self.save(is_last=True)
            else:
                self.report(wait=True)
        except Exception as problem:  # the first error is the one to know
            text = "warning   the state after step %d was not saved: %s"
            self._logger.warning(text, trainer.steps_done, problem)
