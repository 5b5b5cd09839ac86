"""What to set after a step ran out of memory: micro-batches, or a smaller batch.

The estimates of `estimate.py` choose the size; where they are none, or said that the step fits,
half of it is proposed. Groups of batch norm keep their number of images where they can: with
micro-batches the step then computes the same numbers (`micro_batches.py`).
"""

from dataclasses import replace

from fastmoco.moco.batchnorm import resolve_batch_norm
from fastmoco.moco.settings import Mechanism
from fastmoco.ranks import Ranks
from fastmoco.train.estimate import MEMORY_SHARE, run_cost
from fastmoco.train.machine import Machine, machine_of
from fastmoco.train.rules import RATES
from fastmoco.train.settings import TrainConfig
from fastmoco.train.trainer import Trainer


def explain_step(trainer: Trainer) -> str:
    """What a step holds, and options by which it fits; the end of an error's line."""
    cfg, ranks = trainer.cfg, trainer.ranks
    machine = machine_of(trainer.device, ranks.world_size)
    images, needed = cfg.global_batch_size // ranks.world_size, _needed(cfg, machine)
    estimate = f", in estimate {needed / 1e9:.1f} GB" if needed else ""
    where = " in another run_dir with train.from_run=RUN" if trainer.run.has_checkpoint else ""
    return (
        f"a step holds {images // cfg.train.accumulate} images of {cfg.pipeline.view_size} pixels "
        f"and {cfg.model.encoder} in {cfg.precision} on {trainer.device}{estimate}; "
        f"{advise_smaller(cfg, machine, ranks)}{where}"
    )


def advise_smaller(cfg: TrainConfig, machine: Machine, ranks: Ranks) -> str:
    """Options by which a step that ran out of memory fits."""
    parts = _fitting_parts(cfg, machine)
    if parts is None:
        return "use a smaller model.encoder, model.width or pipeline.view_size"
    ways = [_smaller_batch(cfg, ranks, parts)]
    if cfg.moco.mechanism is Mechanism.moco:
        ways.insert(0, _micro_batches(cfg, ranks, parts))
    return f"set {', or '.join(ways)}"


def _fitting_parts(cfg: TrainConfig, machine: Machine) -> int | None:
    """The fewest micro-batches that fit, at least twice as many as before; None if none do."""
    images, before = cfg.global_batch_size // machine.devices, cfg.train.accumulate
    needed, allowed = _needed(cfg, machine), MEMORY_SHARE * machine.memory_bytes
    for parts in range(2 * before, images // 2 + 1):
        if images % parts:
            continue
        part = replace(cfg, train=replace(cfg.train, accumulate=parts))
        if needed is None or (_needed(part, machine) or 0) <= allowed:
            return parts
    return None


def _needed(cfg: TrainConfig, machine: Machine) -> float | None:
    cost = run_cost(cfg, 1, machine)
    return cost.memory_bytes if cost else None


def _micro_batches(cfg: TrainConfig, ranks: Ranks, parts: int) -> str:
    """``train.accumulate=N``, and what becomes of batch norm's groups."""
    _, groups = resolve_batch_norm(cfg.moco, ranks, cfg.train.accumulate)
    total = ranks.world_size * parts
    if groups % total == 0 or cfg.moco.batch_norm_splits == 1:
        splits, own = "", cfg.global_batch_size // (groups if groups % total == 0 else total)
    else:
        splits, own = f" moco.batch_norm_splits={total}", cfg.global_batch_size // total
    return f"train.accumulate={parts}{splits} (batch norm over {own} images)"


def _smaller_batch(cfg: TrainConfig, ranks: Ranks, parts: int) -> str:
    """A smaller global batch, with the learning rate and the groups that belong to it."""
    factor = parts // cfg.train.accumulate
    batch = cfg.global_batch_size // factor
    words = [f"global_batch_size={batch}"]
    if not cfg.optimizer.scale_learning_rate:
        power = RATES[cfg.optimizer.name][2] if cfg.optimizer.name in RATES else 1.0
        words.append(f"optimizer.learning_rate={cfg.optimizer.learning_rate / factor**power:.3g}")
    if cfg.moco.batch_norm_splits > 1:
        least = ranks.world_size * cfg.train.accumulate
        words.append(f"moco.batch_norm_splits={max(cfg.moco.batch_norm_splits // factor, least)}")
    return " ".join(words)
