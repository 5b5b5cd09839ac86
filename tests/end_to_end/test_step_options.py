"""Options of the step through the command line: LARS, micro-batches, a recorded step; resumed."""

import pytest
import torch

from fastmoco import cli
from fastmoco.runs.checkpoint import load_checkpoint
from fastmoco.runs.metrics_file import read_metrics
from fastmoco.train import acceleration, trainer
from tests.end_to_end.test_training import (  # noqa: F401
    assert_same_run,
    dataset,
    train_arguments,
)
from tests.optional import require
from tests.recording import TapeRecording
from tests.steps import tensors_of

EAGER = ["device=cpu", "train.compile=never"]
LARS = [
    *EAGER,
    "optimizer.name=lars",
    "optimizer.learning_rate=0.3",
    "train.accumulate=2",
    "model.activation_checkpointing=true",
    "precision=fp16",
    "monitor.every_epochs=0",
]


@pytest.mark.full
def test_lars_in_micro_batches_resumes_in_the_middle_of_an_epoch(dataset, tmp_path):  # noqa: F811
    require("timm")
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert cli.main(train_arguments(dataset, whole, *LARS)) == 0
    for steps in (8, 20):
        more = f"train.max_steps={steps}"
        assert cli.main(train_arguments(dataset, resumed, *LARS, more)) == 0
        assert load_checkpoint(resumed).step == steps
    ours, theirs = load_checkpoint(resumed), load_checkpoint(whole)
    assert_same_weights(ours, theirs)
    assert ours.facts["scaler"] == theirs.facts["scaler"]
    assert "batch 8 in 2 micro-batches" in (whole / "train.log").read_text()


def assert_same_weights(ours, theirs):
    differing = [
        name
        for name, value in theirs.tensors.items()
        if not name.startswith("metrics") and not ours.tensors[name].equal(value)
    ]
    assert differing == []


@pytest.fixture
def recorded(monkeypatch):
    """As on a GPU, with a tape in the place of its graph; gives the recordings that were made."""
    made = []

    def graphed(step, recording, *, required):
        del recording
        made.append(TapeRecording(lambda: tensors_of(step).values()))
        return acceleration.GraphedStep(step, made[-1], required=required)

    monkeypatch.setattr(trainer, "resolve_cuda_graph", lambda *_: (True, "CUDA graph of a test"))
    monkeypatch.setattr(trainer, "CudaRecording", lambda _: None)
    monkeypatch.setattr(trainer, "GraphedStep", graphed)
    return made


@pytest.mark.full
def test_a_recorded_run_is_the_plain_one(dataset, tmp_path, recorded, monkeypatch):  # noqa: F811
    plain, whole, resumed = (tmp_path / name for name in ("plain", "whole", "resumed"))
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "resolve_cuda_graph", lambda *_: (False, ""))
        assert cli.main(train_arguments(dataset, plain, *EAGER)) == 0
    assert recorded == []
    assert cli.main(train_arguments(dataset, whole, *EAGER)) == 0
    assert_same_run(whole, plain)
    assert "CUDA graph of a test" in (whole / "train.log").read_text()
    assert cli.main(train_arguments(dataset, resumed, *EAGER, "train.max_steps=9")) == 0
    assert cli.main(train_arguments(dataset, resumed, *EAGER)) == 0
    assert_same_weights(load_checkpoint(resumed), load_checkpoint(plain))
    assert [(r.warm_ups, r.replays) for r in recorded] == [(3, 17), (3, 6), (3, 8)]


def test_a_dry_run_times_replays(dataset, tmp_path, recorded, capsys):  # noqa: F811
    more = [*EAGER, "train.dry_run=true", "monitor.every_epochs=0"]
    assert cli.main(train_arguments(dataset, tmp_path / "run", *more)) == 0
    assert "images/s" in capsys.readouterr().out
    assert [(r.warm_ups, r.replays) for r in recorded] == [(3, 17)]


@pytest.mark.usefixtures("recorded")
def test_the_speed_of_a_row_is_that_of_replays(dataset, tmp_path):  # noqa: F811
    more = [*EAGER, "monitor.every_epochs=0", "train.max_steps=6", "train.log_every_steps=1"]
    assert cli.main(train_arguments(dataset, tmp_path / "run", *more)) == 0
    rows = read_metrics(tmp_path / "run" / "metrics.jsonl")
    assert [row["images_per_second"] is not None for row in rows] == 4 * [False] + 2 * [True]


def test_a_graph_that_cannot_be_is_refused(dataset, tmp_path, capsys):  # noqa: F811
    more = [*EAGER, "train.cuda_graph=always"]
    assert cli.main(train_arguments(dataset, tmp_path / "run", *more)) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert (
        "train.cuda_graph=always is not possible: the device is cpu; set train.cuda_graph=auto"
        in error[0]
    )


def test_a_run_by_kornia_says_so_and_stays_so(dataset, tmp_path):  # noqa: F811
    """The same command without the option is not refused: the run keeps its operations."""
    run = tmp_path / "run"
    few = [*EAGER, "policy=moco_v3", "monitor.every_epochs=0", "train.max_steps=1"]
    for options in (["pipeline.augmentation=kornia"], []):
        assert cli.main(train_arguments(dataset, run, *few, *options)) == 0
        assert "  augmentation: kornia\n" in (run / "config.yaml").read_text()
    log = (run / "train.log").read_text()
    assert log.count("views by Kornia") == 1
    assert f"{run} stopped at step 1 of 60 (train.max_steps); nothing to do" in log


@pytest.mark.gpu
def test_a_captured_run_resumes_on_a_gpu(dataset, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    captured = ["device=cuda", "train.compile=never", "train.cuda_graph=always", "precision=fp16"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert cli.main(train_arguments(dataset, whole, *captured)) == 0
    assert "CUDA graph after 3 steps" in (whole / "train.log").read_text()
    assert cli.main(train_arguments(dataset, resumed, *captured, "train.max_steps=9")) == 0
    assert cli.main(train_arguments(dataset, resumed, *captured)) == 0
    assert_same_weights(load_checkpoint(resumed), load_checkpoint(whole))
