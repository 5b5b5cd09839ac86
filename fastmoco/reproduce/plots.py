"""A sweep's plots as SVG files that are equal byte for byte where the figures are."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

from fastmoco.files import atomic_path
from fastmoco.reproduce.definition import Definition, Plot, PlotKind, XScale
from fastmoco.reproduce.figures import LABELS, Group


def draw_plots(out: Path, definition: Definition, groups: Sequence[Group]) -> dict[str, str]:
    """Draw each plot of a definition; plots of which no run has a figure are left out.

    Returns:
        Titles by the names of the files written.
    """
    names: dict[str, str] = {}
    for number, plot in enumerate(definition.plot):
        figure = Figure(figsize=(6.4, 4.0), layout="constrained")
        if _draw(figure.subplots(), plot, definition, groups):
            stem = re.sub(r"\W+", "_", f"{plot.y} {plot.kind}" if plot.title == "" else plot.title)
            name = f"{number + 1}_{stem.strip('_').lower()}.svg"
            save_svg(out / name, figure)
            names[name] = plot.title or f"{title_of(plot.y)}, {definition.about}"
    return names


def title_of(name: str) -> str:
    """A measure as it stands on an axis."""
    if name in LABELS:
        return LABELS[name].title
    return name.replace("_", " ").replace(".", " ")


def factor_of(name: str) -> float:
    """From what is kept to what is shown."""
    return LABELS[name].factor if name in LABELS else 1.0


def save_svg(path: Path, figure: Figure) -> None:
    """Write a figure without date and without random names; letters stay text."""
    FigureCanvasSVG(figure)
    settings: Any = {"svg.hashsalt": "fastmoco", "svg.fonttype": "none"}
    with atomic_path(path) as temporary, matplotlib.rc_context(settings):
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def _draw(axes: Axes, plot: Plot, definition: Definition, groups: Sequence[Group]) -> bool:
    """Draw one plot; whether there was anything to draw."""
    draw = {PlotKind.curve: _curves, PlotKind.bar: _bars, PlotKind.line: _lines}[plot.kind]
    if not draw(axes, plot, groups):
        return False
    axes.set_ylabel(title_of(plot.y))
    axes.set_title(plot.title or definition.about, fontsize=10)
    axes.grid(alpha=0.3)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(fontsize=8)
    return True


def _curves(axes: Axes, plot: Plot, groups: Sequence[Group]) -> bool:
    """A line a run over its epochs; runs of one group have one color, failed ones too."""
    drawn = False
    for number, group in enumerate(groups):
        for count, run in enumerate(group.runs):
            epochs, values = run.curve(plot.y)
            if epochs:
                drawn = True
                axes.plot(
                    epochs,
                    values,
                    color=f"C{number % 10}",
                    linestyle=("-", "--", ":")[number // 10 % 3],
                    marker="." if len(epochs) < 30 else None,
                    linewidth=1.2,
                    label=None if count else group.name,
                )
    axes.set_xlabel("epoch of the linear classifier" if plot.y.startswith("linear.") else "epoch")
    return drawn


def _by_line(plot: Plot, groups: Sequence[Group]) -> dict[str, list[Group]]:
    """The groups of each line, by its label."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.points[plot.lines] if plot.lines else "", []).append(group)
    return found


def _points_of(group: Group, plot: Plot) -> str:
    """A group's place on an axis of categories."""
    if plot.x:
        return group.points[plot.x]
    return ",".join(point for axis, point in group.points.items() if axis != plot.lines)


def _categories(plot: Plot, groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(_points_of(group, plot) for group in groups))


def _lines(axes: Axes, plot: Plot, groups: Sequence[Group]) -> bool:
    """Means with their deviations over an axis or a measure."""
    by_measure = plot.x in LABELS
    numeric = by_measure or plot.x_scale is not XScale.category
    places = {} if by_measure else {name: i for i, name in enumerate(_categories(plot, groups))}
    drawn = False
    for label, members in _by_line(plot, groups).items():
        found = [group for group in members if group.mean(plot.y) is not None]
        if by_measure:
            found = sorted(found, key=lambda group: group.mean(plot.x) or 0.0)
            xs = [(group.mean(plot.x) or 0.0) * factor_of(plot.x) for group in found]
        elif numeric:
            xs = [float(_points_of(group, plot)) for group in found]
        else:
            xs = [float(places[_points_of(group, plot)]) for group in found]
        drawn = drawn or bool(found)
        _errorbar(axes, xs, found, plot.y, label)
        if by_measure:
            for x, group in zip(xs, found, strict=True):
                _name_point(axes, x, group, plot)
    if numeric and plot.x_scale is XScale.log:
        axes.set_xscale("log")
    if not numeric:
        axes.set_xticks(list(places.values()), list(places))
        _slant(axes, list(places))
    axes.set_xlabel(title_of(plot.x) if plot.x else "")
    return drawn


def _errorbar(
    axes: Axes, xs: Sequence[float], groups: Sequence[Group], measure: str, label: str
) -> None:
    factor = factor_of(measure)
    means = [(group.mean(measure) or 0.0) * factor for group in groups]
    style = _spread(groups, measure)
    axes.errorbar(xs, means, marker="o", markersize=4, label=label or None, **style)


def _spread(groups: Sequence[Group], measure: str) -> dict[str, Any]:
    """Error bars, where there are several seeds."""
    spread = [(group.deviation(measure) or 0.0) * factor_of(measure) for group in groups]
    return {"yerr": spread, "capsize": 3} if any(spread) else {}


def _name_point(axes: Axes, x: float, group: Group, plot: Plot) -> None:
    y = (group.mean(plot.y) or 0.0) * factor_of(plot.y)
    axes.annotate(group.name, (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)


def _bars(axes: Axes, plot: Plot, groups: Sequence[Group]) -> bool:
    """A bar a group; bars of one category side by side, one color a line."""
    places = _categories(plot, groups)
    lines = _by_line(plot, groups)
    width, drawn, factor = 0.8 / len(lines), False, factor_of(plot.y)
    for number, (label, members) in enumerate(lines.items()):
        found = [group for group in members if group.mean(plot.y) is not None]
        drawn = drawn or bool(found)
        xs = [
            places.index(_points_of(group, plot)) - 0.4 + (number + 0.5) * width for group in found
        ]
        axes.bar(
            xs,
            [(group.mean(plot.y) or 0.0) * factor for group in found],
            width,
            label=label or None,
            **_spread(found, plot.y),
        )
    axes.set_xticks(range(len(places)), places)
    _slant(axes, places)
    return drawn


def _slant(axes: Axes, names: Sequence[str]) -> None:
    """Long names of points stand slanted."""
    if sum(map(len, names)) > 60:
        axes.tick_params(axis="x", labelrotation=30)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
