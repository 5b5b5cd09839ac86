"""The runs of a sweep: names, folders and overrides, all checked before the first run starts."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from fastmoco.configuration import load_config, preset_groups
from fastmoco.data.settings import DataConfig
from fastmoco.errors import UsageError
from fastmoco.evaluate.settings import KnnConfig, LinearConfig
from fastmoco.option_names import nearest_option
from fastmoco.reproduce.definition import Definition, Measure
from fastmoco.schema_options import describe
from fastmoco.train.settings import TrainConfig


@dataclass(frozen=True, slots=True)
class PlannedRun:
    """One run of a sweep."""

    points: dict[str, str]
    """Point by axis."""
    seed: int
    folder: Path
    overrides: list[str]
    """Overrides of ``fastmoco train``, without seed, data and folder."""

    @property
    def name(self) -> str:
        """Name of all runs that differ only in their seed."""
        return run_name(self.points)

    @property
    def label(self) -> str:
        """Name of this run and of its folder."""
        return run_label(self.name, self.seed)


def run_name(points: dict[str, str]) -> str:
    """The points, joined by commas."""
    return ",".join(points.values())


def run_label(name: str, seed: int) -> str:
    """The name with the seed."""
    return f"{name},seed={seed}"


def key_of(override: str) -> str:
    """The key that an override sets."""
    return override.partition("=")[0].lstrip("+")


def last_of_each(*groups: Sequence[str]) -> list[str]:
    """The overrides of all groups; for a key that several set, the last one."""
    found = {key_of(override): override for group in groups for override in group}
    return list(found.values())


def combinations(definition: Definition) -> list[dict[str, str]]:
    """The points of each run, in the order of the axes, without skipped combinations."""
    products = itertools.product(*definition.axes.values())
    every = [dict(zip(definition.axes, points, strict=True)) for points in products]
    return [one for one in every if not any(_has(one, skipped) for skipped in definition.skip)]


def _has(points: dict[str, str], wanted: dict[str, str]) -> bool:
    return all(points.get(axis) == point for axis, point in wanted.items())


def plan_runs(
    definition: Definition, folder: Path, seeds: Sequence[int], overrides: Sequence[str]
) -> list[PlannedRun]:
    """All runs: every combination with the first seed, then with the next.

    Args:
        definition: Definition at its scale.
        folder: Folder of the sweep.
        seeds: Seeds; each combination has one run per seed.
        overrides: Overrides of ``fastmoco train`` from the command line.

    Raises:
        UsageError: If an override is one that an axis varies or that the sweep sets.
    """
    _check_overrides(definition, overrides)
    preset = [f"experiment={definition.experiment}"] if definition.experiment else []
    return [
        PlannedRun(
            points=points,
            seed=seed,
            folder=folder / run_label(run_name(points), seed),
            overrides=last_of_each(
                preset,
                definition.settings,
                overrides,
                *(definition.axes[axis][point] for axis, point in points.items()),
                *(one.settings for one in definition.combined if _has(points, one.points)),
            ),
        )
        for seed in seeds
        for points in combinations(definition)
    ]


def _check_overrides(definition: Definition, overrides: Sequence[str]) -> None:
    varied = {
        key_of(override): axis
        for axis, points in definition.axes.items()
        for point in points.values()
        for override in point
    }
    for one in definition.combined:
        varied |= dict.fromkeys(map(key_of, one.settings), " and ".join(one.points))
    for key in map(key_of, overrides):
        if key in varied:
            raise UsageError(f"{key} is set by axis {varied[key]} of this sweep; leave it out")
        if key in ("seed", "run_dir", "name"):
            raise UsageError(f"{key} is set by the sweep; give seeds=[0,1] or folder=DIR instead")


def check_names(overrides: Sequence[str], own: Sequence[str]) -> None:
    """Check that each option is one of the sweep or of ``fastmoco train``.

    Raises:
        UsageError: If one is unknown; suggests the nearest known name.
    """
    known = [key for key, _, _ in describe(TrainConfig)]
    known += [*preset_groups(TrainConfig), *own]
    for key in map(key_of, overrides):
        if key not in known:
            raise UsageError(f"unknown option {key}{nearest_option(key, known)}")


def run_config(run: PlannedRun, data: DataConfig) -> TrainConfig:
    """The training configuration of a run.

    Raises:
        UsageError: If `TrainConfig` refuses an override; names the run.
    """
    try:
        cfg = load_config(TrainConfig, run.overrides)
    except UsageError as error:
        raise UsageError(f"run {run.name}: {error}") from error
    return replace(cfg, seed=run.seed, run_dir=run.folder, data=data)


def check_measures(definition: Definition) -> None:
    """Check the overrides of ``fastmoco knn`` and ``fastmoco linear``.

    Raises:
        UsageError: If one is wrong; names the first.
    """
    load_config(KnnConfig, definition.knn)
    load_config(LinearConfig, definition.linear)


def needs_labels(definition: Definition) -> bool:
    """Whether a labeled test set is needed."""
    return any(measure is not Measure.dry_run for measure in definition.measure)
