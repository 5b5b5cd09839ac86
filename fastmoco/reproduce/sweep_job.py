"""Everything that one call of `fastmoco sweep` is about."""

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
    """Everything that one call of the command is about."""

    name: str
    definition: Definition
    """At its scale."""
    cfg: SweepConfig
    folder: Path
    data: DataConfig
    runs: list[PlannedRun]
    configs: list[TrainConfig]
    """Of the runs, checked."""
    arguments: list[str]
    """Of the command, after its name, but for `run`, `jobs`, `print` and `retry`."""

    def command(self, run: PlannedRun) -> list[str]:
        """The command line that does one run alone."""
        return ["fastmoco", "sweep", self.name, f"run={run.label}", *self.arguments]

    @property
    def settings(self) -> list[str]:
        """Of them, the options of `fastmoco train` that change what all runs learn."""
        others = (*OWN_KEYS, *DATA_KEYS)
        return sorted(learned([i for i in self.arguments if key_of(i) not in others]))

    def log(self, run: PlannedRun) -> Path:
        """What a run printed."""
        return self.folder / "logs" / f"{run.label}.log"


def learned(overrides: Sequence[str]) -> list[str]:
    """Those that change what a run learns."""
    return [item for item in overrides if key_of(item) not in FREE_KEYS]
