"""Plots of a sweep as SVG files; equal figures give equal bytes."""

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
    """Draw each plot of a definition; a plot without any figure is left out.

    Returns:
        Title of each plot, by the name of the file written.
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
    """Axis label of a measure."""
    return LABELS[name].title if name in LABELS else name.replace("_", " ").replace(".", " ")


def factor_of(name: str) -> float:
    """Factor from the stored to the shown value of a measure."""
    return LABELS[name].factor if name in LABELS else 1.0


def save_svg(path: Path, figure: Figure) -> None:
    """Write a figure without date and random names; text stays text."""
    FigureCanvasSVG(figure)
    settings: Any = {"svg.hashsalt": "fastmoco", "svg.fonttype": "none"}
    with atomic_path(path) as temporary, matplotlib.rc_context(settings):
        figure.savefig(temporary, format="svg", metadata={"Date": None})


def _draw(axes: Axes, plot: Plot, definition: Definition, groups: Sequence[Group]) -> bool:
    """Draw one plot; return whether there was anything to draw."""
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
    """A line per run over its epochs, failed runs included; one color per group."""
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
    """The groups of each line, by label."""
    found: dict[str, list[Group]] = {}
    for group in groups:
        found.setdefault(group.points[plot.lines] if plot.lines else "", []).append(group)
    return found


def _points_of(group: Group, plot: Plot) -> str:
    """The category of a group on the x axis."""
    if plot.x:
        return group.points[plot.x]
    return ",".join(point for axis, point in group.points.items() if axis != plot.lines)


def _categories(plot: Plot, groups: Sequence[Group]) -> list[str]:
    return list(dict.fromkeys(_points_of(group, plot) for group in groups))


def _lines(axes: Axes, plot: Plot, groups: Sequence[Group]) -> bool:
    """Means with their deviations over an axis or a measure."""
    by_measure = plot.x in LABELS
    numeric = by_measure or plot.x_scale is not XScale.category
    names = [] if by_measure else _categories(plot, groups)
    drawn = False
    for label, members in _by_line(plot, groups).items():
        found = [group for group in members if group.mean(plot.y) is not None]
        if by_measure:
            found = sorted(found, key=lambda group: group.mean(plot.x) or 0.0)
            xs = _shown_means(found, plot.x)
        elif numeric:
            xs = [float(_points_of(group, plot)) for group in found]
        else:
            xs = [float(names.index(_points_of(group, plot))) for group in found]
        drawn = drawn or bool(found)
        means = _shown_means(found, plot.y)
        style = _spread(found, plot.y)
        axes.errorbar(xs, means, marker="o", markersize=4, label=label or None, **style)
        if by_measure:
            offset: Any = {"xytext": (4, 4), "textcoords": "offset points"}
            for group, x, y in zip(found, xs, means, strict=True):
                axes.annotate(group.name, (x, y), fontsize=7, **offset)
    if numeric and plot.x_scale is XScale.log:
        axes.set_xscale("log")
    if not numeric:
        _name_ticks(axes, names)
    axes.set_xlabel(title_of(plot.x) if plot.x else "")
    return drawn


def _shown_means(groups: Sequence[Group], measure: str) -> list[float]:
    return [(group.mean(measure) or 0.0) * factor_of(measure) for group in groups]


def _spread(groups: Sequence[Group], measure: str) -> dict[str, Any]:
    """Options for error bars, if there are several seeds."""
    spread = [(group.deviation(measure) or 0.0) * factor_of(measure) for group in groups]
    return {"yerr": spread, "capsize": 3} if any(spread) else {}


def _bars(axes: Axes, plot: Plot, groups: Sequence[Group]) -> bool:
    """A bar per group; bars of one category are side by side, with one color per line."""
    names, lines = _categories(plot, groups), _by_line(plot, groups)
    width, drawn = 0.8 / len(lines), False
    for number, (label, members) in enumerate(lines.items()):
        found = [group for group in members if group.mean(plot.y) is not None]
        drawn = drawn or bool(found)
        offset = (number + 0.5) * width
        xs = [names.index(_points_of(group, plot)) - 0.4 + offset for group in found]
        means, style = _shown_means(found, plot.y), _spread(found, plot.y)
        axes.bar(xs, means, width, label=label or None, **style)
    _name_ticks(axes, names)
    return drawn


def _name_ticks(axes: Axes, names: Sequence[str]) -> None:
    """Put the names of points below the x axis, slanted if they are long."""
    axes.set_xticks(range(len(names)), names)
    if sum(map(len, names)) > 60:
        axes.tick_params(axis="x", labelrotation=30)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment("right")
