"""Warnings for a run's header: settings that do not fit the images, the steps or the devices.

A pure function of settings and numbers, like the advice, whose rules it shares. Each line says what
is wrong and what to set.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

from fastmoco.moco.batchnorm import resolve_batch_norm
from fastmoco.moco.settings import BatchNorm, Mechanism, Precision
from fastmoco.ranks import Ranks
from fastmoco.train.advice import momentum, norm_groups, shorter_queue
from fastmoco.train.estimate import MEMORY_SHARE, run_cost
from fastmoco.train.machine import Machine
from fastmoco.train.rules import FEWEST_STEPS
from fastmoco.train.settings import TrainConfig

LARGEST_SHARE_LEFT = 0.05
"""Share of the first, random key encoder that may be left at the end."""
LONGEST_SECONDS = 2 * 86_400
"""Estimated duration above which a run is said to be long."""
SMALLEST_BATCH = 8
"""Smallest batch that is recommended where memory is short."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFacts:
    """What the settings of a run meet."""

    images: int
    """Images of the dataset."""
    steps: int
    """Steps of the complete run."""
    steps_per_epoch: int
    """Steps of one pass."""
    has_batch_norm: bool
    """Whether the encoder has batch norm."""
    machine: Machine
    """Devices of the run."""
    from_weights: bool = False
    """Whether the run that it goes on from began with weights."""
    unused_gpu: str = ""
    """Why device=auto does not use the GPU of the machine; "" if it has none, or uses it."""


def warnings_for(cfg: TrainConfig, facts: RunFacts) -> list[str]:
    """Name what does not fit, a line each; [] = nothing."""
    found = [*_about_length(cfg, facts), *_about_cost(cfg, facts)]
    if cfg.moco.mechanism is Mechanism.moco:
        found = [*_about_keys(cfg, facts), *found]
    if facts.unused_gpu:
        reason = facts.unused_gpu
        found.insert(0, f"this run is on the CPU: {reason}; fastmoco doctor says what to do")
    if facts.machine.kind == "cuda" and cfg.precision is Precision.float32:
        found.append(
            "precision=float32 takes twice the time and memory of 16 bits on a GPU; "
            "set precision=auto"
        )
    return found


def _about_keys(cfg: TrainConfig, facts: RunFacts) -> Iterator[str]:
    """Warn about queue, key encoder and batch norm of MoCo."""
    batch, moco = cfg.global_batch_size, cfg.moco
    if moco.queue_size > facts.images:
        yield (
            f"K = {moco.queue_size:,} is longer than an epoch of {facts.images:,} images, so that "
            "some negatives are sure to be of the query's own image; "
            + shorter_queue(facts.images, 2 * batch if moco.symmetric else batch, facts.steps)
        )
    left = moco.momentum**facts.steps
    constant = moco.final_momentum is None and not cfg.train.max_steps
    if left > LARGEST_SHARE_LEFT and constant and _from_nothing(cfg, facts):
        m = momentum(facts.steps)
        yield (
            f"m = {moco.momentum:g} keeps {100 * left:.0f}% of the random first key encoder after "
            f"{facts.steps:,} steps; "
            + (f"set moco.momentum={m}" if m < moco.momentum else "set train.epochs higher")
        )
    ranks = Ranks(0, facts.machine.devices)
    kind, groups = resolve_batch_norm(moco, ranks, cfg.train.accumulate)
    splits = norm_groups(batch)
    if kind is BatchNorm.plain and groups == 1 < splits and facts.has_batch_norm:
        yield (
            "batch norm has one group, whose statistics can give a query its key away "
            "(arXiv:1911.05722, section 3.3); set moco.batch_norm=auto "
            f"moco.batch_norm_splits={splits}"
        )


def _from_nothing(cfg: TrainConfig, facts: RunFacts) -> bool:
    return str(cfg.weights or "random") == "random" and not facts.from_weights


def _about_length(cfg: TrainConfig, facts: RunFacts) -> Iterator[str]:
    if _from_nothing(cfg, facts) and facts.steps < FEWEST_STEPS and not cfg.train.max_steps:
        epochs = math.ceil(FEWEST_STEPS / facts.steps_per_epoch)
        yield (
            f"{facts.steps:,} steps are too few to learn from nothing; set train.epochs={epochs} "
            "or more"
        )


def _about_cost(cfg: TrainConfig, facts: RunFacts) -> Iterator[str]:
    cost = run_cost(cfg, facts.steps, facts.machine)
    if cost is None:
        return
    available = facts.machine.memory_bytes
    if cost.memory_bytes > MEMORY_SHARE * available:
        yield (
            f"it may need {cost.memory_bytes / 1e9:.0f} GB, more than {100 * MEMORY_SHARE:.0f}% of "
            f"the device's {available / 1e9:.0f} GB; {_saving(cfg, facts)}"
        )
    if cost.seconds > LONGEST_SECONDS:
        yield (
            f"the run may take {cost.seconds / 86_400:.0f} days here (an estimate, "
            "train.dry_run=true measures); lower train.epochs or pipeline.view_size, or choose "
            "a smaller model.encoder"
        )


def _saving(cfg: TrainConfig, facts: RunFacts) -> str:
    """Settings that fit: as many images in each group of batch norm, and the rate scaled."""
    parts = _parts_that_fit(cfg, facts)
    if not parts:
        return "set pipeline.view_size lower, or choose a smaller model.encoder"
    groups = cfg.moco.batch_norm_splits
    words = f"set global_batch_size={cfg.global_batch_size // parts}"
    if groups > 1:
        words += f" moco.batch_norm_splits={max(groups // parts, 2)}"
    if not cfg.optimizer.scale_learning_rate:
        words += f" optimizer.learning_rate={cfg.optimizer.learning_rate / parts:.3g}"
    if cfg.moco.mechanism is not Mechanism.moco:
        return words
    accumulate = parts * cfg.train.accumulate
    new_groups = accumulate * facts.machine.devices
    if groups > 1 and groups % new_groups == 0:
        return f"{words}, or train.accumulate={accumulate}, which keeps the batch and its groups"
    words += f", or train.accumulate={accumulate}"
    words += f" moco.batch_norm_splits={new_groups}" if groups > 1 else ""
    return f"{words}, which keeps the batch but makes {new_groups} groups of batch norm"


def _parts_that_fit(cfg: TrainConfig, facts: RunFacts) -> int:
    """Smallest power of two that the batch must be divided by to fit; 0 = none does."""
    parts, smallest = 2, SMALLEST_BATCH * facts.machine.devices * cfg.train.accumulate
    while cfg.global_batch_size % parts == 0 and cfg.global_batch_size // parts >= smallest:
        part = replace(cfg, global_batch_size=cfg.global_batch_size // parts)
        cost = run_cost(part, facts.steps, facts.machine)
        if cost and cost.memory_bytes <= MEMORY_SHARE * facts.machine.memory_bytes:
            return parts
        parts *= 2
    return 0
