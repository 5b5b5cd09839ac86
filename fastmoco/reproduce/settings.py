"""Settings of `fastmoco sweep` and `fastmoco table`; a string under a field is its help text.

This module does not import torch, so commands that do not need torch start at once.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from fastmoco.ranges import COUNT_OR_ZERO, SEED, Ranges


class Scale(StrEnum):
    """Size of the runs of a sweep."""

    small = "small"
    """For a CPU, in minutes."""
    full = "full"
    """The published size."""


@dataclass(kw_only=True, slots=True)
class SweepConfig:
    """Options of `fastmoco sweep`, in addition to those of `fastmoco train`."""

    RANGES: ClassVar[Ranges] = {"seeds": SEED, "jobs": COUNT_OR_ZERO}

    scale: Scale = Scale.small
    """small (for a CPU, in minutes) or full (as published)."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Seeds; each combination of points is trained once per seed."""
    jobs: int = 0
    """Runs at the same time, which share the cores; 0: one per GPU, or one on a CPU."""
    folder: Path | None = None
    """Folder of the run folders; default: runs/sweeps/NAME-SCALE."""
    run: str = ""
    """Do only this run, in this process; a name that print=true prints."""
    print: bool = False
    """Print one command line per run, such as for a Slurm array, and start nothing."""
    retry: bool = False
    """Repeat failed runs; otherwise they stay failed and only the rest is done."""


@dataclass(kw_only=True, slots=True)
class SweepTableConfig:
    """Options of `fastmoco table`."""

    scale: Scale = Scale.small
    """Scale of the sweep: small or full."""
    folder: Path | None = None
    """Folder of the run folders; default: runs/sweeps/NAME-SCALE."""
    out: Path | None = None
    """Folder for table.md, table.csv and the plots; default: the folder of the run folders."""
    runs: list[str] = field(default_factory=list)
    """table voc: folders to search for results of fastmoco detect; default: runs."""


def sweep_folder(name: str, cfg: SweepConfig | SweepTableConfig) -> Path:
    """Folder of a sweep's run folders."""
    return cfg.folder or Path("runs") / "sweeps" / f"{Path(name).stem}-{cfg.scale}"
