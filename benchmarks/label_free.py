"""Which metric without labels tells how good an encoder is? Rank correlations with kNN.

``python -m benchmarks.label_free RUN...`` reads finished run folders, from the folder that their
data.train is relative to. Where a run's monitor measured, each measurement is a point; else its end
is one, with the kNN of its ``evaluation/knn.json``, and RankMe is computed here on data.train.
Spearman's rho over runs compares recipes and seeds of one encoder and one set at the same epoch;
over checkpoints it compares the measurements of one run. Both are of the runs' own signs: a lower
alignment is more aligned, so that -1 would be a perfect predictor. Groups below `FEWEST` points are
left out. The result is ``benchmarks/results/label_free.json``.
What it leaves out: speed, and errors of rho: with few points only large values say something.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from rich.console import Console
from scipy import stats

from benchmarks.harness import summarize
from benchmarks.report import Report, Row, show
from fastmoco.data.dataset import open_dataset
from fastmoco.evaluate.features import FeatureRequest, extract_features
from fastmoco.evaluate.frozen_encoder import load_encoder
from fastmoco.evaluate.rankme import effective_rank
from fastmoco.runs.metrics_file import read_metrics
from fastmoco.runs.run_folder import RunFolder

RESULTS = Path(__file__).parent / "results"
MEASURED = ("rankme", "loss_fresh", "accuracy_top1_fresh")
OF_STEPS = ("alignment", "uniformity", "feature_deviation", "loss", "accuracy_top1")
FEWEST = 3
"""Points of a rank correlation."""


@dataclass(frozen=True, slots=True)
class Point:
    """An encoder: where it belongs, its kNN, and what is known of it without labels."""

    run: str
    group: str
    """Set, encoder and epoch: runs that are compared."""
    knn: float
    measures: Mapping[str, float]


def points_of(run: RunFolder) -> Iterator[Point]:
    """The measurements of a run, or its end."""
    rows, config = read_metrics(run.metrics), run.read_config()
    model = config["model"]
    about = f"{Path(config['data']['train']).stem}, {model['encoder']} width {model['width']}"
    measured = [row for row in rows if row.get("knn_top1") is not None]
    ends = [(row, row["knn_top1"]) for row in measured] or list(_end(run, rows, config))
    for row, knn in ends:
        found = {name: row[name] for name in MEASURED if row.get(name) is not None}
        epoch = [other for other in rows if row["epoch"] - 1 < other["epoch"] <= row["epoch"]]
        found |= {name: fmean(other[name] for other in epoch) for name in OF_STEPS}
        yield Point(str(run.path), f"{about}, epoch {row['epoch']:g}", knn, found)


def _end(
    run: RunFolder, rows: Sequence[dict[str, Any]], config: Mapping[str, Any]
) -> Iterator[tuple[dict[str, Any], Any]]:
    """The last row with RankMe, and the kNN that was evaluated, if it was."""
    path = run.path / "evaluation" / "knn.json"
    if rows and path.is_file():
        request = FeatureRequest(features="backbone", batch_size=256)
        with open_dataset(config["data"]["train"]) as dataset:
            vectors = extract_features(load_encoder(run.path), dataset, request).vectors
        yield {**rows[-1], "rankme": effective_rank(vectors)}, json.loads(path.read_text())["top1"]


def correlations(points: Sequence[Point], measure: str, by: str) -> dict[str, tuple[float, int]]:
    """Spearman's rho of a measure with kNN, and the points, for each ``group`` or ``run``."""
    parts: dict[str, list[tuple[float, float]]] = defaultdict(list)
    for point in points:
        if measure in point.measures:
            parts[getattr(point, by)].append((point.measures[measure], point.knn))
    return {
        name: (float(stats.spearmanr(pairs).statistic), len(pairs))
        for name, pairs in parts.items()
        if len(pairs) >= FEWEST
    }


def rows_of(points: Sequence[Point]) -> Iterator[Row]:
    """Two rows for each measure: over runs, and over checkpoints."""
    for measure in (*MEASURED, *OF_STEPS):
        for by, words in (("group", "over runs"), ("run", "over the checkpoints of a run")):
            found = correlations(points, measure, by)
            if not found:
                continue
            names = "; ".join(f"{name}: {rho:+.2f} of {n}" for name, (rho, n) in found.items())
            counts = f"{sum(n for _, n in found.values())} points in {len(found)} runs"
            yield Row(
                what=f"{measure}, {words}",
                unit="rho",
                value=summarize([rho for rho, _ in found.values()]),
                note=names if by == "group" else counts,
            )


def main() -> None:
    """Read the runs of the command line, and write the correlations."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+")
    given = parser.parse_args()
    points = [point for run in given.runs for point in points_of(RunFolder(run))]
    runs = len({point.run for point in points})
    report = Report("label_free", "small", device="cpu", rows=list(rows_of(points)))
    report.subject = (
        f"Spearman's rho with kNN of {len(points)} encoders of {runs} runs; "
        "python -m benchmarks.label_free"
    )
    report.write(RESULTS)
    show([report], Console())


if __name__ == "__main__":
    main()
