"""`experiment=own`: the advice for the images and devices of a run."""

from collections.abc import Collection
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

from fastmoco.data.dataset import survey
from fastmoco.device import resolve_device
from fastmoco.ranks import environment_ranks
from fastmoco.runs.run_folder import RunFolder
from fastmoco.train.advice import advise
from fastmoco.train.machine import machine_of

if TYPE_CHECKING:
    from fastmoco.train.settings import TrainConfig


def own_advice(cfg: "TrainConfig", keys: Collection[str], folder: Path) -> list[str]:
    """Choose the settings that the user left open, or take those of the run that is resumed.

    A run with a checkpoint keeps its settings, whatever today's rules or devices are.

    Args:
        cfg: Configuration with what the user gave, ``data.train`` among it.
        keys: Options and groups that the user gave.
        folder: Folder of the run.

    Returns:
        Lines for the configuration's ``advice``.

    Raises:
        UsageError: If ``data.train`` has too few images.
        OSError: If it cannot be read.
    """
    run = RunFolder(folder)
    if run.has_checkpoint and run.config.exists():
        advice = run.read_config().get("advice", [])
        return [str(line) for line in advice] if isinstance(advice, list) else []
    assert cfg.data.train is not None
    found = survey(cfg.data.train)
    machine = machine_of(resolve_device(cfg.device), environment_ranks().world_size)
    given = {key: attrgetter(key)(cfg) for key in keys if key != "experiment"}
    return [str(one) for one in advise(found, machine, given)]
