"""``configs/sweep/NAME.yaml``: the runs of one published table, and its published figures.

A file is plain YAML with the fields of `Definition`. Every value is read as text, so points and
published figures stay as they are written (``0.9990`` does not become ``0.999``).
"""

import dataclasses
import re
from dataclasses import dataclass, field
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fastmoco.configuration import CONFIG_FOLDER
from fastmoco.errors import UsageError, nearest_name
from fastmoco.files import regular_file
from fastmoco.parsing import read_yaml
from fastmoco.reproduce.settings import Scale


class Measure(StrEnum):
    """Measurement of a run, in addition to its ``metrics.jsonl``."""

    knn = "knn"
    linear = "linear"
    dry_run = "dry_run"
    """Speed and memory, in a separate process. If it is the only measure, nothing is trained."""


class PlotKind(StrEnum):
    """Kind of a plot."""

    line = "line"
    """A line over the points of an axis or over a measure."""
    bar = "bar"
    """A bar for each point."""
    curve = "curve"
    """A line for each run over its epochs, from ``metrics.jsonl``."""


class XScale(StrEnum):
    """Scale of the x axis."""

    category = "category"
    """Equal distances, in the order of the points."""
    linear = "linear"
    log = "log"


@dataclass(kw_only=True, slots=True)
class Plot:
    """One figure."""

    y: str
    """A measure: ``knn_top1``, ``linear_top1``, ``loss``, ``accuracy_top1``, ``peak_gb``, ...;
    kind=curve: a key of ``metrics.jsonl``, or one of the linear classifier's ``curves.jsonl``:
    ``linear.loss_train``, ``linear.top1``, ``linear.top5``."""
    x: str = ""
    """An axis, or a measure such as ``parameters``; empty: the runs. kind=curve: ``epoch``."""
    lines: str = ""
    """Axis with one line (or one color of bars) per point."""
    kind: PlotKind = PlotKind.line
    x_scale: XScale = XScale.category
    title: str = ""


@dataclass(kw_only=True, slots=True)
class Combined:
    """Overrides for some combinations of points."""

    points: dict[str, str]
    """The combinations that have all of these points, ``{axis: point, ...}``."""
    settings: list[str] = field(default_factory=list)
    """Overrides; they take precedence over those of the points."""


@dataclass(kw_only=True, slots=True)
class Published:
    """Published figures and claims."""

    about: str = ""
    """Data, encoder, epochs and unit of the values."""
    values: dict[str, str] = field(default_factory=dict)
    """Figure by run name; a run name is its points, joined by commas."""
    orderings: list[str] = field(default_factory=list)
    """Claims ``A > B`` (or ``A > B > C``) between run names, with a prefix ``MEASURE:`` unless the
    measure is linear or kNN top-1."""


@dataclass(kw_only=True, slots=True)
class Small:
    """Changes for scale=small."""

    experiment: str = ""
    """Another preset than at scale=full."""
    settings: list[str] = field(default_factory=list)
    """More overrides; they take precedence over those for both scales."""
    points: dict[str, list[str]] = field(default_factory=dict)
    """Points to keep, by axis."""
    axes: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """Axes that have other points, by name of the axis."""
    combined: list[Combined] | None = None
    skip: list[dict[str, str]] | None = None
    measure: list[Measure] | None = None
    knn: list[str] | None = None
    linear: list[str] | None = None
    plot: list[Plot] | None = None
    orderings: list[str] | None = None
    """Claims between the points of this scale."""


