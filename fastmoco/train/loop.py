"""`train`: load, loop, step, log, save, close."""

import logging
from contextlib import closing
from pathlib import Path

from fastmoco.data.dataset import open_dataset
from fastmoco.data.quarantine import write_quarantine
from fastmoco.data.source_set import SourceSet
from fastmoco.errors import Interrupted
from fastmoco.evaluate.monitor import KnnMonitor
from fastmoco.pipelines.contract import ViewLoader
from fastmoco.ranks import environment_ranks
from fastmoco.runs.distributed import largest, process_group
from fastmoco.runs.metrics_file import read_metrics
from fastmoco.runs.reporter import run_logger
from fastmoco.runs.run_folder import RunFolder, RunIdentity, claim_run_folder
from fastmoco.runs.stop_signals import StopRequest, stop_signals
from fastmoco.train.beginning import begin
from fastmoco.train.checks import check_config
from fastmoco.train.first_views import write_first_views
from fastmoco.train.report import StepClock, log_header, make_row, open_reporter
from fastmoco.train.settings import FREE_KEYS, TrainConfig, run_path
from fastmoco.train.trainer import Trainer
from fastmoco.visualize.pictures import draw_curves


def train(cfg: TrainConfig) -> Path:
    """Pretrain an encoder by Momentum Contrast, or resume the same run where it stopped.

    If torchrun started several processes, each calls this and the first one writes.

    Args:
        cfg: Configuration from `load_config`.

    Returns:
        The run folder: ``config.yaml``, ``metrics.jsonl``, ``train.log``, ``checkpoints/``,
        ``views.png``, ``curves.png``, ``tensorboard/``, perhaps ``quarantine.csv``.

    Raises:
        UsageError: If settings conflict with each other, the data or the run folder.
        Interrupted: After SIGINT or SIGTERM, with the state saved.
        BetonError: If the dataset file is damaged.
    """
    ranks = environment_ranks()
    device = check_config(cfg, ranks)
    assert cfg.data.train is not None
    run, identity = RunFolder(run_path(cfg)), RunIdentity(cfg, FREE_KEYS)
    with (
        process_group(ranks, device),
        open_dataset(cfg.data.train) as dataset,
        KnnMonitor(cfg.monitor, cfg.data, cfg.global_batch_size) as monitor,
        claim_run_folder(run, identity, ranks),
        run_logger(run, ranks) as logger,
        stop_signals() as stop,
    ):
        trainer = Trainer(cfg, run, dataset, device, ranks)
        begin(trainer)
        if trainer.finished:
            logger.info("%s is finished (step %d); nothing to do", run.path, trainer.steps_done)
            return run.path
        if ranks.is_first and isinstance(dataset, SourceSet) and dataset.left_out:
            write_quarantine(run.quarantine, dataset.left_out)
        if ranks.is_first and not run.views.exists():
            write_first_views(trainer)
        with closing(trainer.open_loader()) as loader:
            log_header(logger, trainer, loader)
            run_steps(trainer, loader, monitor, logger, stop)
        if ranks.is_first:
            draw_curves(run.curves, read_metrics(run.metrics))
    return run.path


def run_steps(
    trainer: Trainer,
    loader: ViewLoader,
    monitor: KnnMonitor,
    logger: logging.Logger,
    stop: StopRequest,
) -> None:
    """Step until the run is finished or a signal stops it; log and save on the way.

    Raises:
        Interrupted: After SIGINT or SIGTERM, with the state saved.
    """
    clock, compiling = StepClock(), True
    with closing(open_reporter(trainer, logger)) as reporter:
        while not trainer.finished:
            batch = next(loader)
            rate = trainer.learning_rate
            trainer.take(batch, rate)
            reporter.advance(trainer.steps_done)
            clock.restart() if compiling else clock.add(batch.data_wait_seconds)
            compiling = False  # the first step did
            signal_number = largest(stop.signal_number, trainer.ranks)  # all stop at one step
            measuring = trainer.epoch_ends and monitor.is_due(trainer.epochs_done)
            knn_top1 = None
            if measuring and trainer.ranks.is_first:
                with clock.paused():
                    knn_top1 = monitor.measure(trainer.frozen_encoder())
            if measuring or trainer.log_is_due:
                trainer.check_finite()
                reporter.row(make_row(trainer, clock, rate, knn_top1))
            if trainer.save_is_due or signal_number:
                with clock.paused():
                    trainer.check_finite()
                    reporter.sync()
                    trainer.save()
            if signal_number and not trainer.finished:
                raise Interrupted(
                    signal_number,
                    f"stopped after step {trainer.steps_done}, saved; the same command resumes",
                )
