"""Header of a run, rows of its metrics, and the clock that times its steps."""

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch.nn.modules.batchnorm import _BatchNorm

from fastmoco.configuration import config_to_dict
from fastmoco.data.source_set import SourceSet
from fastmoco.device import (
    describe_device,
    peak_memory_bytes,
    reserved_memory_bytes,
    unused_gpu,
)
from fastmoco.evaluate.monitor import Measurement
from fastmoco.optim.schedules import base_learning_rate
from fastmoco.pipelines.contract import ViewLoader
from fastmoco.runs.event_file import EventFile
from fastmoco.runs.reporter import Board, Reporter, SilentReporter
from fastmoco.runs.wandb_run import WandbRun
from fastmoco.train.beginning import began_with_weights, describe_origins
from fastmoco.train.data_wait import DataWait
from fastmoco.train.estimate import run_cost
from fastmoco.train.fresh_keys import FRESH_METRICS
from fastmoco.train.machine import machine_of
from fastmoco.train.number_format import describe_precision
from fastmoco.train.run_warnings import RunFacts, warnings_for
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


def log_header(logger: logging.Logger, trainer: Trainer, loader: ViewLoader) -> None:
    """Log run, device, data, model, optimizer and length of the training."""
    cfg, model, ranks = trainer.cfg, trainer.step.model, trainer.ranks
    parameters = sum(parameter.numel() for parameter in model.query_encoder.parameters())
    batch = cfg.global_batch_size
    rate = f"learning rate {cfg.optimizer.learning_rate:g}"
    if cfg.optimizer.scale_learning_rate:
        rate += f" x {batch}/256 = {base_learning_rate(cfg.optimizer, batch):g}"
    views = "views by Kornia" if trainer.step.by_kornia else ""
    logger.info("run       %s, seed %d", trainer.run.path, cfg.seed)
    logger.info(
        "device    %s%s, %s, %s",
        f"{ranks.world_size} x " if ranks.several else "",
        describe_device(trainer.device),
        describe_precision(cfg.precision, trainer.device),
        ", ".join(filter(None, [trainer.compiled, trainer.step.eager_part, trainer.graph, views])),
    )
    logger.info(
        "data      %s, %d images, decoded on the %s by the loader %s (%s)",
        trainer.dataset.path,
        len(trainer.dataset),
        loader.decode_device,
        trainer.loader_name,
        trainer.loader_reason,
    )
    if isinstance(trainer.dataset, SourceSet):
        for row in trainer.dataset.passed_over.rows.values():
            logger.info("          passed over, %s: %s", row.reason, row.to_text())
    logger.info(
        "model     %s width %d, %s stem, %.2fM parameters; batch norm %s; %s, "
        "chance loss %s = %.2f, computed %s",
        cfg.model.encoder,
        cfg.model.width,
        cfg.model.stem.value,
        parameters / 1e6,
        trainer.batch_norm,
        model.describe(batch),
        model.chance_form,
        trainer.chance_loss,
        model.loss.value,
    )
    if trainer.origins:
        logger.info("start     %s", describe_origins(trainer.origins))
    logger.info(
        "optimizer %s, %s, %s, batch %d%s%s",
        cfg.optimizer.name,
        rate,
        cfg.optimizer.schedule,
        batch,
        f", {batch // ranks.world_size} a device" if ranks.several else "",
        f" in {cfg.train.accumulate} micro-batches" if cfg.train.accumulate > 1 else "",
    )
    logger.info(
        "training  %sto step %d, %d steps an epoch%s",
        f"from step {trainer.steps_done} " if trainer.steps_done else "",
        trainer.total_steps,
        trainer.steps_per_epoch,
        _estimated_time(trainer),
    )
    for line in cfg.advice:
        logger.info("advice    %s", line)
    for line in warnings_for(cfg, _facts(trainer)):
        logger.warning("warning   %s", line)


def end_text(trainer: Trainer) -> str:
    """Where a run that has no steps to do is."""
    step, scheduled = trainer.steps_done, trainer.cfg.train.epochs * trainer.steps_per_epoch
    if step < scheduled:
        return f"stopped at step {step} of {scheduled} (train.max_steps)"
    return f"is finished (step {step})"


def first_step_text(trainer: Trainer) -> str:
    """What the first step does besides learning, for the user who waits for it."""
    if not _compiles(trainer):
        return "first step"
    return "first step: compiling once, one to several minutes (train.compile=never starts at once)"


def _compiles(trainer: Trainer) -> bool:
    return trainer.step.compiled or trainer.graphed is not None


def _estimated_time(trainer: Trainer) -> str:
    """``, roughly TIME``: computed, without compiling and without other programs' load."""
    machine = machine_of(trainer.device, trainer.ranks.world_size)
    cost = run_cost(trainer.cfg, trainer.total_steps - trainer.steps_done, machine)
    if cost is None:
        return ""
    days, hours = cost.seconds / 86_400, cost.seconds / 3_600
    if days >= 2:
        text = f"{days:.0f} days"
    elif hours >= 2:
        text = f"{hours:.0f} hours"
    else:
        text = f"{max(1, round(60 * hours))} min"
    more = " and compiling" if _compiles(trainer) else ""
    return (
        f", computed: roughly {text}{more} if no other program runs (train.dry_run=true measures)"
    )


def _facts(trainer: Trainer) -> RunFacts:
    modules = trainer.step.model.query_encoder.modules()
    return RunFacts(
        images=len(trainer.dataset),
        steps=trainer.total_steps,
        steps_per_epoch=trainer.steps_per_epoch,
        has_batch_norm=any(isinstance(module, _BatchNorm) for module in modules),
        machine=machine_of(trainer.device, trainer.ranks.world_size),
        from_weights=began_with_weights(trainer.origins),
        unused_gpu=unused_gpu() if trainer.cfg.device == "auto" else "",
    )
