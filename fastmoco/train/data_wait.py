"""Waiting for the next batch: a signal or a hung read ends it, and what was learned is saved."""

import faulthandler
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fastmoco.errors import Interrupted
from fastmoco.pipelines.contract import Batch, ViewLoader
from fastmoco.pipelines.reads import HungReadError
from fastmoco.runs.stop_signals import StopRequest, WaitStopped
from fastmoco.train.trainer import Trainer


def next_batch(
    loader: ViewLoader, trainer: Trainer, stop: StopRequest, save: Callable[[], None]
) -> Batch:
    """Wait for a batch; the state is that after the last step, and `save` saves it.

    With several ranks, a signal does not end the wait: all stop after the same step.

    Raises:
        Interrupted: After a signal, with the state saved.
        HungReadError: If an image takes too long; the stacks of all threads are written.
    """
    alone = not trainer.ranks.several
    try:
        with stop.ending_wait(alone=alone):
            return next(loader)
    except WaitStopped:
        save()
        raise stopped(trainer, stop.signal_number) from None
    except HungReadError:
        write_stacks(trainer.run.stacks(trainer.ranks.rank))
        raise


def stopped(trainer: Trainer, signal_number: int) -> Interrupted:
    """The error that ends a run after a signal, with the state saved."""
    return Interrupted(
        signal_number, f"stopped after step {trainer.steps_done}, saved; the same command resumes"
    )


def write_stacks(path: Path) -> None:
    """Write what all threads of this process are doing, if the disk takes it."""
    with suppress(OSError), path.open("w", encoding="utf-8") as file:
        faulthandler.dump_traceback(file, all_threads=True)
