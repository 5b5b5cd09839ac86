"""`train`: load, loop, step, log, save, close."""

import logging
from contextlib import ExitStack, closing, nullcontext
from functools import partial
from pathlib import Path

from fastmoco import out_of_memory
from fastmoco.data.dataset import open_dataset
from fastmoco.data.quarantine import many_left_out, write_quarantine
from fastmoco.data.source_set import SourceSet
from fastmoco.device import algorithms, synchronize
from fastmoco.errors import UsageError
from fastmoco.evaluate.baselines import Baselines, read_baselines, write_baselines
from fastmoco.evaluate.monitor import KnnMonitor
from fastmoco.pipelines.build import free_idle
from fastmoco.pipelines.contract import ViewLoader
from fastmoco.ranks import environment_ranks
from fastmoco.runs.distributed import largest, process_group
from fastmoco.runs.reporter import Reporter, SilentReporter, dispensable, run_logger
from fastmoco.runs.run_folder import RunFolder, RunIdentity, claim_run_folder
from fastmoco.runs.stop_signals import LATE, SAVE, StopRequest, stop_signals
from fastmoco.train.beginning import begin
from fastmoco.train.checks import check_config
from fastmoco.train.data_wait import DataWait, next_batch, stopped
from fastmoco.train.device_rules import with_augmentation, with_schedule
from fastmoco.train.divergence import check_numbers
from fastmoco.train.first_views import write_first_views
from fastmoco.train.fresh_keys import fresh_metrics
from fastmoco.train.heartbeat import Activity, Phase, watched
from fastmoco.train.number_format import with_precision
from fastmoco.train.report import (
    StepClock,
    described,
    end_text,
    first_step_text,
    log_header,
    make_row,
    open_reporter,
    screen_row,
)
from fastmoco.train.review import Review
from fastmoco.train.saving import Saver
from fastmoco.train.settings import FREE_KEYS, TrainConfig, run_path
from fastmoco.train.smaller_steps import explain_step
from fastmoco.train.trainer import Trainer
from fastmoco.waiting import waiting


def train(cfg: TrainConfig) -> Path:
    """Pretrain an encoder by Momentum Contrast, or resume the same run where it stopped.

    If torchrun started several processes, each calls this and the first one writes.

    Args:
        cfg: Configuration from `load_config`.

    Returns:
        The run folder: ``config.yaml``, ``metrics.jsonl``, ``train.log``, ``checkpoints/``,
        ``views.png``, ``curves.png``, ``verdict.json``, ``tensorboard/`` or ``wandb/``, perhaps
        ``quarantine.csv``.

    Raises:
        UsageError: If settings conflict with each other, the data or the run folder.
        Interrupted: After SIGINT, SIGTERM or SIGHUP, with the state saved.
        BetonError: If the dataset file is damaged.
    """
    ranks = environment_ranks()
    device = check_config(cfg, ranks)
    run = RunFolder(run_path(cfg))
    cfg = with_augmentation(with_precision(cfg, device, run), device, run)
    cfg = with_schedule(cfg, run)
    assert cfg.data.train is not None
    identity = RunIdentity(cfg, FREE_KEYS)
    with (
        process_group(ranks, device),
        algorithms(device, reproducible=cfg.train.reproducible),
        open_dataset(cfg.data.train) as dataset,
        KnnMonitor(cfg.monitor, cfg.data, cfg.global_batch_size) as monitor,
        claim_run_folder(run, identity, ranks) as denied,
        run_logger(run, ranks, to_file=not denied) as logger,
        stop_signals(saves=True) as stop,
    ):
        stop.nothing_to_save = True
        with waiting("building the model, trying the compiler"):
            trainer = Trainer(cfg, run, dataset, device, ranks)
            begin(trainer)
        if trainer.finished and not is_row_owed(trainer, monitor):
            logger.info("%s %s; nothing to do", run.path, end_text(trainer))
            tell_again(trainer, logger)
            return run.path
        if denied:
            raise UsageError(
                f"{run.path} cannot be written ({denied.strerror}), and its run is at step "
                f"{trainer.steps_done} of {trainer.total_steps}; make the folder writable, or set "
                "another run_dir"
            )
        if ranks.is_first and isinstance(dataset, SourceSet) and dataset.left_out:
            with dispensable(logger, run.quarantine):
                write_quarantine(run.quarantine, dataset.left_out)
        with closing(trainer.open_loader()) as loader:
            if ranks.is_first and not run.views.exists():
                # With the loader of training open, which shares a resident set.
                with dispensable(logger, run.views), waiting("drawing the first views"):
                    write_first_views(trainer)
            log_header(logger, trainer, loader)
            monitor.read_by(trainer.loader_name, cfg.pipeline.num_threads)
            baselines = measure_baselines(trainer, monitor, logger)
            free_idle()
            review = Review(trainer, baselines, logger)
            run_steps(trainer, loader, monitor, review, logger, stop)
        review.at_end()
        if ranks.is_first and isinstance(dataset, SourceSet) and dataset.left_out:
            bad = len(dataset.left_out)
            if note := many_left_out(bad, bad + len(dataset), run.quarantine):
                logger.warning("data      %s", note)
    return run.path


