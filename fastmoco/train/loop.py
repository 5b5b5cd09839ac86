"""`train`: load, loop, step, log, save, close."""

import logging
import math
import signal
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType

from fastmoco.data.source_set import open_image_set
from fastmoco.device import describe_device, resolve_compile
from fastmoco.evaluate.monitor import KnnMonitor
from fastmoco.moco.batchnorm import resolve_batch_norm
from fastmoco.moco.build import check_encoder
from fastmoco.moco.check_mechanism import check_mechanism
from fastmoco.optim.schedules import base_learning_rate
from fastmoco.pipelines.contract import ViewLoader
from fastmoco.ranks import ALONE, Ranks, environment_ranks
from fastmoco.runs.checkpoint import newest_checkpoint
from fastmoco.runs.distributed import (
    check_same_step,
    largest,
    process_group,
    resolve_rank_device,
    wait_for_all,
)
from fastmoco.runs.run_folder import open_run_folder
from fastmoco.schema import BatchNorm, Mechanism, TrainConfig, UsageError
from fastmoco.train.metrics import read_metrics
from fastmoco.train.report import StepClock, make_row, open_reporter, run_logger
from fastmoco.train.trainer import Trainer, build_trainer
from fastmoco.visualize.first_views import write_first_views
from fastmoco.visualize.pictures import draw_curves


