"""What a run begins with: its own checkpoint, another run's state, other weights, or nothing."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fastmoco.configuration import config_from_dict
from fastmoco.errors import UsageError
from fastmoco.runs.checkpoint import Checkpoint, at_step, load_checkpoint
from fastmoco.runs.distributed import check_same_step, of_first
from fastmoco.train.settings import TrainConfig
from fastmoco.train.trainer import Trainer
from fastmoco.weights.settings import RANDOM
from fastmoco.weights.start import StartWeights, read_start

SAME_KEYS = (
    "global_batch_size",
    "model.encoder",
    "model.stem",
    "model.width",
    "model.freeze_patch_projection",
    "moco.mechanism",
    "moco.pretext",
    "moco.head",
    "moco.head_hidden_dim",
    "moco.dim",
    "moco.hidden_dim",
    "moco.v3_heads",
    "moco.queue_size",
    "optimizer.name",
)
"""Options that decide the form of a run's state, or what a step is: `train.from_run` keeps them."""


def begin(trainer: Trainer) -> None:
    """Resume the run, or start it as its configuration says, in place, on all ranks.

    Raises:
        CheckpointError: If a checkpoint is missing, damaged or does not fit.
        UsageError: If another run's state or weights do not fit, or the ranks find different ones.
        OSError: If weights are missing or cannot be downloaded.
    """
    cfg = trainer.cfg
    if not trainer.resume():
        if cfg.train.from_run:
            _go_on_from(trainer, cfg.train.from_run)
        elif cfg.weights is not None and cfg.weights != RANDOM:
            trainer.start_from(_read_weights(trainer, cfg.weights))
    check_same_step(trainer.steps_done, trainer.ranks)


def began_with_weights(origins: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a run, or one that it goes on from, started from weights."""
    return any("weights" in origin for origin in origins)


def describe_origins(origins: Sequence[Mapping[str, Any]]) -> str:
    """What a run started from, in one line; empty for nothing."""
    return "; then ".join(map(_describe, origins))


def _describe(origin: Mapping[str, Any]) -> str:
    if "run" in origin:
        return f"from run {origin['run']} at step {origin['step']}"
    return (
        f"from weights {origin['weights']} (SHA-256 {origin['sha256'][:16]}), "
        f"projection head {origin['head']}"
    )


def _read_weights(trainer: Trainer, source: Path) -> StartWeights:
    """Read weights on the first rank, which downloads them, then on the others."""
    encoder, ranks = trainer.step.model.query_encoder, trainer.ranks
    start = read_start(source, encoder, trainer.cfg, settable=True) if ranks.is_first else None
    digest = of_first(start.sha256 if start else "", ranks)
    start = start or read_start(source, encoder, trainer.cfg, settable=True)
    if start.sha256 != digest:
        raise UsageError(f"weights={source} are others on rank {ranks.rank} than on rank 0")
    return start


def _go_on_from(trainer: Trainer, given: Path) -> None:
    """Restore the state of another run, whose steps are counted on."""
    checkpoint = load_checkpoint(at_step(given))
    _check_state(trainer, given, checkpoint)
    trainer.restore(checkpoint)
    name = re.sub(r"@\d+$", "", given.absolute().name)
    trainer.origins = [*trainer.origins, {"run": name, "step": checkpoint.step}]


def _check_state(trainer: Trainer, given: Path, checkpoint: Checkpoint) -> None:
    """Refuse a state that does not fit the configuration.

    Raises:
        UsageError: One line that names the option to change.
    """
    cfg, facts, option = trainer.cfg, checkpoint.facts, f"train.from_run={given}"
    instead = f"weights={given} starts a new run from its encoder"
    if "metrics.total" not in checkpoint.tensors:
        raise UsageError(f"{option} holds an encoder, not the state of a run; {instead}")
    if facts["dataset_fingerprint"] != trainer.dataset.fingerprint:
        raise UsageError(
            f"{option} was trained on another dataset than {trainer.dataset.path}; give that one "
            f"as data.train; {instead}"
        )
    before = config_from_dict(TrainConfig, facts["config"])
    values = {key: _value(before, key) for key in SAME_KEYS}
    differing = [f"{key}={value}" for key, value in values.items() if value != _value(cfg, key)]
    if differing:
        raise UsageError(
            f"{option} goes on with the state of that run; set {' '.join(differing)} as there; "
            f"{instead}"
        )
    if checkpoint.step >= trainer.total_steps:
        limited = cfg.train.epochs * trainer.steps_per_epoch > checkpoint.step
        more = (
            f"train.max_steps={checkpoint.step + 1}"
            if limited
            else f"train.epochs={checkpoint.step // trainer.steps_per_epoch + 1}"
        )
        raise UsageError(
            f"{option} is at step {checkpoint.step}, and this run ends at step "
            f"{trainer.total_steps}; set {more} or more"
        )


def _value(cfg: Any, key: str) -> Any:
    """The value of a dotted key."""
    for name in key.split("."):
        cfg = getattr(cfg, name)
    return cfg
