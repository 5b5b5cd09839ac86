"""The number format of a run, chosen once."""

from dataclasses import replace

import torch

from fastmoco.moco.settings import Precision
from fastmoco.optim.precision import choose_precision
from fastmoco.runs.run_folder import RunFolder
from fastmoco.train.settings import TrainConfig


def kept_precision(run: RunFolder) -> Precision | None:
    """The number format of a run that has a checkpoint; None for one that begins.

    Raises:
        UsageError: If the run's ``config.yaml`` cannot be read.
    """
    if not (run.has_checkpoint and run.config.exists()):
        return None
    return Precision(run.read_config().get("precision", Precision.float32))


def with_precision(
    cfg: TrainConfig, device: torch.device, run: RunFolder | None = None
) -> TrainConfig:
    """Replace ``precision=auto`` by a number format, with the reason in ``advice``.

    Args:
        cfg: Configuration of the run; not changed.
        device: Device of this rank.
        run: Folder of the run: one with a checkpoint keeps its format, whatever the device is.

    Raises:
        UsageError: If the run's ``config.yaml`` cannot be read.
    """
    if cfg.precision is not Precision.auto:
        return cfg
    if run and (before := kept_precision(run)):
        saved = run.read_config().get("advice", [])
        kept = [line for line in saved if str(line).startswith("precision=")]
        chosen = before
    else:
        chosen, reason = choose_precision(device)
        kept = [f"precision={chosen.value}: {reason}"]
    others = [line for line in cfg.advice if line not in kept]
    return replace(cfg, precision=chosen, advice=[*others, *kept])
