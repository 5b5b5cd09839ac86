"""The number format of a run, chosen once."""

from dataclasses import replace

import torch

from fastmoco.device import describe_float32
from fastmoco.moco.settings import Precision
from fastmoco.optim.precision import choose_precision
from fastmoco.runs.run_folder import RunFolder
from fastmoco.train.device_rules import chosen, kept
from fastmoco.train.settings import TrainConfig


def kept_precision(run: RunFolder) -> Precision | None:
    """The number format of a run that has a checkpoint; None for one that begins.

    Raises:
        UsageError: If the run's ``config.yaml`` cannot be read.
    """
    return kept(run, "precision", Precision.float32)


def with_precision(
    cfg: TrainConfig, device: torch.device, run: RunFolder | None = None
) -> TrainConfig:
    """Replace ``precision=auto`` by a number format, with the reason in ``advice``.

    Args:
        cfg: Configuration of the run; not changed.
        device: Device of this rank.
        run: Folder of the run, see `chosen`.

    Raises:
        UsageError: If the run's ``config.yaml`` cannot be read.
    """
    if cfg.precision is not Precision.auto:
        return cfg
    value, advice = chosen(
        cfg, run, "precision", rule=lambda: choose_precision(device), older=Precision.float32
    )
    return replace(cfg, precision=value, advice=advice)


def describe_precision(precision: Precision, device: torch.device) -> str:
    """Name a number format; for float32, whether convolutions round their inputs to TF32."""
    return describe_float32(device) if precision is Precision.float32 else precision.value
