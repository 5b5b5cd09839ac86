"""`train`: load, loop, step, log, save, close."""

import logging
import math
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType

from fastmoco.device import describe_device, resolve_compile, resolve_device
from fastmoco.evaluate.monitor import KnnMonitor
from fastmoco.inspection.first_views import write_first_views
from fastmoco.inspection.pictures import draw_curves
from fastmoco.pipelines.contract import ViewLoader
from fastmoco.pipelines.source_set import open_image_set
from fastmoco.schema import TrainConfig, UsageError
from fastmoco.train.checkpoint import newest_checkpoint
from fastmoco.train.metrics import read_metrics
from fastmoco.train.report import Reporter, StepClock, make_row, run_logger
from fastmoco.train.run_folder import open_run_folder
from fastmoco.train.schedules import base_learning_rate
from fastmoco.train.trainer import Trainer, build_trainer


class Interrupted(RuntimeError):
    """The run was asked to stop, and saved its state.

    Attributes:
        signal_number: SIGINT or SIGTERM.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        """Keep the signal for the exit code."""
        super().__init__(message)
        self.signal_number = signal_number


def check_config(cfg: TrainConfig) -> None:
    """Refuse settings that cannot work together, before anything is opened.

    Raises:
        UsageError: One line that names the option to change.
    """
    if cfg.data.train is None:
        raise UsageError(
            "data.train is not set; make a dataset file with `fastmoco convert FOLDER train.beton` "
            "and give data.train=train.beton"
        )
    batch, moco = cfg.global_batch_size, cfg.moco
    keys, of_batch = (2 * batch, "2 x ") if moco.symmetric else (batch, "")
    if moco.queue_size < keys:
        raise UsageError(
            f"queue_size={moco.queue_size} is smaller than {of_batch}global_batch_size={batch}; "
            f"set moco.queue_size={keys} or more"
        )
    if (
        moco.batch_norm_splits < 1
        or batch % moco.batch_norm_splits
        or batch // moco.batch_norm_splits < 2
    ):
        raise UsageError(
            f"moco.batch_norm_splits={moco.batch_norm_splits} does not split "
            f"global_batch_size={batch} into equal groups of 2 or more; set it to a divisor"
        )
    if not 0 <= moco.momentum <= 1:
        raise UsageError(
            f"moco.momentum={moco.momentum} is outside 0..1; set it, for example, to 0.999"
        )
    if moco.temperature <= 0:
        raise UsageError(
            f"moco.temperature={moco.temperature} is not positive; set it, for example, to 0.2"
        )
    if cfg.train.epochs < 1 or cfg.train.log_every_steps < 1:
        raise UsageError("train.epochs and train.log_every_steps must be 1 or more")
    if cfg.monitor.every_epochs and cfg.data.test is None:
        raise UsageError(
            "monitor.every_epochs is set but data.test is not; "
            "give data.test=FILE.beton or monitor.every_epochs=0"
        )


def train(cfg: TrainConfig) -> Path:
    """Pretrain an encoder by Momentum Contrast, or go on where the same run stopped.

    Args:
        cfg: From `load_config`.

    Returns:
        The run folder: ``config.yaml``, ``metrics.jsonl``, ``train.log``, ``checkpoints/``,
        ``views.png``, ``curves.png``, ``tensorboard/``.

    Raises:
        UsageError: If settings do not fit each other, the data or the run folder.
        Interrupted: After SIGINT or SIGTERM, with the state saved.
        BetonError: If the dataset file is damaged.
    """
    check_config(cfg)
    assert cfg.data.train is not None
    if cfg.train.dry_run or cfg.train.profile:
        from fastmoco.train.dry_run import dry_run

        return dry_run(cfg)
    device = resolve_device(cfg.device)
    with open_image_set(cfg.data.train) as dataset, KnnMonitor(cfg, device) as monitor:
        run = open_run_folder(cfg)
        with run_logger(run) as logger, stop_signals() as stop:
            compiled, how = resolve_compile(cfg.train.compile, device)
            trainer = build_trainer(cfg, run, dataset, device, compiled)
            if saved := newest_checkpoint(run.checkpoints):
                trainer.restore(saved)
            if trainer.finished:
                logger.info("%s is finished (step %d); nothing to do", run.path, trainer.steps_done)
                return run.path
            if not run.views.exists():
                write_first_views(run.views, trainer)
            with closing(trainer.open_loader()) as loader:
                log_header(logger, trainer, loader, how)
                run_steps(trainer, loader, monitor, logger, stop)
        draw_curves(run.curves, read_metrics(run.metrics))
    return run.path


def run_steps(
    trainer: Trainer,
    loader: ViewLoader,
    monitor: KnnMonitor,
    logger: logging.Logger,
    stop: "StopRequest",
) -> None:
    """Step until the run is finished or asked to stop; log and save on the way.

    Raises:
        Interrupted: After a stop was asked for, with the state saved.
    """
    cfg = trainer.cfg
    reporter = Reporter(
        trainer.run,
        logger,
        resume_step=trainer.steps_done,
        total_steps=trainer.total_steps,
        epochs=cfg.train.epochs,
    )
    clock, compiling = StepClock(), True
    with closing(reporter):
        while not trainer.finished:
            batch = next(loader)
            rate = trainer.learning_rate
            trainer.take(batch, rate)
            reporter.advance(trainer.steps_done)
            clock.restart() if compiling else clock.add(batch.data_wait_seconds)
            compiling = False  # the first step did
            with clock.paused():
                knn_top1 = monitor.measure(trainer) if monitor.is_due(trainer) else None
            if knn_top1 is not None or _log_is_due(trainer):
                trainer.check_finite()
                reporter.row(make_row(trainer, clock, rate, knn_top1))
            if _save_is_due(trainer) or stop.signal_number:
                with clock.paused():
                    trainer.check_finite()
                    reporter.sync()
                    trainer.save()
            if stop.signal_number and not trainer.finished:
                raise Interrupted(
                    stop.signal_number,
                    f"stopped after step {trainer.steps_done}, saved; the same command resumes",
                )


def _log_is_due(trainer: Trainer) -> bool:
    return trainer.finished or trainer.steps_done % trainer.cfg.train.log_every_steps == 0


def _save_is_due(trainer: Trainer) -> bool:
    every = trainer.cfg.checkpoint.every_steps
    return trainer.finished or (trainer.steps_done % every == 0 if every else trainer.epoch_ends)


class StopRequest:
    """Whether SIGINT or SIGTERM came.

    Attributes:
        signal_number: The signal, or 0.
    """

    def __init__(self) -> None:
        """No signal yet."""
        self.signal_number = 0

    def __call__(self, signal_number: int, frame: FrameType | None) -> None:
        """Signal handler: remember the first; a second ends the process at once."""
        del frame
        if self.signal_number:
            raise KeyboardInterrupt
        self.signal_number = signal_number


@contextmanager
def stop_signals() -> Iterator[StopRequest]:
    """Within the block, SIGINT and SIGTERM ask the loop to save and stop."""
    stop = StopRequest()
    previous = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def log_header(logger: logging.Logger, trainer: Trainer, loader: ViewLoader, compiled: str) -> None:
    """Say what runs, on what, from what."""
    cfg, dataset = trainer.cfg, trainer.dataset
    model = trainer.step.model
    parameters = sum(parameter.numel() for parameter in model.query_encoder.parameters())
    peak = base_learning_rate(cfg.optimizer, cfg.global_batch_size)
    rate = f"learning rate {cfg.optimizer.learning_rate:g}"
    if cfg.optimizer.scale_learning_rate:
        rate += f" x {cfg.global_batch_size}/256 = {peak:g}"
    logger.info("run       %s, seed %d", trainer.run.path, cfg.seed)
    logger.info(
        "device    %s, %s, %s",
        describe_device(trainer.device),
        cfg.precision.value,
        ", ".join(filter(None, [compiled, trainer.step.eager_part])),
    )
    logger.info(
        "data      %s, %d images, decoded on the %s by the loader %s (%s)",
        dataset.path,
        len(dataset),
        loader.decode_device,
        trainer.loader_name,
        trainer.loader_reason,
    )
    logger.info(
        "model     %s width %d, %s stem, %.2fM parameters; queue %d, chance loss ln(K+1) = %.2f, "
        "computed %s",
        cfg.model.encoder,
        cfg.model.width,
        cfg.model.stem.value,
        parameters / 1e6,
        cfg.moco.queue_size,
        math.log(cfg.moco.queue_size + 1),
        model.loss.value,
    )
    logger.info(
        "optimizer %s, %s, %s, batch %d",
        cfg.optimizer.name,
        rate,
        cfg.optimizer.schedule,
        cfg.global_batch_size,
    )
    start = f"from step {trainer.steps_done} " if trainer.steps_done else ""
    logger.info(
        "training  %sto step %d, %d steps an epoch",
        start,
        trainer.total_steps,
        trainer.steps_per_epoch,
    )
