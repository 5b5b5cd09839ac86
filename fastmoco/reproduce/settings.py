"""What `fastmoco sweep` and `fastmoco table` read; strings under fields are help texts.

Importing this imports no torch, so that commands which need none start at once.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class Scale(StrEnum):
    """How large the runs of a sweep are."""

    small = "small"
    """For a CPU, in minutes."""
    full = "full"
    """As published."""


@dataclass(kw_only=True, slots=True)
class SweepConfig:
    """What `fastmoco sweep` reads besides the options of `fastmoco train`."""

    scale: Scale = Scale.small
    """small (for a CPU, in minutes) or full (as published)."""
    seeds: list[int] = field(default_factory=lambda: [0])
    """Of the runs: each point is trained once with each."""
    jobs: int = 0
    """Runs at the same time; 0 = one for each GPU, or one on a CPU. They share the cores."""
    folder: Path | None = None
    """Folder of the run folders; none = runs/sweeps/NAME-SCALE."""
    run: str = ""
    """Do this one run alone, in this process: its name, as print=true gives it."""
    print: bool = False
    """Print a command line for each run, one a line, such as for a Slurm array; start nothing."""
    retry: bool = False
    """Try the runs again that failed; without, they stay failed and the rest is done."""


@dataclass(kw_only=True, slots=True)
class SweepTableConfig:
    """Everything that `fastmoco table` reads."""

    scale: Scale = Scale.small
    """Of the sweep: small or full."""
    folder: Path | None = None
    """Folder of the run folders; none = runs/sweeps/NAME-SCALE."""
    out: Path | None = None
    """Folder for table.md, table.csv and the plots; none = beside the runs."""
    runs: list[str] = field(default_factory=list)
    """table voc: run folders, or others with results of fastmoco detect in them; none = runs."""


def sweep_folder(name: str, cfg: SweepConfig | SweepTableConfig) -> Path:
    """Where a sweep's run folders lie."""
    return cfg.folder or Path("runs") / "sweeps" / f"{Path(name).stem}-{cfg.scale}"
