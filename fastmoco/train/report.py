"""Rows of a run's metrics, and the clock that times its steps."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from fastmoco.configuration import config_to_dict
from fastmoco.device import peak_memory_bytes, reserved_memory_bytes
from fastmoco.evaluate.monitor import Measurement
from fastmoco.runs.event_file import EventFile
from fastmoco.runs.reporter import Board, Reporter, SilentReporter
from fastmoco.runs.wandb_run import WandbRun
from fastmoco.train.data_wait import DataWait
from fastmoco.train.fresh_keys import FRESH_METRICS
from fastmoco.train.settings import Tracker
from fastmoco.train.trainer import Trainer

MEASURED = (*Measurement._fields, *FRESH_METRICS)
"""Columns that only a measurement fills; null in the other rows."""


class StepClock:
    """Times the steps between two log lines, without saving, evaluation, warm-up and compilation.

    Attributes:
        wait: Counts the time that the device waits for the loader.
        steps: Steps timed since the last reading.
    """

    def __init__(self, wait: DataWait) -> None:
        """Start the clock."""
        self.wait = wait
        self.restart()

    def restart(self) -> None:
        """Set the clock to zero; the next step starts now."""
        self.wait.restart()
        self._start = time.perf_counter()
        self.steps = 0

    def add(self) -> None:
        """Count a step."""
        self.steps += 1

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Leave out the time within the block."""
        start = time.perf_counter()
        yield
        self._start += time.perf_counter() - start

    def speeds(self, batch_size: int) -> dict[str, float | None]:
        """Return speeds since the last reading, None without a timed step.

        Read the metrics first: the device has then finished all steps.
        """
        seconds, steps = time.perf_counter() - self._start, self.steps
        if not steps:
            return {"images_per_second": None, "data_wait_fraction": None, "step_seconds": None}
        return {
            "images_per_second": batch_size * steps / seconds,
            "data_wait_fraction": self.wait.seconds() / seconds,
            "step_seconds": seconds / steps,
        }

    def read(self, batch_size: int) -> dict[str, float | None]:
        """Return `speeds`, and restart."""
        speeds = self.speeds(batch_size)
        self.restart()
        return speeds


def open_reporter(
    trainer: Trainer, logger: logging.Logger, last_row: int
) -> Reporter | SilentReporter:
    """Open the reporter of this rank, after the row of step `last_row`.

    Raises:
        UsageError: If the run cannot begin at W&B.
    """
    if not trainer.ranks.is_first:
        return SilentReporter()
    return Reporter(
        trainer.run,
        logger,
        trainer.device,
        resume_step=last_row,
        total_steps=trainer.total_steps,
        board=open_board(trainer, logger, last_row),
    )


def open_board(trainer: Trainer, logger: logging.Logger, last_row: int) -> Board | None:
    """Open what ``train.tracker`` names, after the row of step `last_row`."""
    tracker, run = trainer.cfg.train.tracker, trainer.run
    if tracker is Tracker.tensorboard:
        return EventFile(run.tensorboard, purge_step=last_row + 1)
    if tracker is Tracker.wandb:
        found = WandbRun(run.wandb, config=config_to_dict(trainer.cfg))
        logger.info("tracker   %s", found.about)
        return found
    return None


def make_row(
    trainer: Trainer, clock: StepClock, measured: Mapping[str, float | None]
) -> dict[str, Any]:
    """Make a row of ``metrics.jsonl``: means since the last row; reads the device.

    `measured` has those of `MEASURED` that were measured after this step.
    """
    device, skipped = trainer.device, trainer.skipped_steps
    trainer.skipped_steps = 0
    memory = peak_memory_bytes(device) if device.type == "cuda" else None
    return {
        "step": trainer.steps_done,
        "epoch": trainer.steps_done / trainer.steps_per_epoch,
        **trainer.metrics.flush(),
        "skipped_steps": skipped,
        "loss_floor_ln_k1": trainer.chance_loss,
        "learning_rate": trainer.learning_rate_of(trainer.steps_done - 1),
        **clock.read(trainer.cfg.global_batch_size),
        "device_memory_peak_bytes": memory,
        "device_memory_reserved_bytes": reserved_memory_bytes(device),
        **{name: measured.get(name) for name in MEASURED},
    }


def described(measured: Mapping[str, float | None]) -> str:
    """A measurement in a few words, for the screen."""
    names = {"knn_top1": "kNN {:.1f}%", "rankme": "RankMe {:.1f}"}
    names |= {"loss_fresh": "loss {:.2f} against fresh keys"}
    found = {name: measured.get(name) for name in names}
    return ", ".join(names[name].format(v) for name, v in found.items() if v is not None)


def screen_row(trainer: Trainer, clock: StepClock) -> dict[str, Any]:
    """Make what the screen shows between two rows: means since the last row; reads the device."""
    means = trainer.metrics.means()
    return {"step": trainer.steps_done, **means, **clock.speeds(trainer.cfg.global_batch_size)}
