"""``runs/NAME/``: what a run writes, and what may go on in it."""

import dataclasses
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fastmoco.configuration import config_to_dict
from fastmoco.files import atomic_write_text
from fastmoco.schema import TrainConfig, UsageError

# Keys that do not change what is learned: a run may go on with other values.
FREE_KEYS = frozenset(
    {
        "run_dir",
        "data.train",  # the dataset's fingerprint decides, wherever the file lies
        "data.test",
        "pipeline.num_threads",
        "pipeline.prefetch_batches",
        "train.max_steps",
        "train.cuda_graph",  # the same kernels either way
        "train.dry_run",
        "train.profile",
        "checkpoint.every_steps",
        "checkpoint.keep",
    }
)


@dataclasses.dataclass(slots=True, frozen=True)
class RunFolder:
    """Paths in a run folder."""

    path: Path

    @property
    def checkpoints(self) -> Path:
        """Folder of checkpoints."""
        return self.path / "checkpoints"

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        """Metrics, one JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """What was printed."""
        return self.path / "train.log"

    @property
    def views(self) -> Path:
        """Picture of the first views."""
        return self.path / "views.png"

    @property
    def curves(self) -> Path:
        """Picture of the metrics."""
        return self.path / "curves.png"

    @property
    def tensorboard(self) -> Path:
        """Folder of TensorBoard's event files."""
        return self.path / "tensorboard"


def run_path(cfg: TrainConfig) -> Path:
    """Where the run lives: ``run_dir``, or ``runs/NAME``."""
    return cfg.run_dir or Path("runs") / cfg.name


def open_run_folder(cfg: TrainConfig, *, write: bool = True) -> RunFolder:
    """Make the run's folder, or take up the one that is there.

    Args:
        cfg: Of the run.
        write: Make it; else only look whether it can be.

    Raises:
        UsageError: If the folder holds a run of another configuration, naming the keys that differ,
            or something else.
    """
    run = RunFolder(run_path(cfg))
    config = config_to_dict(cfg)
    if run.config.exists():
        saved = OmegaConf.to_container(OmegaConf.load(run.config))
        if differing := config_differences(TrainConfig, saved, config, FREE_KEYS):
            raise UsageError(
                f"{run.path} holds a run of another configuration ({'; '.join(differing)}); "
                "give the same options to resume it, or another run_dir or name for a new run"
            )
    elif run.path.exists() and (not run.path.is_dir() or any(run.path.iterdir())):
        raise UsageError(
            f"{run.path} exists and is no run folder; set run_dir to a new or empty folder"
        )
    if write:
        atomic_write_text(run.config, OmegaConf.to_yaml(OmegaConf.create(config)))
    return run


def config_differences(
    schema: type, saved: Any, given: dict[str, Any], free_keys: Collection[str]
) -> list[str]:
    """``KEY: OLD there, NEW now`` for each key that is not free and has another value."""
    # An option that is younger than the run had what is now its default.
    old = {**dict(_flat(config_to_dict(schema()))), **dict(_flat(saved))}
    new = dict(_flat(given))
    return [
        f"{key}: {old.get(key)} there, {new.get(key)} now"
        for key in sorted(old.keys() | new.keys())
        if key not in free_keys and old.get(key) != new.get(key)
    ]


def _flat(values: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
