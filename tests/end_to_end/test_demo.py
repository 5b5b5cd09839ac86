"""The demo, shortened; what it learns in full stands in the README."""

import json

import pytest

from fastmoco import cli
from fastmoco.data import textures


def test_demo_makes_everything(tmp_path, monkeypatch, capsys):
    """On a tenth of its training images."""
    monkeypatch.setitem(textures.SPLIT_SIZES, "train", 600)
    monkeypatch.chdir(tmp_path)
    options = ["train.max_steps=30", "monitor.every_epochs=0", "train.compile=never"]
    assert cli.main(["demo", *options]) == 0
    table = capsys.readouterr().out
    for row in ("trained encoder", "the same encoder, untrained", "raw pixels"):
        assert row in table
    result = json.loads((tmp_path / "runs/demo/result.json").read_text())
    for figure in ("knn_top1", "knn_top1_untrained", "knn_top1_pixels"):
        assert 8 < result[figure] < 60  # chance is 10
    assert result["knn_top1"] != result["knn_top1_untrained"]
    assert result["seconds"] > 0
    assert (tmp_path / "runs/demo/views.png").stat().st_size > 10_000
    shown = f", pixels {result['knn_top1_pixels']:.2f}%"
    assert shown in (tmp_path / "runs/demo/report.html").read_text()
    files = (tmp_path / "runs/demo-data/train.beton", tmp_path / "runs/demo-data/test.beton")
    written = [path.stat().st_mtime_ns for path in files]
    assert cli.main(["demo", *options]) == 0  # finished: evaluates again, converts nothing
    assert written == [path.stat().st_mtime_ns for path in files]
    again = json.loads((tmp_path / "runs/demo/result.json").read_text())
    assert again["knn_top1"] == result["knn_top1"]


@pytest.mark.full
def test_a_shorter_demo_learns_the_classes(tmp_path, monkeypatch):
    """15 points above both baselines, as the whole demo must be; 40 to 55 at a rate of 0.12."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["demo", "train.epochs=12", "monitor.every_epochs=0"]) == 0
    result = json.loads((tmp_path / "runs/demo/result.json").read_text())
    best_baseline = max(result["knn_top1_untrained"], result["knn_top1_pixels"])
    assert result["knn_top1"] >= best_baseline + 15


def test_the_demo_names_what_it_sets_itself(capsys):
    assert cli.main(["demo", "data.train=x.beton"]) == 2
    assert "the demo sets data.train itself" in capsys.readouterr().err


def test_the_demo_is_of_one_device(capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    assert cli.main(["demo"]) == 2
    assert "start it without torchrun" in capsys.readouterr().err
