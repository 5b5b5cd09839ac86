"""Values that a run chooses once: a resumed one keeps them, elsewhere and in newer versions."""

from collections.abc import Callable
from dataclasses import replace
from enum import StrEnum
from typing import TypeVar

import torch
from omegaconf import OmegaConf

from fastmoco.pipelines.augment import choose_augmentation
from fastmoco.pipelines.settings import Augmentation
from fastmoco.runs.run_folder import RunFolder
from fastmoco.train.settings import TrainConfig

Choice = TypeVar("Choice", bound=StrEnum)


def kept(run: RunFolder, key: str, older: Choice) -> Choice | None:
    """The value of an option in a run that has a checkpoint; None for a run that begins.

    Args:
        run: Folder of the run.
        key: The option.
        older: Value of runs of versions without the option.

    Raises:
        UsageError: If the run's ``config.yaml`` cannot be read.
    """
    if not (run.has_checkpoint and run.config.exists()):
        return None
    saved = OmegaConf.create(run.read_config())
    return type(older)(OmegaConf.select(saved, key, default=older))


def chosen(
    cfg: TrainConfig,
    run: RunFolder | None,
    key: str,
    *,
    rule: Callable[[], tuple[Choice, str]],
    older: Choice,
) -> tuple[Choice, list[str]]:
    """What an option's ``auto`` is in a run, and ``advice`` of the configuration with the reason.

    Args:
        cfg: Configuration of the run.
        run: Folder of the run: one with a checkpoint keeps its value, whatever the device is.
        key: The option.
        rule: Chooses a value and says why.
        older: See `kept`.

    Raises:
        UsageError: If the run's ``config.yaml`` cannot be read.
    """
    if run and (value := kept(run, key, older)):
        saved = run.read_config().get("advice", [])
        lines = [line for line in saved if str(line).startswith(f"{key}=")]
    else:
        value, reason = rule()
        lines = [f"{key}={value}: {reason}"]
    return value, [*(line for line in cfg.advice if line not in lines), *lines]


def with_augmentation(
    cfg: TrainConfig, device: torch.device, run: RunFolder | None = None
) -> TrainConfig:
    """Replace ``pipeline.augmentation=auto``, with the reason in ``advice``.

    Args:
        cfg: Configuration of the run; not changed.
        device: Device of this rank.
        run: Folder of the run, see `chosen`.

    Raises:
        UsageError: If the run's ``config.yaml`` cannot be read.
    """
    if cfg.pipeline.augmentation is not Augmentation.auto:
        return cfg
    value, advice = chosen(
        cfg,
        run,
        "pipeline.augmentation",
        rule=lambda: choose_augmentation(device),
        older=Augmentation.planes,
    )
    return replace(cfg, pipeline=replace(cfg.pipeline, augmentation=value), advice=advice)


def with_schedule(cfg: TrainConfig, run: RunFolder) -> TrainConfig:
    """Keep the schedule of a run that has ``optimizer.cosine_after_warmup`` not in its file yet.

    Args:
        cfg: Configuration of the run; not changed.
        run: Folder of the run.

    Raises:
        UsageError: If the run's ``config.yaml`` cannot be read.
    """
    saved = run.read_config() if run.has_checkpoint and run.config.exists() else {}
    if not saved or "cosine_after_warmup" in saved.get("optimizer", {}):
        return cfg
    return replace(cfg, optimizer=replace(cfg.optimizer, cosine_after_warmup=False))
