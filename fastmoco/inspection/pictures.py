"""``views.png`` and ``curves.png`` of a run folder."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from fastmoco.files import atomic_path

IMAGE = npt.NDArray[np.uint8]
VIEW_COLORS = ("tab:red", "tab:blue")


def draw_views(
    path: Path,
    *,
    sources: Sequence[IMAGE],
    boxes: npt.NDArray[np.int32],
    views: Sequence[npt.NDArray[np.float32]],
) -> None:
    """Write the source images with their crop boxes and, under them, both views.

    Args:
        path: PNG file, replaced whole.
        sources: n images ``(H, W, 3)`` uint8.
        boxes: ``(n, 2, 4)``: top, left, height, width of each view's crop.
        views: For each view ``(n, h, w, 3)`` in 0..1, before normalization.
    """
    columns = len(sources)
    figure = Figure(figsize=(1.6 * columns, 5.2), layout="constrained")
    axes = figure.subplots(3, columns, squeeze=False)
    for row, title in enumerate(("source and crops", "query view", "key view")):
        axes[row, 0].set_ylabel(title)
    for column, source in enumerate(sources):
        _show(axes[0, column], source)
        for box, color in zip(boxes[column], VIEW_COLORS, strict=True):
            top, left, height, width = (int(side) for side in box)
            corner = (left - 0.5, top - 0.5)
            axes[0, column].add_patch(
                Rectangle(corner, width, height, fill=False, edgecolor=color, linewidth=1.5)
            )
        for view in range(2):
            _show(axes[1 + view, column], views[view][column].clip(0, 1))
    _save(figure, path)


def _show(axes: Axes, image: npt.NDArray[Any]) -> None:
    axes.imshow(image, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])


def draw_curves(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write loss, look-up accuracy, similarities and the kNN monitor over epochs.

    Args:
        path: PNG file, replaced whole.
        rows: Of ``metrics.jsonl``; none writes nothing.
    """
    if not rows:
        return
    figure = Figure(figsize=(13, 3.4), layout="constrained")
    loss, accuracy, similarity, knn = figure.subplots(1, 4)
    _curves(loss, rows, {"loss": "InfoNCE"}, "loss, nats")
    floor = rows[-1]["loss_floor_ln_k1"]
    loss.axhline(floor, color="gray", linestyle=":", label=f"ln(K+1) = {floor:.2f}, chance")
    _curves(
        accuracy, rows, {"accuracy_top1": "top-1", "accuracy_top5": "top-5"}, "(K+1)-way look-up, %"
    )
    names = {
        "positive_similarity": "positive",
        "negative_similarity": "negative",
        "feature_deviation": "deviation",
    }
    _curves(similarity, rows, names, "cosine similarity")
    measured = [row for row in rows if row.get("knn_top1") is not None]
    if measured:
        _curves(knn, measured, {"knn_top1": "kNN monitor"}, "top-1, %")
    else:
        knn.set_title("no kNN monitor (monitor.every_epochs)", fontsize=9)
    for axes in (loss, accuracy, similarity, knn):
        axes.set_xlabel("epoch")
        if axes.get_legend_handles_labels()[0]:
            axes.legend(fontsize=8)
    _save(figure, path)


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


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)  # no display, and no global state of pyplot
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=100)
