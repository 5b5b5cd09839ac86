"""What is done under failing calls, by functions that the other process finds by name."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from fastmoco.configuration import load_config
from fastmoco.ranks import ALONE
from fastmoco.runs.checkpoint import Checkpoint, save_checkpoint
from fastmoco.runs.metrics_file import MetricsFile
from fastmoco.runs.run_folder import RunFolder, RunIdentity, claim_run_folder
from fastmoco.train.settings import FREE_KEYS, TrainConfig


def state_of_step(step: int) -> Checkpoint:
    """A state that is known from its step."""
    tensors = {"model.weight": torch.full((64, 9), float(step)), "model.count": torch.tensor(step)}
    return Checkpoint(step=step, tensors=tensors, facts={"metrics_count": step})


def save(folder: str, step: int) -> None:
    """Save a checkpoint; older ones are removed."""
    save_checkpoint(Path(folder), state_of_step(step), keep=1)


@cache
def identity(seed: int) -> RunIdentity:
    """Configuration of a run."""
    return RunIdentity(load_config(TrainConfig, [f"seed={seed}"]), FREE_KEYS)


def write_config(folder: str, seed: int) -> None:
    """Claim a run folder, which writes its configuration."""
    with claim_run_folder(RunFolder(Path(folder)), identity(seed), ALONE):
        pass


def write_row(path: str, row: dict[str, Any]) -> None:
    """Append a row of metrics, through to the disk."""
    file = MetricsFile(Path(path), resume_step=row["step"] - 1)
    try:
        file.write(row)
        file.sync()
    finally:
        file.close()
