"""``views.png`` and ``curves.png`` of a run folder."""

import math
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fastmoco.evaluate.baselines import Baselines
from fastmoco.files import atomic_path

IMAGE = npt.NDArray[np.uint8]
Panel = Callable[[Axes, Sequence[dict[str, Any]], Baselines | None], None]
"""Draws rows of ``metrics.jsonl``, perhaps with baselines."""
VIEW_COLORS = ("tab:red", "tab:blue", "tab:green", "tab:orange")
VIEW_NAMES = ("query view", "key view")
MAX_COLUMNS = 8


def draw_views(
    path: Path,
    *,
    sources: Sequence[IMAGE],
    boxes: npt.NDArray[np.int32],
    views: Sequence[npt.NDArray[np.float32]],
    captions: Sequence[Sequence[str]],
) -> None:
    """Write the source images with their crop boxes and, under them, their views.

    Args:
        path: PNG file, replaced atomically.
        sources: n images ``(H, W, 3)`` uint8.
        boxes: Top, left, height and width of each view's crop in pixels, ``(n, V, 4)``.
        views: For each view ``(n, h, w, 3)`` in 0..1, before normalization.
        captions: For each view, n texts that name its operations.
    """
    columns = min(len(sources), MAX_COLUMNS)
    bands, rows = math.ceil(len(sources) / columns), 1 + len(views)
    size = (max(1.7 * columns + 0.4, 4.0), 1.9 * rows * bands)
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(rows * bands, columns, squeeze=False)
    for cell in axes.flat:
        cell.set_axis_off()
    for band in range(bands):
        _band_titles(list(axes[rows * band : rows * (band + 1), 0]))
    for image, source in enumerate(sources):
        cells = axes[rows * (image // columns) :, image % columns]
        show(cells[0], source)
        _outline(cells[0], boxes[image], f"{source.shape[1]} x {source.shape[0]}")
        for view in range(len(views)):
            cell, color = cells[1 + view], _color(view)
            show(cell, views[view][image].clip(0, 1))
            cell.set_title(textwrap.fill(captions[view][image], 24), fontsize=7, pad=2)
            for spine in cell.spines.values():
                spine.set(color=color, linewidth=1.5)
    save_figure(figure, path)


def _color(view: int) -> str:
    return VIEW_COLORS[view % len(VIEW_COLORS)]


def _band_titles(cells: Sequence[Axes]) -> None:
    cells[0].set_ylabel("source and crops")
    count = len(cells) - 1
    names = VIEW_NAMES if count == 2 else [f"view {1 + view}" for view in range(count)]
    for view, (cell, name) in enumerate(zip(cells[1:], names, strict=True)):
        cell.set_ylabel(name, color=_color(view))


def _outline(axes: Axes, boxes: npt.NDArray[np.int32], caption: str) -> None:
    """Draw all crop boxes; dashed from the second on, so that the colors of equal boxes show."""
    axes.set_title(caption, fontsize=7, pad=2)
    for view, box in enumerate(boxes):
        top, left, height, width = (int(side) for side in box)
        corner, style = (left - 0.5, top - 0.5), (0, (4, 2 * view)) if view else "-"
        frame = Rectangle(
            corner, width, height, fill=False, edgecolor=_color(view), linewidth=2, linestyle=style
        )
        axes.add_patch(frame)
        frame.set_clip_on(False)  # at the border of the image, the full width of the line shows


def show(axes: Axes, image: npt.NDArray[Any], cmap: str | None = None) -> None:
    """Show an image pixel by pixel; one channel in a color map, from its least to its greatest."""
    axes.set_axis_on()
    axes.imshow(image, interpolation="nearest", cmap=cmap)
    axes.set_xticks([])
    axes.set_yticks([])


class Cell(NamedTuple):
    """One picture of a contact sheet."""

    image: IMAGE
    """``(H, W, 3)``."""
    caption: str
    """Text under the image; shortened if it is too long."""
    color: str | None
    """Color of the frame; None: no frame."""


def draw_contact_sheet(
    path: Path, sheet: Sequence[Sequence[Cell]], *, headers: Sequence[str]
) -> None:
    """Write rows of images with captions.

    Args:
        path: PNG file, replaced atomically.
        sheet: Rows of equal length.
        headers: Titles of the columns.
    """
    columns = len(headers)
    figure = Figure(figsize=(1.5 * columns + 0.2, 1.75 * len(sheet) + 0.3), layout="constrained")
    axes = figure.subplots(len(sheet), columns, squeeze=False)
    for axis, header in zip(axes[0], headers, strict=True):
        axis.set_title(header, fontsize=9, loc="left")
    for line, row in zip(sheet, axes, strict=True):
        for cell, axis in zip(line, row, strict=True):
            show(axis, cell.image)
            axis.set_xlabel(textwrap.shorten(cell.caption, 22, placeholder="..."), fontsize=8)
            for spine in axis.spines.values():
                spine.set_visible(cell.color is not None)
                spine.set(color=cell.color, linewidth=2.5)
    save_figure(figure, path)


def draw_curves(
    path: Path, rows: Sequence[dict[str, Any]], baselines: Baselines | None = None
) -> None:
    """Write the curves of loss, look-up, similarities and kNN monitor over epochs.

    Args:
        path: PNG file, replaced atomically; not written if there are no rows.
        rows: Rows of ``metrics.jsonl``.
        baselines: kNN before the first step, as dotted lines.
    """
    if not rows:
        return
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    for axes, draw in zip(figure.subplots(1, len(PANELS)), PANELS.values(), strict=True):
        draw_panel(axes, draw, rows, baselines)
    save_figure(figure, path)


def draw_panel(
    axes: Axes, draw: Panel, rows: Sequence[dict[str, Any]], baselines: Baselines | None
) -> None:
    """Draw one of `PANELS` with its legend."""
    draw(axes, rows, baselines)
    axes.set_xlabel("epoch")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8)


def _draw_loss(axes: Axes, rows: Sequence[dict[str, Any]], _: Baselines | None) -> None:
    _curves(axes, rows, {"loss": "InfoNCE"}, "loss, nats")
    floor = rows[-1]["loss_floor_ln_k1"]
    _dotted(axes, floor, f"ln(K+1) = {floor:.2f}, chance")


def _draw_look_up(axes: Axes, rows: Sequence[dict[str, Any]], _: Baselines | None) -> None:
    names = {"accuracy_top1": "positive found first", "accuracy_top5": "among the first 5"}
    _curves(axes, rows, names, "(K+1)-way look-up, %")


def _draw_similarity(axes: Axes, rows: Sequence[dict[str, Any]], _: Baselines | None) -> None:
    names = {
        "positive_similarity": "positive",
        "negative_similarity": "negative",
        "feature_deviation": "deviation",
    }
    _curves(axes, rows, names, "cosine similarity")


def _draw_monitor(axes: Axes, rows: Sequence[dict[str, Any]], baselines: Baselines | None) -> None:
    measured = [row for row in rows if row.get("knn_top1") is not None]
    if measured:
        _curves(axes, measured, {"knn_top1": "kNN monitor"}, "kNN top-1, %")
    if baselines:
        axes.set_ylabel("kNN top-1, %")
        _dotted(axes, baselines.knn_top1_pixels, "raw pixels")
        _dotted(axes, baselines.knn_top1_start, "encoder at the start", "tab:brown")
    elif not measured:
        axes.set_title("no kNN monitor (monitor.every_epochs)", fontsize=9)


PANELS: dict[str, Panel] = {
    "Loss": _draw_loss,
    "Look-up of the positive": _draw_look_up,
    "Similarity": _draw_similarity,
    "kNN": _draw_monitor,
}
"""Curves of a run by title."""


def _dotted(axes: Axes, value: float, label: str, color: str = "gray") -> None:
    axes.axhline(value, color=color, linestyle=":", label=label)


def _curves(axes: Axes, rows: Sequence[dict[str, Any]], names: dict[str, str], unit: str) -> None:
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) < 30 else None
    for key, label in names.items():
        values = [
            row[key] if row[key] is not None and math.isfinite(row[key]) else math.nan
            for row in rows
        ]
        axes.plot(epochs, values, label=label, marker=marker, markersize=3)
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file, replaced atomically."""
    FigureCanvasAgg(figure)  # needs no display, and avoids the global state of pyplot
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