def tell_again(trainer: Trainer, logger: logging.Logger) -> None:
    """Say the verdict on a finished run, on the first rank."""
    if trainer.ranks.is_first:
        path = trainer.run.baselines
        Review(trainer, read_baselines(path) if path.exists() else None, logger).tell()


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


def run_steps(
    trainer: Trainer,
    loader: ViewLoader,
    monitor: KnnMonitor,
    review: Review,
    logger: logging.Logger,
    stop: StopRequest,
) -> None:
    """Step until the run is finished or a signal stops it; log and save on the way.

    Raises:
        Interrupted: After SIGINT, SIGTERM or SIGHUP, with the state saved.
        HungReadError: If an image takes too long, with the state saved on one rank.
        DivergedError: If numbers are not finite, or weights grow without bound.
        OSError: If the last state cannot be saved.
    """
    clock, ranks, first = StepClock(DataWait(trainer.device)), trainer.ranks, True
    activity = Activity(trainer.steps_done)
    is_owed = is_row_owed(trainer, monitor)
    with ExitStack() as stack:
        last_row = trainer.steps_done - is_owed
        reporter = stack.enter_context(closing(open_reporter(trainer, logger, last_row)))
        saver = Saver(trainer, reporter, logger)
        stack.enter_context(watched(activity, ranks, trainer.run.stacks(ranks.rank)))
        stack.enter_context(saver.saving_first())

        def save(*, is_last: bool = True) -> None:
            activity.reach(trainer.steps_done, Phase.saving)
            check_numbers(trainer, logger)
            saver.save(is_last=is_last)

        def write_row() -> None:
            activity.reach(trainer.steps_done, Phase.measuring)
            check_numbers(trainer, logger)
            with clock.paused(), reporter.busy("measuring"):
                is_due = is_measuring_due(trainer, monitor)
                measured = measure(trainer, monitor, reporter) if is_due else {}
            reporter.row(make_row(trainer, clock, measured))

        if is_owed:
            write_row()
            save()
        while not trainer.finished:
            step = trainer.steps_done + 1
            with waiting(first_step_text(trainer)) if first else nullcontext():
                activity.reach(step, Phase.reading)
                batch = next_batch(loader, trainer, stop, save, clock.wait)
                activity.reach(step, Phase.computing)
                with out_of_memory.explained(partial(explain_step, trainer)):
                    trainer.take(batch, trainer.learning_rate)
            if first or trainer.warms_up:  # compiling and capturing take no part in the speeds
                synchronize(trainer.device)
                clock.restart()
            else:
                clock.add()
            first = stop.nothing_to_save = False
            reporter.advance(step)
            saver.report()
            # All ranks stop and save at one step.
            request = largest(max(stop.take(), LATE * saver.is_late), ranks)
            activity.step_done()
            signal_number, is_late = max(0, request - SAVE), request == LATE
            measuring = is_measuring_due(trainer, monitor)
            if measuring or trainer.log_is_due:
                write_row()
            elif reporter.line_is_due:
                reporter.show(screen_row(trainer, clock))
            with clock.paused():
                if request >= SAVE or saver.is_due(is_late=is_late, measured=measuring):
                    save(is_last=trainer.finished or bool(signal_number))
                    review.at_checkpoint()
                elif trainer.epoch_ends:
                    review.at_checkpoint()
            if signal_number and not trainer.finished:
                raise stopped(trainer, signal_number)


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
    """Measure the encoder by the monitor, and the queue's keys, on the first rank."""
    if not trainer.ranks.is_first:
        return {}
    found = monitor.measure(trainer.frozen_encoder())
    trainer.knn_top1 = found.knn_top1
    free_idle()
    measured = {**found._asdict(), **fresh_metrics(trainer)}
    epoch = trainer.steps_done / trainer.steps_per_epoch
    reporter.say(f"{described(measured)} after epoch {epoch:.3g}")
    return measured
