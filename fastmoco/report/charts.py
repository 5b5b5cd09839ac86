"""Curves as SVG that takes the page's text color, so that one drawing suits light and dark."""

import io
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fastmoco.evaluate.baselines import Baselines
from fastmoco.report.recorded import RecordedRun
from fastmoco.visualize.pictures import PANELS, Panel, draw_panel

STYLE: Any = {  # matplotlib names each key in a type
    "svg.fonttype": "none",  # text stays text: small, and it can be searched
    "svg.hashsalt": "fastmoco",
    "font.family": "sans-serif",
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "legend.facecolor": "none",
    "legend.framealpha": 0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
FEW_POINTS = 30
"""Fewer are marked, each by a dot."""
MOST_POINTS = 400
"""Rows in a curve: more are not seen, and would make the file large."""


def curves(run: RecordedRun) -> list[tuple[str, str]]:
    """Title and SVG of each panel of a run; none without rows."""
    if not run.rows:
        return []
    rows = _thinned(run.rows)
    panels: dict[str, Panel] = {**PANELS, "Speed": _draw_speed}
    if not run.baselines and not any(map(_is_measured, rows)):
        del panels["kNN"]
    return [
        (title, _svg(partial(draw_panel, draw=draw, rows=rows, baselines=run.baselines)))
        for title, draw in panels.items()
    ]


def compared(runs: Sequence[RecordedRun]) -> list[tuple[str, str]]:
    """Title and SVG of loss and kNN of several runs."""
    panels = {"Loss, nats": "loss", "kNN top-1, %": "knn_top1", "Look-up, %": "accuracy_top1"}
    panels |= {"Loss against fresh keys, nats": "loss_fresh", "RankMe": "rankme"}
    return [
        (title, _svg(partial(_draw_runs, runs=runs, key=key)))
        for title, key in panels.items()
        if any(row.get(key) is not None for run in runs for row in run.rows)
    ]


def _draw_runs(axes: Axes, runs: Sequence[RecordedRun], key: str) -> None:
    for run in runs:
        points = [(row["epoch"], row[key]) for row in run.rows if row.get(key) is not None]
        points = _thinned(points)
        marker = "o" if len(points) < FEW_POINTS else None  # a line of one point is not seen
        line = zip(*points, strict=True) if points else ([], [])
        axes.plot(*line, label=run.name, marker=marker, markersize=3)
    axes.set_xlabel("epoch")
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _draw_speed(axes: Axes, rows: Sequence[dict[str, Any]], _: Baselines | None) -> None:
    rows = [row for row in rows if row["images_per_second"] is not None]  # null: no step was timed
    epochs = [row["epoch"] for row in rows]
    axes.plot(epochs, [row["images_per_second"] for row in rows], label="images per second")
    axes.set_ylabel("images per second")
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    wait = axes.twinx()
    shares = [100 * row["data_wait_fraction"] for row in rows]
    axes.plot([], [], color="tab:red", label="waiting for data, %")
    wait.plot(epochs, shares, color="tab:red")
    wait.set_ylim(0, 100)
    wait.spines["right"].set_visible(True)


def _thinned(rows: Sequence[Any]) -> list[Any]:
    """At most about `MOST_POINTS` of the rows: measurements and the last one stay."""
    stride = -(-len(rows) // MOST_POINTS)
    last = len(rows) - 1
    return [
        row
        for number, row in enumerate(rows)
        if number % stride == 0 or number == last or (isinstance(row, dict) and _is_measured(row))
    ]


def _is_measured(row: dict[str, Any]) -> bool:
    return row.get("knn_top1") is not None or row.get("rankme") is not None


def _svg(draw: Callable[[Axes], object]) -> str:
    with rc_context(STYLE):
        figure = Figure(figsize=(4.6, 3.1), layout="constrained")
        draw(figure.subplots())
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    drawn = text.getvalue()
    drawn = drawn[drawn.index("<svg") :]
    drawn = re.sub(r"<metadata>.*?</metadata>", "", drawn, flags=re.DOTALL)
    return drawn.replace("#000000", "currentColor").replace(": black", ": currentColor")