class Interrupted(RuntimeError):
    """The run was asked to stop, and saved its state.

    Attributes:
        signal_number: SIGINT or SIGTERM.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        """Keep the signal for the exit code."""
        super().__init__(message)
        self.signal_number = signal_number


def check_config(cfg: TrainConfig, ranks: Ranks = ALONE) -> None:
    """Refuse settings that cannot work together, before anything is opened.

    Args:
        cfg: Of the run.
        ranks: Who trains; every rank refuses alike.

    Raises:
        UsageError: One line that names the option to change.
    """
    if cfg.data.train is None:
        raise UsageError(
            "data.train is not set; make a dataset file with `fastmoco convert FOLDER train.beton` "
            "and give data.train=train.beton"
        )
    batch, moco = cfg.global_batch_size, cfg.moco
    if ranks.several and (cfg.train.dry_run or cfg.train.profile):
        raise UsageError(
            "train.dry_run and train.profile measure one device; start them without torchrun, "
            "with the batch of one device"
        )
    check_mechanism(moco, batch)
    _check_groups(cfg, ranks)
    check_encoder(cfg.model, moco, ranks, cfg.pipeline.view_size, cfg.train.accumulate)
    _check_normalization(cfg)
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


def _check_groups(cfg: TrainConfig, ranks: Ranks) -> None:
    """Every device has the same share of a global batch, made of whole groups of batch norm."""
    batch, splits, devices = cfg.global_batch_size, cfg.moco.batch_norm_splits, ranks.world_size
    if batch < 1 or batch % devices:
        raise UsageError(
            f"global_batch_size={batch} is not a positive multiple of the {devices} devices; "
            f"set global_batch_size={max(1, round(batch / devices)) * devices} or another one"
        )
    parts = cfg.train.accumulate
    if parts > 1 and cfg.moco.mechanism is not Mechanism.moco:
        raise UsageError(
            f"train.accumulate={parts} is for moco.mechanism=moco, whose negatives lie in a queue, "
            f"not for {cfg.moco.mechanism}; set train.accumulate=1"
        )
    if parts < 1 or batch // devices % parts:
        raise UsageError(
            f"train.accumulate={parts} does not cut a device's {batch // devices} images into equal"
            " micro-batches; set it to a divisor"
        )
    kind, groups = resolve_batch_norm(cfg.moco, ranks, parts)
    places = f"{devices} device{'s' if devices > 1 else ''}"
    places += f" with train.accumulate={parts}" if parts > 1 else ""
    if splits < 1 or batch % groups or batch // groups < 2:
        raise UsageError(
            f"moco.batch_norm_splits={splits} does not split global_batch_size={batch} into equal "
            f"groups of 2 or more on {places}; set it to a divisor"
        )
    if kind is BatchNorm.shuffled and groups % (devices * parts):
        raise UsageError(
            f"moco.batch_norm_splits={splits} groups do not fall evenly on {places}; "
            f"set it to a multiple of {devices * parts}, or to 1: a group on each"
        )
    if kind is BatchNorm.shuffled and groups == 1:
        raise UsageError(
            "moco.batch_norm=shuffled changes nothing on one device with one group; "
            "set moco.batch_norm_splits=4 or the like, or moco.batch_norm=plain"
        )


def _check_normalization(cfg: TrainConfig) -> None:
    mean, std = cfg.pipeline.channel_mean, cfg.pipeline.channel_std
    if (mean or std) and not (len(mean) == len(std) == 3 and min(std) > 0):
        raise UsageError(
            f"pipeline.channel_mean={mean} with pipeline.channel_std={std} cannot normalize; give "
            "three numbers each, deviations above 0, or neither: the dataset's own"
        )
    if mean and cfg.model.encoder.startswith("halves:"):
        raise UsageError(
            f"model.encoder={cfg.model.encoder} takes RGB as it is and converts it to Lab; set "
            "pipeline.channel_mean=[] pipeline.channel_std=[]"
        )


def train(cfg: TrainConfig) -> Path:
    """Pretrain an encoder by Momentum Contrast, or go on where the same run stopped.

    Where torchrun started several processes, each calls this and the first one writes.

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
    ranks = environment_ranks()
    check_config(cfg, ranks)
    assert cfg.data.train is not None
    if cfg.train.dry_run or cfg.train.profile:
        from fastmoco.train.dry_run import dry_run

        return dry_run(cfg)
    device = resolve_rank_device(cfg.device, ranks)
    with (
        process_group(ranks, device),
        open_image_set(cfg.data.train) as dataset,
        KnnMonitor(cfg, device) as monitor,
    ):
        run = open_run_folder(cfg, write=False)
        wait_for_all(ranks)  # all have looked before the first one writes
        if ranks.is_first:
            open_run_folder(cfg)
        with run_logger(run, ranks) as logger, stop_signals() as stop:
            compiled, how = resolve_compile(cfg.train.compile, device)
            trainer = build_trainer(cfg, run, dataset, device, compiled, ranks)
            if saved := newest_checkpoint(run.checkpoints):
                trainer.restore(saved)
            check_same_step(trainer.steps_done, ranks)
            if trainer.finished:
                logger.info("%s is finished (step %d); nothing to do", run.path, trainer.steps_done)
                return run.path
            if ranks.is_first and not run.views.exists():
                write_first_views(run.views, trainer)
            with closing(trainer.open_loader()) as loader:
                log_header(logger, trainer, loader, how)
                run_steps(trainer, loader, monitor, logger, stop)
        if ranks.is_first:
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
            measuring, knn_top1 = monitor.is_due(trainer), None
            if measuring and trainer.ranks.is_first:
                with clock.paused():
                    knn_top1 = monitor.measure(trainer)
            if measuring or _log_is_due(trainer):
                trainer.check_finite()
                reporter.row(make_row(trainer, clock, rate, knn_top1))
            if _save_is_due(trainer) or signal_number:
                with clock.paused():
                    trainer.check_finite()
                    reporter.sync()
                    trainer.save()
            if signal_number and not trainer.finished:
                raise Interrupted(
                    signal_number,
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
    batch = cfg.global_batch_size
    peak = base_learning_rate(cfg.optimizer, cfg.global_batch_size)
    rate = f"learning rate {cfg.optimizer.learning_rate:g}"
    if cfg.optimizer.scale_learning_rate:
        rate += f" x {cfg.global_batch_size}/256 = {peak:g}"
    logger.info("run       %s, seed %d", trainer.run.path, cfg.seed)
    logger.info(
        "device    %s%s, %s, %s",
        f"{trainer.ranks.world_size} x " if trainer.ranks.several else "",
        describe_device(trainer.device),
        cfg.precision.value,
        ", ".join(filter(None, [compiled, trainer.step.eager_part, trainer.graph])),
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
        "model     %s width %d, %s stem, %.2fM parameters; batch norm %s; %s, "
        "chance loss ln(K+1) = %.2f, computed %s",
        cfg.model.encoder,
        cfg.model.width,
        cfg.model.stem.value,
        parameters / 1e6,
        trainer.batch_norm,
        model.describe(batch),
        math.log(model.num_negatives(batch) + 1),
        model.loss.value,
    )
    logger.info(
        "optimizer %s, %s, %s, batch %d%s%s",
        cfg.optimizer.name,
        rate,
        cfg.optimizer.schedule,
        cfg.global_batch_size,
        f", {cfg.global_batch_size // trainer.ranks.world_size} a device"
        if trainer.ranks.several
        else "",
        f" in {cfg.train.accumulate} micro-batches" if cfg.train.accumulate > 1 else "",
    )
    start = f"from step {trainer.steps_done} " if trainer.steps_done else ""
    logger.info(
        "training  %sto step %d, %d steps an epoch",
        start,
        trainer.total_steps,
        trainer.steps_per_epoch,
    )
