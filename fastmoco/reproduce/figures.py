"""Figures of a sweep's runs, read from their folders."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastmoco.reproduce.definition import Definition
from fastmoco.reproduce.plan import combinations, run_label, run_name
from fastmoco.reproduce.record import RunRecord, Status, read_record
from fastmoco.runs.metrics_file import read_metrics
from fastmoco.train.doubts import COLLAPSED_BELOW

SETTINGS = ("parameters", "global_batch_size", "epochs")
"""Facts of a run that a table has columns for if they differ."""


@dataclass(frozen=True, slots=True)
class Label:
    """Title and number format of a measure in tables and plots."""

    title: str
    digits: int = 2
    factor: float = 1.0


LABELS = {
    "knn_top1": Label("kNN top-1 %"),
    "linear_top1": Label("linear top-1 %"),
    "linear_top5": Label("linear top-5 %"),
    "knn_top5": Label("kNN top-5 %"),
    "loss": Label("loss", 3),
    "chance_loss": Label("chance", 2),
    "accuracy_top1": Label("pretext top-1 %", 1),
    "feature_deviation": Label("feature deviation", 2),
    "images_per_second": Label("images/s", 0),
    "peak_gb": Label("peak memory, GB", 2),
    "mb_per_image": Label("growth, MB an image", 2),
    "seconds": Label("training, s", 0),
    "hours": Label("whole run, h", 3),
    "parameters": Label("parameters, M", 2, 1e-6),
    "epochs": Label("epochs", 0),
    "global_batch_size": Label("batch", 0),
}


@dataclass(slots=True)
class RunFigures:
    """One run."""

    record: RunRecord
    values: dict[str, float]
    """Figure by measure; the names are those of `LABELS`."""
    rows: list[dict[str, Any]]
    """Rows of ``metrics.jsonl``."""
    linear_rows: list[dict[str, Any]] = field(default_factory=list)
    """Rows of the linear classifier's ``curves.jsonl``."""

    def curve(self, y: str) -> tuple[list[float], list[float]]:
        """Epochs and finite values of `y`: a key of ``metrics.jsonl``, or ``linear.KEY``."""
        source, _, key = y.rpartition(".")
        rows = self.linear_rows if source == "linear" else self.rows
        pairs = [(row["epoch"], row[key]) for row in rows if _is_finite(row.get(key))]
        return [epoch for epoch, _ in pairs], [value for _, value in pairs]


@dataclass(slots=True)
class Group:
    """Runs that differ only in their seed."""

    name: str
    points: dict[str, str]
    """Point by axis."""
    runs: list[RunFigures] = field(default_factory=list)
    """The runs that ended: finished, failed or diverged."""
    missing: list[int] = field(default_factory=list)
    """Seeds without a run that ended."""

    @property
    def finished(self) -> list[RunFigures]:
        """The runs that finished."""
        return [run for run in self.runs if run.record.status is Status.finished]

    @property
    def ended_badly(self) -> list[RunFigures]:
        """The runs that failed or diverged."""
        return [run for run in self.runs if run.record.status is not Status.finished]

    def values(self, measure: str) -> list[float]:
        """Values of the finished runs."""
        return [run.values[measure] for run in self.finished if measure in run.values]

    def mean(self, measure: str) -> float | None:
        """Mean over the finished runs; None without any."""
        values = self.values(measure)
        return statistics.fmean(values) if values else None

    def deviation(self, measure: str) -> float | None:
        """Sample deviation over the finished runs; None for fewer than two."""
        values = self.values(measure)
        return statistics.stdev(values) if len(values) > 1 else None


def collect(definition: Definition, folder: Path, seeds: Sequence[int]) -> list[Group]:
    """All groups of a sweep, in the order of its axes.

    Args:
        definition: Definition at its scale.
        folder: Folder of the sweep.
        seeds: Seeds of the sweep.
    """
    groups = []
    for points in combinations(definition):
        group = Group(run_name(points), points)
        for seed in seeds:
            path = folder / run_label(group.name, seed)
            record = read_record(path)
            if record is None or not record.status.is_final:
                group.missing.append(seed)
            else:
                group.runs.append(_figures_of(path, record))
        groups.append(group)
    add_growth(groups)
    return groups


def add_growth(groups: Sequence[Group]) -> None:
    """Add ``mb_per_image`` to runs of an axis ``batch``, in place.

    It is the memory that a run takes beyond that of the smallest batch, for each further image of
    the batch: the program's own memory, most of a small run's peak, is in neither.
    """
    least: dict[tuple[object, ...], dict[str, float]] = {}
    runs = [(group, run) for group in groups if "batch" in group.points for run in group.finished]
    runs = [pair for pair in runs if {"peak_gb", "global_batch_size"} <= pair[1].values.keys()]
    for group, run in sorted(runs, key=lambda pair: pair[1].values["global_batch_size"]):
        others = [point for axis, point in group.points.items() if axis != "batch"]
        first = least.setdefault((run.record.seed, *others), run.values)
        images = run.values["global_batch_size"] - first["global_batch_size"]
        if images:
            memory = run.values["peak_gb"] - first["peak_gb"]
            run.values["mb_per_image"] = 1000 * memory / images


def _figures_of(path: Path, record: RunRecord) -> RunFigures:
    rows = _rows_of(path / "metrics.jsonl")
    values = _training_values(rows) if rows else {}
    for name in SETTINGS:
        if name in record.facts:
            values[name] = record.facts[name]
    for name in ("knn", "linear"):
        if found := record.measures.get(name):
            values |= {f"{name}_{top}": found[top] for top in ("top1", "top5")}
    if found := record.measures.get("dry_run"):
        values["images_per_second"] = found["images_per_second"]
        values["peak_gb"] = found["peak_bytes"] / 1e9
        values["hours"] = found["total_seconds"] / 3600
    linear_rows = []
    if linear := record.measures.get("linear"):
        folder = path / "evaluation" / f"linear-{linear['protocol']}"
        linear_rows = _rows_of(folder / "curves.jsonl")
    return RunFigures(record, values, rows, linear_rows)


def _rows_of(path: Path) -> list[dict[str, Any]]:
    return read_metrics(path) if path.exists() else []


def _is_finite(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _training_values(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Measures of the last row, speed, and the time of all steps."""
    last = rows[-1]
    names = {
        "loss": "loss",
        "loss_floor_ln_k1": "chance_loss",
        "accuracy_top1": "accuracy_top1",
        "feature_deviation": "feature_deviation",
    }
    values = {ours: last[key] for key, ours in names.items() if last.get(key) is not None}
    before, seconds, images = 0, 0.0, []
    for row in rows:
        if row.get("step_seconds"):
            seconds += row["step_seconds"] * (row["step"] - before)
            images.append(row["images_per_second"])
        before = row["step"]
    if images:
        values["seconds"] = seconds
        values["images_per_second"] = statistics.median(images)
    if last.get("device_memory_peak_bytes"):
        values["peak_gb"] = last["device_memory_peak_bytes"] / 1e9
    return {name: value for name, value in values.items() if math.isfinite(value)}


def is_collapsed(run: RunFigures) -> bool:
    """Whether all images have nearly the same feature at the end of training."""
    return run.values.get("feature_deviation", 1.0) < COLLAPSED_BELOW
