"""What follows numbers that are not finite, or weights that grow without bound.

`StepGuard` keeps such a step from changing anything; here the host learns of it, where it reads the
metrics or saves anyway.
"""

import json
import logging
import math
from dataclasses import replace
from typing import Any

from fastmoco.draws.host import draw_keys
from fastmoco.errors import DivergedError
from fastmoco.files import atomic_write_text
from fastmoco.optim.step_guard import MOST_SKIPPED_IN_A_ROW, GuardCounts
from fastmoco.runs.reporter import dispensable
from fastmoco.train.settings import OnNonfinite
from fastmoco.train.trainer import Trainer

LARGEST_GROWTH = 1e4
"""Norm of the weights, as a multiple of that at the start, above which a run has diverged."""


def check_numbers(trainer: Trainer, logger: logging.Logger) -> None:
    """Check the steps since the last call, and the weights; on all ranks, with the same result.

    The first bad step of a run is written to ``bad-step-N.json``.

    Raises:
        DivergedError: If a step was not finite and `train.on_nonfinite` is ``stop``, if too many
            followed each other, or if the weights are not finite or have grown too far.
    """
    counts = trainer.step.guard.read()
    trainer.step.guard.forget()
    trainer.skipped_steps += counts.skipped
    if counts.faults:
        problem = _describe_faults(trainer, counts, logger)
        too_many = counts.in_a_row >= MOST_SKIPPED_IN_A_ROW
        if trainer.cfg.train.on_nonfinite is OnNonfinite.stop or too_many:
            raise DivergedError(f"{problem}; {_advice(trainer)}")
        logger.warning("warning   %s", problem)
    norm = trainer.weights_norm()
    if not norm <= LARGEST_GROWTH * trainer.start_norm:
        raise DivergedError(f"{_describe_weights(trainer, norm)}; {_advice(trainer)}")


def _describe_faults(trainer: Trainer, counts: GuardCounts, logger: logging.Logger) -> str:
    step = trainer.steps_done - counts.steps + counts.first_fault
    path = trainer.run.bad_step(step)
    if trainer.ranks.is_first and not trainer.run.bad_steps():
        with dispensable(logger, path):
            atomic_write_text(path, json.dumps(bad_step(trainer, step), indent=1))
    more = f", and {counts.faults - 1} after it" if counts.faults > 1 else ""
    return (
        f"step {step}{more}: the loss, a gradient or a running statistic is not finite; such a "
        f"step changes nothing. `fastmoco replay {trainer.run.path} step={step}` computes it again"
    )


def _describe_weights(trainer: Trainer, norm: float) -> str:
    named = dict(trainer.step.model.named_parameters())
    sizes = {name: float(p.detach().norm()) for name, p in named.items() if p.requires_grad}
    odd = [name for name, size in sizes.items() if not math.isfinite(size)]
    if odd:
        return f"after step {trainer.steps_done} the weights {odd[0]} are not finite"
    return (
        f"after step {trainer.steps_done} the weights are {norm / trainer.start_norm:.0f} times as "
        f"large as at the start, most of all {max(sizes, key=sizes.__getitem__)}"
    )


def _advice(trainer: Trainer) -> str:
    rate = f"lower optimizer.learning_rate (now {trainer.learning_rate:g})"
    if not trainer.run.has_checkpoint:
        return f"{rate} and start again"
    return (
        f"the checkpoint before it stays: {rate} in a new run with train.from_run="
        f"{trainer.run.path}, or resume with train.on_nonfinite=skip"
    )


def bad_step(trainer: Trainer, step: int) -> dict[str, Any]:
    """The images and draws of a step, counted from 1, over all ranks; from the plan alone."""
    epoch, batch = divmod(step - 1, trainer.steps_per_epoch)
    plan = replace(trainer.plan(epoch=epoch, start_batch=batch), rank=0, world_size=1)
    ids = next(iter(plan.batches()))
    return {
        "step": step,
        "epoch": epoch,
        "sample_ids": ids.tolist(),
        "names": [trainer.dataset.name(one) for one in ids.tolist()],
        "draw_keys": draw_keys(trainer.cfg.seed, epoch, ids).tolist(),
    }
