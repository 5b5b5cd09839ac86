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
from fastmoco.evaluate.baselines import read_baselines
from fastmoco.evaluate.monitor import KnnMonitor
from fastmoco.pipelines.build import free_idle
from fastmoco.pipelines.contract import ViewLoader
from fastmoco.ranks import environment_ranks
from fastmoco.runs.distributed import loader_threads, process_group
from fastmoco.runs.reporter import Reporter, SilentReporter, dispensable, run_logger
from fastmoco.runs.run_folder import RunFolder, RunIdentity, claim_run_folder
from fastmoco.runs.stop_signals import LATE, SAVE, StopRequest, stop_signals
from fastmoco.train.agreement import Agreement
from fastmoco.train.beginning import begin
from fastmoco.train.checks import check_config
from fastmoco.train.data_wait import DataWait, next_batch, stopped
from fastmoco.train.device_rules import with_augmentation, with_schedule
from fastmoco.train.divergence import check_numbers
from fastmoco.train.first_views import write_first_views
from fastmoco.train.header import end_text, first_step_text, log_header
from fastmoco.train.heartbeat import Activity, Phase, watched
from fastmoco.train.measuring import (
    is_measuring_due,
    is_row_owed,
    measure,
    measure_baselines,
)
from fastmoco.train.number_format import with_precision
from fastmoco.train.report import StepClock, make_row, open_reporter, screen_row
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
        elif denied:
            raise UsageError(
                f"{run.path} cannot be written ({denied.strerror}), and its run is at step "
                f"{trainer.steps_done} of {trainer.total_steps}; make the folder writable, or set "
                "another run_dir or name"
            )
        else:
            train_to_the_end(trainer, monitor, logger, stop)
    return run.path


def train_to_the_end(
    trainer: Trainer, monitor: KnnMonitor, logger: logging.Logger, stop: StopRequest
) -> None:
    """Open the data, say what is trained, do all steps, and judge what came out."""
    run, dataset = trainer.run, trainer.dataset
    left_out = dataset.left_out if isinstance(dataset, SourceSet) and trainer.ranks.is_first else []
    if left_out:
        with dispensable(logger, run.quarantine):
            write_quarantine(run.quarantine, left_out)
    with closing(trainer.open_loader()) as loader:
        if trainer.ranks.is_first and not run.views.exists():
            # With the loader of training open, which shares a resident set.
            with dispensable(logger, run.views), waiting("drawing the first views"):
                write_first_views(trainer)
        log_header(logger, trainer, loader)
        monitor.read_by(trainer.loader_name, loader_threads(trainer.cfg.pipeline.num_threads))
        baselines = measure_baselines(trainer, monitor, logger)
        free_idle()
        review = Review(trainer, baselines, logger)
        run_steps(trainer, loader, monitor, review, logger, stop)
    review.at_end()
    bad = len(left_out)
    if left_out and (note := many_left_out(bad, bad + len(dataset), run.quarantine)):
        logger.warning("data      %s", note)


def tell_again(trainer: Trainer, logger: logging.Logger) -> None:
    """Say the verdict on a finished run, on the first rank."""
    if trainer.ranks.is_first:
        path = trainer.run.baselines
        Review(trainer, read_baselines(path) if path.exists() else None, logger).tell()


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
    activity, is_owed = Activity(trainer.steps_done), is_row_owed(trainer, monitor)
    ranks = trainer.ranks
    with ExitStack() as stack:
        last_row = trainer.steps_done - is_owed
        reporter = stack.enter_context(closing(open_reporter(trainer, logger, last_row)))
        saver = Saver(trainer, reporter, logger)
        stack.enter_context(watched(activity, ranks, trainer.run.stacks(ranks.rank)))
        stack.enter_context(saver.saving_first())
        parts = _Steps(trainer, monitor, logger, activity, reporter, saver)
        if is_owed:
            parts.write_row()
            parts.save()
        agreement = trainer.step.agreement = Agreement(
            # The clocks of the ranks differ, so the first one's decides what is late.
            lambda: max(stop.take(), LATE * (ranks.is_first and saver.is_late)),
            ranks,
            trainer.device,
        )
        is_first = True
        while not trainer.finished:
            with waiting(first_step_text(trainer)) if is_first else nullcontext():
                parts.take(loader, stop)
            parts.count(is_first=is_first)
            is_first = stop.nothing_to_save = False
            request = agreement.answer()  # all ranks stop and save at one step
            signal_number = max(0, request - SAVE)
            activity.step_done()
            measured = parts.log()
            with parts.clock.paused():
                is_due = saver.is_due(is_late=request == LATE, measured=measured)
                saves = is_due or request >= SAVE
                if saves:
                    parts.save(is_last=trainer.finished or bool(signal_number))
                if saves or trainer.epoch_ends:
                    review.at_checkpoint()
            if signal_number and not trainer.finished:
                raise stopped(trainer, signal_number)


class _Steps:
    """The parts of a step of a run: take a batch, count it, log it, save the state."""

    def __init__(
        self,
        trainer: Trainer,
        monitor: KnnMonitor,
        logger: logging.Logger,
        activity: Activity,
        reporter: Reporter | SilentReporter,
        saver: Saver,
    ) -> None:
        self._trainer, self._monitor, self._logger = trainer, monitor, logger
        self._activity, self._reporter, self._saver = activity, reporter, saver
        self.clock = StepClock(DataWait(trainer.device))

    def take(self, loader: ViewLoader, stop: StopRequest) -> None:
        """Wait for a batch and learn from it."""
        trainer = self._trainer
        step = trainer.steps_done + 1
        self._activity.reach(step, Phase.reading)
        batch = next_batch(loader, trainer, stop, self.save, self.clock.wait)
        self._activity.reach(step, Phase.computing)
        with out_of_memory.explained(partial(explain_step, trainer)):
            trainer.take(batch, trainer.learning_rate)

    def count(self, *, is_first: bool) -> None:
        """Count a step that is done, and say how an earlier save ended."""
        if is_first or self._trainer.warms_up:  # compiling and capturing take no part in the speeds
            synchronize(self._trainer.device)
            self.clock.restart()
        else:
            self.clock.add()
        self._reporter.advance(self._trainer.steps_done)
        self._saver.report()

    def log(self) -> bool:
        """Write or show a row if one is due; returns whether the monitor measured."""
        measures = is_measuring_due(self._trainer, self._monitor)
        if measures or self._trainer.log_is_due:
            self.write_row()
        elif self._reporter.line_is_due:
            self._reporter.show(screen_row(self._trainer, self.clock))
        return measures

    def write_row(self) -> None:
        """Measure, if the monitor is due, and write a row."""
        trainer = self._trainer
        self._activity.reach(trainer.steps_done, Phase.measuring)
        check_numbers(trainer, self._logger)
        with self.clock.paused(), self._reporter.busy("measuring"):
            is_due = is_measuring_due(trainer, self._monitor)
            measured = measure(trainer, self._monitor, self._reporter) if is_due else {}
        self._reporter.row(make_row(trainer, self.clock, measured))

    def save(self, *, is_last: bool = True) -> None:
        """Check the numbers and save the state."""
        self._activity.reach(self._trainer.steps_done, Phase.saving)
        check_numbers(self._trainer, self._logger)
        self._saver.save(is_last=is_last)
