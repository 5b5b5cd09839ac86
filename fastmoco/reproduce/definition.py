"""``configs/sweep/NAME.yaml``: which runs make one published table, and what it says.

A file is plain YAML with the fields of `Definition`. Every value in it is read as text, so points
and published figures stay as they are written (``0.9990`` is not ``0.999``).
"""

import dataclasses
import re
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fastmoco.configuration import CONFIG_FOLDER
from fastmoco.errors import UsageError, nearest_name
from fastmoco.reproduce.settings import Scale


class Measure(StrEnum):
    """What is measured of a run, besides what its ``metrics.jsonl`` holds."""

    knn = "knn"
    linear = "linear"
    dry_run = "dry_run"
    """Speed and memory, in a process of its own. Alone: nothing is trained."""


class PlotKind(StrEnum):
    """How a plot shows the runs."""

    line = "line"
    """A line over the points of an axis, or over a measure."""
    bar = "bar"
    """A bar for each point."""
    curve = "curve"
    """A line for each run over its epochs, from ``metrics.jsonl``."""


class XScale(StrEnum):
    """How the x axis is divided."""

    category = "category"
    """Points side by side, in their order."""
    linear = "linear"
    log = "log"


@dataclass(kw_only=True, slots=True)
class Plot:
    """One figure."""

    y: str
    """A measure: ``knn_top1``, ``linear_top1``, ``loss``, ``accuracy_top1``, ``peak_gb``, ...;
    kind=curve: a key of ``metrics.jsonl``, or, of the linear classifier's ``curves.jsonl``,
    ``linear.loss_train``, ``linear.top1``, ``linear.top5``."""
    x: str = ""
    """An axis, or a measure such as ``parameters``; none = the runs. kind=curve: ``epoch``."""
    lines: str = ""
    """Axis with a line (or a group of bars) for each of its points."""
    kind: PlotKind = PlotKind.line
    x_scale: XScale = XScale.category
    title: str = ""


@dataclass(kw_only=True, slots=True)
class Combined:
    """Overrides of some combinations."""

    points: dict[str, str]
    """Which: those that have all of these, ``{axis: point, ...}``."""
    settings: list[str] = field(default_factory=list)
    """They win over those of the points."""


@dataclass(kw_only=True, slots=True)
class Published:
    """What the source reports."""

    about: str = ""
    """Of the values: data, encoder, epochs, unit."""
    values: dict[str, str] = field(default_factory=dict)
    """By run name: the points, joined by commas."""
    orderings: list[str] = field(default_factory=list)
    """Claims ``A > B`` (or ``A > B > C``) between run names; before it, with a colon, the measure,
    where it is not linear or kNN top-1."""


@dataclass(kw_only=True, slots=True)
class Small:
    """What scale=small changes."""

    experiment: str = ""
    """Another preset."""
    settings: list[str] = field(default_factory=list)
    """More overrides, which win over those of both scales."""
    points: dict[str, list[str]] = field(default_factory=dict)
    """Of an axis, by name: only these points."""
    axes: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """Axes that have other points, by name."""
    combined: list[Combined] | None = None
    skip: list[dict[str, str]] | None = None
    measure: list[Measure] | None = None
    knn: list[str] | None = None
    linear: list[str] | None = None
    plot: list[Plot] | None = None
    orderings: list[str] | None = None
    """Of points that are other ones at this scale."""


@dataclass(kw_only=True, slots=True)
class Definition:
    """One table of runs."""

    about: str
    """Title."""
    source: str = ""
    """Of the published figures."""
    experiment: str = ""
    """Preset of every run at scale=full."""
    settings: list[str] = field(default_factory=list)
    """Overrides of every run, at both scales."""
    small: Small = field(default_factory=Small)
    axes: dict[str, dict[str, list[str]]] = field(default_factory=dict)
    """By axis, its points; a point is a list of overrides. Runs are the cross product."""
    combined: list[Combined] = field(default_factory=list)
    """More overrides, for combinations of points."""
    skip: list[dict[str, str]] = field(default_factory=list)
    """Combinations left out, as ``{axis: point, ...}``."""
    measure: list[Measure] = field(default_factory=lambda: [Measure.knn])
    """knn, linear, dry_run."""
    knn: list[str] = field(default_factory=list)
    """Overrides of ``fastmoco knn``."""
    linear: list[str] = field(default_factory=list)
    """Overrides of ``fastmoco linear``."""
    plot: list[Plot] = field(default_factory=list)
    """One or several."""
    published: Published = field(default_factory=Published)
    notes: list[str] = field(default_factory=list)
    """Lines under the table."""

    @property
    def trains(self) -> bool:
        """Whether runs are trained; else only their cost is measured."""
        return list(self.measure) != [Measure.dry_run]

    def at(self, scale: Scale) -> "Definition":
        """The same for one scale, with nothing left in `small`."""
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
    """All sweeps that come with fastmoco."""
    return sorted(path.stem for path in (CONFIG_FOLDER / "sweep").glob("*.yaml"))


def load_definition(name: str) -> Definition:
    """Read and check a definition.

    Args:
        name: Of a file in ``configs/sweep``, or the path of one's own, ``.yaml``.

    Raises:
        UsageError: If there is none, or it holds what `Definition` does not know; one line.
    """
    path = Path(name)
    if path.suffix not in (".yaml", ".yml"):
        path = CONFIG_FOLDER / "sweep" / f"{name}.yaml"
        if name not in sweep_names():
            raise UsageError(f"unknown sweep {name}{nearest_name(name, sweep_names())}")
    try:
        text = path.read_text(encoding="utf-8")
        values = yaml.load(text, Loader=yaml.BaseLoader)  # all values are text
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: is no list of `key: value` lines, such as `about: ...`")
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
    """What types do not say.

    Raises:
        UsageError: On the first that does not fit.
    """
    if not definition.axes or not all(definition.axes.values()):
        raise UsageError(f"{path}: axes must name at least one axis with points")
    small = definition.small
    known = {**definition.axes, **small.axes}
    for axis, points in known.items():
        for point in points:
            if not point.strip() == point or not re.fullmatch(r"[^/,>\n]+", point):
                raise UsageError(
                    f"{path}: point {point!r} of axis {axis} is part of a folder's name and of "
                    "claims: it must hold no / , > and no space at its ends"
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
