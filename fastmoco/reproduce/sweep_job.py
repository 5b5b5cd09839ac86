"""One call of `fastmoco sweep`, checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastmoco.data.settings import DataConfig
from fastmoco.reproduce.definition import Definition
from fastmoco.reproduce.plan import PlannedRun, key_of
from fastmoco.reproduce.settings import SweepConfig
from fastmoco.train.settings import FREE_KEYS, TrainConfig

OWN_KEYS = tuple(SweepConfig.__slots__)
DATA_KEYS = ("data.train", "data.test")


@dataclass(slots=True)
class SweepJob:
    """One call of `fastmoco sweep`: its definition, options, data and runs."""

    name: str
    definition: Definition
    """Definition at its scale."""
    cfg: SweepConfig
    folder: Path
    data: DataConfig
    runs: list[PlannedRun]
    configs: list[TrainConfig]
    """Checked configurations of the runs."""
    arguments: list[str]
    """Arguments of the command after NAME, without `run`, `jobs`, `print` and `retry`."""

    def command(self, run: PlannedRun) -> list[str]:
        """The command line that does only one run."""
        return ["fastmoco", "sweep", self.name, f"run={run.label}", *self.arguments]

    @property
    def settings(self) -> list[str]:
        """Options of `fastmoco train` among the arguments that change what all runs learn."""
        others = (*OWN_KEYS, *DATA_KEYS)
        return sorted(learned([i for i in self.arguments if key_of(i) not in others]))

    def log(self, run: PlannedRun) -> Path:
        """File with the output of a run."""
        return self.folder / "logs" / f"{run.label}.log"


def learned(overrides: Sequence[str]) -> list[str]:
    """The overrides that change what a run learns."""
    return [item for item in overrides if key_of(item) not in FREE_KEYS]
