"""What is measured of a run besides its steps: when, and by what."""

import logging

from fastmoco.evaluate.baselines import Baselines, read_baselines, write_baselines
from fastmoco.evaluate.monitor import KnnMonitor
from fastmoco.pipelines.build import free_idle
from fastmoco.runs.reporter import Reporter, SilentReporter, dispensable
from fastmoco.train.fresh_keys import fresh_metrics
from fastmoco.train.report import described
from fastmoco.train.trainer import Trainer
from fastmoco.waiting import waiting


def measure_baselines(
    trainer: Trainer, monitor: KnnMonitor, logger: logging.Logger
) -> Baselines | None:
    """Measure and log what the encoder must exceed, before the first step of a run.

    None without a monitor or labels, on other ranks, and for a run that an older version began.
    """
    path = trainer.run.baselines
    older = bool(trainer.steps_done) and not path.exists()
    if not (monitor.has_labels and trainer.ranks.is_first) or older:
        return None
    if path.exists():
        found = read_baselines(path)
    else:
        with waiting("measuring raw pixels and the encoder at the start"):
            found = monitor.baselines(trainer.frozen_encoder())
        with dispensable(logger, path):
            write_baselines(path, found)
    logger.info("monitor   %s", found.to_text())
    return found


def is_measuring_due(trainer: Trainer, monitor: KnnMonitor) -> bool:
    """Whether the monitor measures after this step: at the end of some epochs, and of the run."""
    if trainer.finished:
        return monitor.is_on
    return trainer.epoch_ends and monitor.is_due(trainer.steps_done // trainer.steps_per_epoch)


def is_row_owed(trainer: Trainer, monitor: KnnMonitor) -> bool:
    """Whether an error came before the row of the last step; the checkpoint has its sum."""
    is_due = trainer.log_is_due or is_measuring_due(trainer, monitor)
    return is_due and bool(trainer.metrics.count)


def measure(
    trainer: Trainer, monitor: KnnMonitor, reporter: Reporter | SilentReporter
) -> dict[str, float | None]:
    """Measure the encoder by the monitor, with all ranks; the first one the queue's keys too."""
    found = monitor.measure(trainer.frozen_encoder(), trainer.ranks)
    if found is None:
        free_idle()
        return {}
    trainer.knn_top1 = found.knn_top1
    free_idle()
    measured = {**found._asdict(), **fresh_metrics(trainer)}
    epoch = trainer.steps_done / trainer.steps_per_epoch
    reporter.say(f"{described(measured)} after epoch {epoch:.3g}")
    return measured
