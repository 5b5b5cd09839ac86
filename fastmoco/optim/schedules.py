"""Learning rate as a pure function of the step: resuming needs no state."""

import math

from fastmoco.optim.settings import OptimizerConfig, Schedule


def base_learning_rate(cfg: OptimizerConfig, global_batch_size: int) -> float:
    """Peak: ``learning_rate``, times ``global_batch_size / 256`` with ``scale_learning_rate``."""
    return cfg.learning_rate * (global_batch_size / 256 if cfg.scale_learning_rate else 1.0)


def schedule_factor(cfg: OptimizerConfig, epoch: float, epochs: int) -> float:
    """Learning rate as a fraction of its peak, after `epoch` of `epochs` passes."""
    if cfg.schedule is Schedule.constant:
        return 1.0
    if cfg.schedule is Schedule.multistep:
        return cfg.milestone_factor ** sum(epoch >= milestone for milestone in cfg.milestones)
    if cfg.schedule is not Schedule.cosine:
        epoch = math.floor(epoch) + (cfg.schedule is Schedule.cosine_from_1)
    start = min(cfg.warmup_epochs, epochs) if cfg.cosine_after_warmup else 0.0
    if epoch >= epochs:
        return 0.0
    return 0.5 * (1.0 + math.cos(math.pi * max(0.0, epoch - start) / (epochs - start)))


def learning_rate(
    cfg: OptimizerConfig, step: int, *, peak: float, steps_per_epoch: int, epochs: int
) -> float:
    """Learning rate of a step.

    Linear warm-up from ``peak / warmup steps``, then the schedule. ``cosine`` falls at every step,
    ``cosine_per_epoch`` once an epoch as in the official code of MoCo, ``cosine_from_1`` too, with
    epochs counted from 1 as in its CIFAR-10 notebook. A cosine spans the epochs after the warm-up,
    as in the codes of SimCLR and MoCo v3, unless ``cosine_after_warmup`` is false. Milestones count
    from the first epoch.

    Args:
        cfg: Schedule and its parameters.
        step: Index of the step, from 0.
        peak: Result of `base_learning_rate`.
        steps_per_epoch: Steps in one pass over the dataset.
        epochs: Length of the schedule.
    """
    warmup_steps = cfg.warmup_epochs * steps_per_epoch
    if step < warmup_steps:
        return peak * min(1.0, (step + 1) / warmup_steps)
    return peak * schedule_factor(cfg, step / steps_per_epoch, epochs)
