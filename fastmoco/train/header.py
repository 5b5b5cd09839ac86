"""The header of a run: what it is, on which device, by which settings, and what does not fit."""

import logging

from torch.nn.modules.batchnorm import _BatchNorm

from fastmoco.data.source_set import SourceSet
from fastmoco.device import describe_device, unused_gpu
from fastmoco.optim.schedules import base_learning_rate
from fastmoco.pipelines.contract import ViewLoader
from fastmoco.train.beginning import began_with_weights, describe_origins
from fastmoco.train.estimate import run_cost
from fastmoco.train.machine import machine_of
from fastmoco.train.number_format import describe_precision
from fastmoco.train.run_warnings import RunFacts, warnings_for
from fastmoco.train.trainer import Trainer


def log_header(logger: logging.Logger, trainer: Trainer, loader: ViewLoader) -> None:
    """Log run, device, data, model, optimizer and length of the training."""
    logger.info("run       %s, seed %d", trainer.run.path, trainer.cfg.seed)
    logger.info("device    %s", _device_text(trainer))
    logger.info("data      %s", _data_text(trainer, loader))
    if isinstance(trainer.dataset, SourceSet):
        for row in trainer.dataset.passed_over.rows.values():
            logger.info("          passed over, %s: %s", row.reason, row.to_text())
    logger.info("model     %s", _model_text(trainer))
    if trainer.origins:
        logger.info("start     %s", describe_origins(trainer.origins))
    logger.info("optimizer %s", _optimizer_text(trainer))
    logger.info("training  %s", _length_text(trainer))
    for line in trainer.cfg.advice:
        logger.info("advice    %s", line)
    for line in warnings_for(trainer.cfg, run_facts(trainer)):
        logger.warning("warning   %s", line)


def _device_text(trainer: Trainer) -> str:
    ranks, step = trainer.ranks, trainer.step
    count = f"{ranks.world_size} x " if ranks.several else ""
    precision = describe_precision(trainer.cfg.precision, trainer.device)
    views = "views by Kornia" if step.by_kornia else ""
    ways = ", ".join(filter(None, [trainer.compiled, step.eager_part, trainer.graph, views]))
    return f"{count}{describe_device(trainer.device)}, {precision}, {ways}"


def _data_text(trainer: Trainer, loader: ViewLoader) -> str:
    ends = trainer.plan(epoch=0).shard_ends
    shards = "" if ends is None else f" in {len(ends)} shards, one after the other"
    return (
        f"{trainer.dataset.path}, {len(trainer.dataset)} images{shards}, decoded on the "
        f"{loader.decode_device} by the loader {trainer.loader_name} ({trainer.loader_reason})"
    )


def _model_text(trainer: Trainer) -> str:
    cfg, model = trainer.cfg, trainer.step.model
    parameters = sum(parameter.numel() for parameter in model.query_encoder.parameters())
    return (
        f"{cfg.model.encoder} width {cfg.model.width}, {cfg.model.stem.value} stem, "
        f"{parameters / 1e6:.2f}M parameters; batch norm {trainer.batch_norm}; "
        f"{model.describe(cfg.global_batch_size)}, chance loss {model.chance_form} = "
        f"{trainer.chance_loss:.2f}, computed {model.loss.value}"
    )


def _optimizer_text(trainer: Trainer) -> str:
    cfg, batch, ranks = trainer.cfg, trainer.cfg.global_batch_size, trainer.ranks
    rate = f"learning rate {cfg.optimizer.learning_rate:g}"
    if cfg.optimizer.scale_learning_rate:
        rate += f" x {batch}/256 = {base_learning_rate(cfg.optimizer, batch):g}"
    text = f"{cfg.optimizer.name}, {rate}, {cfg.optimizer.schedule}, batch {batch}"
    if ranks.several:
        text += f", {batch // ranks.world_size} a device, gradients {cfg.train.gradients}"
    if cfg.train.accumulate > 1:
        text += f" in {cfg.train.accumulate} micro-batches"
    return text


def _length_text(trainer: Trainer) -> str:
    start = f"from step {trainer.steps_done} " if trainer.steps_done else ""
    return (
        f"{start}to step {trainer.total_steps}, {trainer.steps_per_epoch} steps an epoch"
        f"{_estimated_time(trainer)}"
    )


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
    more = " after compiling" if _compiles(trainer) else ""
    idle = "if no other program runs (train.dry_run=true measures)"
    return f", computed: roughly {text}{more}, {idle}"


def run_facts(trainer: Trainer) -> RunFacts:
    """What the settings of a run meet, for its warnings."""
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
