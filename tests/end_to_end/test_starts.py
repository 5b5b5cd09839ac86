"""Runs that start from others, through the command line."""

import pytest
import torch

from fastmoco import cli
from fastmoco.runs.checkpoint import load_checkpoint
from fastmoco.runs.metrics_file import read_metrics
from tests.runs import OPTIONS, write_colors

FAST = [*OPTIONS, "train.compile=never", "device=cpu", "train.log_every_steps=1"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Images (3 steps an epoch), and a run of two epochs that was stopped after the first."""
    folder = tmp_path_factory.mktemp("starts")
    write_colors(folder / "images", seed=1, per_class=8)
    pretrain(folder, "first", "train.epochs=2", "train.max_steps=3")
    return folder


def pretrain(place, name, *options):
    arguments = ["train", f"data.train={place / 'images'}", f"run_dir={place / name}", *FAST]
    assert cli.main([*arguments, *options]) == 0
    return load_checkpoint(place / name)


def test_a_run_that_goes_on_in_another_folder_equals_an_uninterrupted_one(place, capsys):
    whole = pretrain(place, "whole", "train.epochs=2")
    capsys.readouterr()
    on = pretrain(place, "on", "train.epochs=2", f"train.from_run={place / 'first'}")
    assert "start     from run first at step 3" in capsys.readouterr().err
    assert on.step == whole.step == 6
    assert all(torch.equal(tensor, whole.tensors[name]) for name, tensor in on.tensors.items())
    assert [row["step"] for row in read_metrics(place / "on" / "metrics.jsonl")] == [4, 5, 6]
    again = pretrain(place, "on", "train.epochs=2", f"train.from_run={place / 'first'}")
    assert again.step == 6
    assert "is finished" in capsys.readouterr().err


def test_a_run_from_weights_says_so_in_header_and_export(place, capsys):
    options = ["train.epochs=1", "moco.dim=4", f"weights={place / 'first'}"]
    run = pretrain(place, "from weights", *options)
    header = capsys.readouterr().err
    assert "start     from weights first (SHA-256 " in header
    assert "projection head new (theirs has another form)" in header
    assert (place / "from weights" / "config.yaml").read_text().count(f"weights: {place / 'first'}")
    out = place / "encoder.safetensors"
    assert cli.main(["export", str(place / "from weights"), f"out={out}"]) == 0
    facts = load_checkpoint(out).facts
    assert facts["origins"] == run.facts["origins"]
    assert facts["config"]["weights"] == "first"
    assert str(place) not in str(facts)
