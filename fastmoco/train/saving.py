"""Saving of checkpoints during a run: a full disk costs a checkpoint, not the run."""

import logging

from fastmoco.runs.reporter import Reporter, SilentReporter
from fastmoco.train.trainer import Trainer


class Saver:
    """Saves the state of a run, and says each time that it could not be saved."""

    def __init__(self, trainer: Trainer, logger: logging.Logger) -> None:
        """Save the state of `trainer`."""
        self._trainer, self._logger = trainer, logger
        self._failed = False

    def save(self, reporter: Reporter | SilentReporter, *, is_last: bool) -> None:
        """Write the rows through to the disk, then a checkpoint.

        Args:
            reporter: Writer of the rows that belong to it.
            is_last: Whether no later save can make up for this one.

        Raises:
            DivergedError: If a value is not finite.
            OSError: If `is_last` and it cannot be written; earlier checkpoints stay.
        """
        trainer = self._trainer
        reporter.sync()
        try:
            trainer.save()
        except OSError as error:
            if is_last:
                raise
            self._failed = True
            self._logger.warning(
                "warning   THE STATE AFTER STEP %d WAS NOT SAVED: %s: %s; training goes on, "
                "earlier checkpoints stay; free some space before the next save",
                trainer.steps_done,
                error.filename or trainer.run.path,
                error.strerror or error,
            )
            return
        if self._failed:
            self._logger.info("saved     after step %d, again", trainer.steps_done)
        self._failed = False
