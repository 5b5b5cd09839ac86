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
SIDE, CAPTION, LEFT = 1.6, 0.3, 0.3
"""Inches: largest side of an image, height of the text over it, width of the titles of rows."""
WIDTH, HEIGHT = SIDE + 0.1, SIDE + CAPTION + 0.05
"""Inches of a cell: an image with its text and the space to the next."""
HEADER = 0.1
"""Height of a sheet's titles, in cells."""


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
    columns, rows = min(len(sources), MAX_COLUMNS), 1 + len(views)
    bands = math.ceil(len(sources) / columns)
    figure, page = _page(max(columns * WIDTH + 0.4, 4.0), rows * bands * HEIGHT)
    names = VIEW_NAMES if len(views) == 2 else [f"view {1 + view}" for view in range(len(views))]
    for band in range(bands):
        _row_title(page, rows * band, "source and crops", "black")
        for view, name in enumerate(names):
            _row_title(page, rows * band + 1 + view, name, _color(view))
    for image, source in enumerate(sources):
        row, column = rows * (image // columns), image % columns
        place = _place(page, row, column, source)
        _caption(page, row, column, f"{source.shape[1]} x {source.shape[0]}")
        _outline(page, place, boxes[image])
        for view, pictures in enumerate(views):
            place = _place(page, row + 1 + view, column, pictures[image].clip(0, 1))
            _frame(page, place, _color(view), 1.5)
            _caption(page, row + 1 + view, column, textwrap.fill(captions[view][image], 24))
    save_figure(figure, path)


class _Place(NamedTuple):
    """Where an image is on a page, in inches."""

    left: float
    top: float
    scale: float
    """Inches per pixel."""
    height: int
    width: int


def _page(width: float, height: float) -> tuple[Figure, Axes]:
    """An empty figure and axes over all of it, in inches from its upper left corner.

    One axes for all images: an axes for each takes ten times as long.
    """
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
    axes.set_axis_off()
    return figure, axes


def _place(page: Axes, row: float, column: int, image: npt.NDArray[Any]) -> _Place:
    """Draw an image pixel by pixel, as large as its cell allows and in its middle."""
    height, width = image.shape[:2]
    scale = SIDE / max(height, width)
    left = LEFT + column * WIDTH + (SIDE - width * scale) / 2
    top = row * HEIGHT + CAPTION + (SIDE - height * scale) / 2
    extent = (left, left + width * scale, top + height * scale, top)
    page.imshow(image, extent=extent, aspect="auto", interpolation="nearest")
    return _Place(left, top, scale, height, width)


def _caption(page: Axes, row: float, column: int, text: str, *, size: float = 7) -> None:
    """Write over an image."""
    middle, bottom = LEFT + column * WIDTH + SIDE / 2, row * HEIGHT + CAPTION - 0.04
    page.text(middle, bottom, text, fontsize=size, ha="center", va="bottom", linespacing=1)


def _row_title(page: Axes, row: int, text: str, color: str) -> None:
    middle = row * HEIGHT + CAPTION + SIDE / 2
    page.text(LEFT / 2, middle, text, color=color, rotation=90, ha="center", va="center")


def _frame(page: Axes, place: _Place, color: str, line: float) -> None:
    corner, scale = (place.left, place.top), place.scale
    page.add_patch(
        Rectangle(
            corner,
            place.width * scale,
            place.height * scale,
            fill=False,
            edgecolor=color,
            linewidth=line,
        )
    )


def _color(view: int) -> str:
    return VIEW_COLORS[view % len(VIEW_COLORS)]


def _outline(page: Axes, place: _Place, boxes: npt.NDArray[np.int32]) -> None:
    """Draw all crop boxes; dashed from the second on, so that the colors of equal boxes show."""
    for view, box in enumerate(boxes):
        top, left, height, width = (int(side) * place.scale for side in box)
        style = (0, (4, 2 * view)) if view else "-"
        frame = Rectangle(
            (place.left + left, place.top + top),
            width,
            height,
            fill=False,
            edgecolor=_color(view),
            linewidth=2,
            linestyle=style,
        )
        page.add_patch(frame)


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
    """Text over the image; shortened if it is too long."""
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
    figure, page = _page(len(headers) * WIDTH + LEFT, (len(sheet) + HEADER) * HEIGHT)
    for column, header in enumerate(headers):
        page.text(LEFT + column * WIDTH, 0.1, header, fontsize=9, va="top")
    for line, cells in enumerate(sheet):
        for column, cell in enumerate(cells):
            place = _place(page, line + HEADER, column, cell.image)
            text = textwrap.shorten(cell.caption, 22, placeholder="...")
            _caption(page, line + HEADER, column, text, size=8)
            if cell.color is not None:
                _frame(page, place, cell.color, 2.5)
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
    figure = Figure(figsize=(13, 3.4))  # laid out by hand: "constrained" draws all of it twice
    figure.subplots_adjust(left=0.05, right=0.99, bottom=0.14, top=0.93, wspace=0.3)
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
    _curves(axes, rows, {"loss": "all keys"}, "loss, nats")
    names = {"loss_stale": "against the queue", "loss_fresh": "against new keys"}
    _curves(axes, _measured(rows, "loss_fresh"), names, "loss, nats")
    floor = rows[-1]["loss_floor_ln_k1"]
    _dotted(axes, floor, f"chance, {floor:.2f}")


def _draw_look_up(axes: Axes, rows: Sequence[dict[str, Any]], _: Baselines | None) -> None:
    names = {"accuracy_top1": "positive found first", "accuracy_top5": "among the first 5"}
    _curves(axes, rows, names, "(K+1)-way look-up, %")
    names = {"accuracy_top1_fresh": "among new keys"}
    _curves(axes, _measured(rows, "accuracy_top1_fresh"), names, "(K+1)-way look-up, %")


def _draw_similarity(axes: Axes, rows: Sequence[dict[str, Any]], _: Baselines | None) -> None:
    names = {
        "positive_similarity": "positive",
        "negative_similarity": "negative",
        "feature_deviation": "deviation",
    }
    _curves(axes, rows, names, "cosine similarity")


def _draw_monitor(axes: Axes, rows: Sequence[dict[str, Any]], baselines: Baselines | None) -> None:
    measured = _measured(rows, "knn_top1")
    _curves(axes, measured, {"knn_top1": "kNN monitor"}, "kNN top-1, %")
    ranks = _measured(rows, "rankme")
    if ranks:
        axes.plot([], [], color="tab:red", label="RankMe, right")
        twin = axes.twinx()
        _curves(twin, ranks, {"rankme": "RankMe"}, "effective rank", color="tab:red")
        twin.spines["right"].set_visible(True)
    if baselines:
        axes.set_ylabel("kNN top-1, %")
        _dotted(axes, baselines.knn_top1_pixels, "raw pixels")
        _dotted(axes, baselines.knn_top1_start, "encoder at the start", "tab:brown")
    elif not (measured or ranks):
        axes.set_title("no kNN monitor (monitor.every_epochs)", fontsize=9)


PANELS: dict[str, Panel] = {
    "Loss": _draw_loss,
    "Look-up of the positive": _draw_look_up,
    "Similarity": _draw_similarity,
    "kNN": _draw_monitor,
}
"""Curves of a run by title."""


def _measured(rows: Sequence[dict[str, Any]], name: str) -> list[dict[str, Any]]:
    return [row for row in rows if row.get(name) is not None]


def _dotted(axes: Axes, value: float, label: str, color: str = "gray") -> None:
    axes.axhline(value, color=color, linestyle=":", label=label)


def _curves(
    axes: Axes,
    rows: Sequence[dict[str, Any]],
    names: dict[str, str],
    unit: str,
    color: str | None = None,
) -> None:
    if not rows:
        return
    epochs = [row["epoch"] for row in rows]
    marker = "o" if len(rows) < 30 else None
    for key, label in names.items():
        values = [
            row[key] if row[key] is not None and math.isfinite(row[key]) else math.nan
            for row in rows
        ]
        axes.plot(epochs, values, label=label, marker=marker, markersize=3, color=color)
    axes.set_ylabel(unit)
    axes.grid(alpha=0.3)


def save_figure(figure: Figure, path: Path) -> None:
    """Write a figure as a PNG file, replaced atomically."""
    FigureCanvasAgg(figure)  # needs no display, and avoids the global state of pyplot
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
