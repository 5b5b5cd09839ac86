"""Rank correlations of label-free metrics with kNN, from run folders."""

import json
from pathlib import Path

import pytest
from scipy import stats

from benchmarks.label_free import Point, correlations, points_of, rows_of
from fastmoco.runs.run_folder import RunFolder

CONFIG = """
data: {train: sets/photos.beton}
model: {encoder: resnet18, width: 16}
"""


def row(epoch, **measured):
    value = float(epoch)
    names = ("alignment", "uniformity", "feature_deviation", "loss", "accuracy_top1")
    return {"step": 10 * epoch, "epoch": epoch, **dict.fromkeys(names, value), **measured}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """kNN after epochs 2, 4 and 6, with rows in between."""
    found = [row(n / 2) for n in range(1, 13)]
    for number, knn in ((3, 20.0), (7, 30.0), (11, 25.0)):
        found[number] |= {"knn_top1": knn, "rankme": knn / 2}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in found))
    (tmp_path / "config.yaml").write_text(CONFIG)
    return RunFolder(tmp_path)


def test_measurements_of_a_run_are_points(run):
    points = list(points_of(run))
    assert [point.knn for point in points] == [20.0, 30.0, 25.0]
    assert points[0].group == "photos, resnet18 width 16, epoch 2"
    assert points[1].measures["loss"] == 3.75  # of the last epoch: rows 3.5 and 4
    assert "loss_fresh" not in points[0].measures


def test_runs_and_checkpoints_are_compared_apart(run):
    points = list(points_of(run))
    assert correlations(points, "rankme", "run") == {str(run.path): (pytest.approx(1.0), 3)}
    assert correlations(points, "rankme", "group") == {}  # one run in each
    values = [(1.0, 10.0), (2.0, 30.0), (3.0, 20.0), (4.0, 50.0)]
    others = [Point(str(n), "end", knn, {"loss": value}) for n, (value, knn) in enumerate(values)]
    expected = stats.spearmanr(values).statistic
    assert correlations(others, "loss", "group") == {"end": (pytest.approx(expected), 4)}
    rows = {one.what: one for one in rows_of([*points, *others])}
    assert rows["loss, over runs"].note == "end: +0.80 of 4"
    assert rows["rankme, over the checkpoints of a run"].note == "3 points in 1 runs"
    assert "rankme, over runs" not in rows
