"""One call of `fastmoco sweep`, checked."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fastmoco.configuration import check_overrides, load_config, quote_values
from fastmoco.data.settings import DataConfig
from fastmoco.errors import UsageError
from fastmoco.reproduce.definition import Definition, load_definition
from fastmoco.reproduce.plan import PlannedRun, check_names, key_of
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


def read_options(name: str, arguments: Sequence[str]) -> tuple[SweepConfig, Definition, list[str]]:
    """The sweep's options, its definition at their scale, and the options of `fastmoco train`.

    Imports no torch, so that a misspelled option is answered at once.

    Raises:
        UsageError: If one is unknown or wrong.
    """
    own = [item for item in arguments if key_of(item) in OWN_KEYS]
    overrides = [item for item in arguments if key_of(item) not in OWN_KEYS]
    cfg = load_config(SweepConfig, quote_values(SweepConfig, quote_run(own)))
    check_names(overrides, OWN_KEYS)
    check_overrides(TrainConfig, quote_values(TrainConfig, overrides))
    if not cfg.seeds or len(set(cfg.seeds)) < len(cfg.seeds):
        raise UsageError(f"seeds must be distinct, such as seeds=[0,1], got {cfg.seeds}")
    return cfg, load_definition(name).at(cfg.scale), overrides


def quote_run(overrides: Sequence[str]) -> list[str]:
    """Quote the value of ``run``, which contains commas, for Hydra's grammar."""
    quoted = ("run='", 'run="')
    return [
        f'run="{item[4:]}"' if item.startswith("run=") and not item.startswith(quoted) else item
        for item in overrides
    ]