@dataclass(kw_only=True, slots=True)
class Definition:
    """One table of runs."""

    about: str
    """Title."""
    source: str = ""
    """Source of the published figures."""
    experiment: str = ""
    """Preset of all runs at scale=full."""
    settings: list[str] = field(default_factory=list)
    """Overrides of all runs, at both scales."""
    small: Small = field(default_factory=Small)
    axes: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """Points by axis; a point is a list of overrides. Runs are the cross product."""
    combined: list[Combined] = field(default_factory=list)
    """More overrides for combinations of points."""
    skip: list[dict[str, str]] = field(default_factory=list)
    """Combinations to leave out, as ``{axis: point, ...}``."""
    measure: list[Measure] = field(default_factory=lambda: [Measure.knn])
    """Measurements: knn, linear, dry_run."""
    knn: list[str] = field(default_factory=list)
    """Overrides of ``fastmoco knn``."""
    linear: list[str] = field(default_factory=list)
    """Overrides of ``fastmoco linear``."""
    plot: list[Plot] = field(default_factory=list)
    """One or several plots."""
    published: Published = field(default_factory=Published)
    notes: list[str] = field(default_factory=list)
    """Lines below the table."""

    @property
    def trains(self) -> bool:
        """Whether runs are trained; otherwise only their cost is measured."""
        return list(self.measure) != [Measure.dry_run]

    def at(self, scale: Scale) -> "Definition":
        """The definition at one scale, with `small` applied and emptied."""
        if scale is Scale.full:
            return dataclasses.replace(self, small=Small())
        small, axes = self.small, {**self.axes, **self.small.axes}
        for axis, points in small.points.items():
            axes[axis] = {point: axes[axis][point] for point in points}
        published = self.published
        if small.orderings is not None:
            published = dataclasses.replace(published, orderings=small.orderings)
        own = {
            name: getattr(small, name)
            for name in ("combined", "skip", "measure", "knn", "linear", "plot")
            if getattr(small, name) is not None
        }
        return dataclasses.replace(
            self,
            experiment=small.experiment or self.experiment,
            settings=[*self.settings, *small.settings],
            axes=axes,
            published=published,
            small=Small(),
            **own,
        )


def sweep_names() -> list[str]:
    """Names of the sweeps that come with fastmoco."""
    return sorted(path.stem for path in (CONFIG_FOLDER / "sweep").glob("*.yaml"))


def load_definition(name: str) -> Definition:
    """Read and check a definition.

    Args:
        name: Name of a file in ``configs/sweep``, or path of another ``.yaml`` file.

    Raises:
        UsageError: If the file is missing or does not fit `Definition`; one line.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = CONFIG_FOLDER / "sweep" / f"{name}.yaml"
        if name not in sweep_names():
            raise UsageError(f"unknown sweep {name}{nearest_name(name, sweep_names())}")
    try:
        as_text = partial(yaml.load, Loader=yaml.BaseLoader)
        values = read_yaml(regular_file(path), as_text)
    except UsageError:
        raise
    except (OSError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path} must be a list of `key: value` lines, such as `about: ...`")
    for part in (values, values.get("small")):
        if isinstance(part, dict) and isinstance(part.get("plot"), dict):
            part["plot"] = [part["plot"]]
    definition = _typed(path, values)
    _check(path, definition)
    return definition


def _typed(path: Path, values: dict[Any, Any]) -> Definition:
    try:
        found = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Definition), values))
    except OmegaConfBaseException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        key = next((line for line in lines if line.startswith("full_key: ")), "")
        raise UsageError(f"{path}: {lines[0]}{f' ({key})' if key else ''}") from error
    assert isinstance(found, Definition)
    return found


def _check(path: Path, definition: Definition) -> None:
    """Check what types do not express.

    Raises:
        UsageError: If something does not fit; names the first.
    """
    if not definition.axes or not all(definition.axes.values()):
        raise UsageError(f"{path}: axes must name at least one axis with points")
    small = definition.small
    known = {**definition.axes, **small.axes}
    for axis, points in known.items():
        for point in points:
            if point.strip() != point or not re.fullmatch(r"[^/,>\n]+", point):
                raise UsageError(
                    f"{path}: point {point!r} of axis {axis} must not have / , > or outer spaces; "
                    "folder names and claims contain it"
                )
    for axis, names in small.points.items():
        for point in names:
            if point not in known.get(axis, {}):
                raise UsageError(f"{path}: small.points names {axis}: {point}, which is no point")
    chosen = [("skip", points) for points in [*definition.skip, *(small.skip or [])]]
    combined = [*definition.combined, *(small.combined or [])]
    chosen += [("combined", one.points) for one in combined]
    for key, wanted in chosen:
        for axis, point in wanted.items():
            if point not in {**known.get(axis, {}), **definition.axes.get(axis, {})}:
                raise UsageError(f"{path}: {key} names {axis}: {point}, which is no point")
