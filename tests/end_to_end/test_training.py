"""Convert, train, kill, resume, evaluate: through the command line."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastmoco
from fastmoco import cli
from fastmoco.configuration import load_config
from fastmoco.errors import UsageError
from fastmoco.runs.checkpoint import load_checkpoint
from fastmoco.runs.metrics_file import read_metrics
from fastmoco.train.fresh_keys import FRESH_METRICS
from fastmoco.train.loop import train
from fastmoco.train.settings import TrainConfig
from fastmoco.train.trainer import Trainer
from tests.limits import HANG_SECONDS
from tests.permissions import read_only
from tests.pictures import write_class_folders

OPTIONS = [
    "global_batch_size=8",
    "pipeline.view_size=16",
    "pipeline.center_crop=1.0",
    "model.encoder=resnet18",
    "model.stem=small_stride2",
    "model.width=4",
    "moco.dim=8",
    "moco.queue_size=36",
    "moco.batch_norm_splits=2",
    "optimizer.name=adamw",
    "optimizer.learning_rate=0.002",
    "train.epochs=10",
    "train.max_steps=20",
    "train.log_every_steps=2",
    "train.report=false",
    "checkpoint.every_steps=5",
    "monitor.every_epochs=1",
    "monitor.k=5",
    "monitor.allow_overlap=true",  # measured on the training images
]
TIMES = {
    "images_per_second",
    "data_wait_fraction",
    "step_seconds",
    "device_memory_peak_bytes",
    "device_memory_reserved_bytes",
}

# Runs the command line, and kills its own process with SIGKILL at a chosen place.
KILLER = """
import os, signal, sys
from fastmoco import cli
from fastmoco.runs import checkpoint
from fastmoco.train import trainer

place, count = sys.argv[1], int(sys.argv[2])

def killing(function):
    calls = 0
    def wrapped(*args, **kwargs):
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*args, **kwargs)
    return wrapped

if place == "step":
    trainer.Trainer.take = killing(trainer.Trainer.take)
else:
    checkpoint.atomic_write_text = killing(checkpoint.atomic_write_text)
sys.exit(cli.main(sys.argv[3:]))
"""


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_class_folders(folder / "images", classes=4, per_class=12)  # 6 steps an epoch
    target = folder / "with space.beton"
    assert cli.main(["convert", str(folder / "images"), str(target)]) == 0
    return target


def train_arguments(dataset: Path, run: Path, *more: str) -> list[str]:
    data = [f"data.train={dataset}", f"data.test={dataset}", f"run_dir={run}"]
    return ["train", *data, *OPTIONS, *more]


def run_killer(place: str, count: int, arguments: list[str]) -> int:
    root = str(Path(fastmoco.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root}
    command = [sys.executable, "-c", KILLER, place, str(count), *arguments]
    return subprocess.run(
        command, env=environment, timeout=HANG_SECONDS, capture_output=True
    ).returncode


def rows_of(run: Path):
    return [
        {k: v for k, v in row.items() if k not in TIMES}
        for row in read_metrics(run / "metrics.jsonl")
    ]


def assert_same_tensors(run: Path, other: Path, steps: int = 20) -> None:
    ours, theirs = load_checkpoint(run), load_checkpoint(other)
    assert ours.step == theirs.step == steps
    assert ours.tensors.keys() == theirs.tensors.keys()
    differing = [n for n, t in theirs.tensors.items() if not torch.equal(ours.tensors[n], t)]
    assert differing == []


def assert_same_run(run: Path, other: Path, steps: int = 20) -> None:
    assert_same_tensors(run, other, steps)
    our_rows, their_rows = rows_of(run), rows_of(other)
    assert our_rows == their_rows
    assert len({row["step"] for row in our_rows}) == len(our_rows) >= steps // 2


@pytest.fixture(scope="module")
def eager_run(dataset, tmp_path_factory):
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert cli.main(train_arguments(dataset, run, "train.compile=never")) == 0
    return run


@pytest.mark.parametrize(
    ("place", "count"),
    [
        ("step", 13),
        pytest.param("step", 1, marks=pytest.mark.full),
        pytest.param("checkpoint", 3, marks=pytest.mark.full),
    ],
    ids=["in step 13", "in the first step", "between a checkpoint's two files"],
)
def test_killed_and_resumed_equals_uninterrupted(dataset, eager_run, tmp_path, place, count):
    run = tmp_path / "killed"
    arguments = train_arguments(dataset, run, "train.compile=never")
    assert run_killer(place, count, arguments) == -signal.SIGKILL
    # What is learned does not depend on when it is saved: here after each step that takes 1 ms.
    often = ["checkpoint.every_steps=0", "checkpoint.every_minutes=1.7e-5", "checkpoint.keep=30"]
    assert cli.main([*arguments, *often]) == 0
    assert_same_run(run, eager_run)
    assert len(list((run / "checkpoints").glob("*.json"))) > 5
    last = Path("checkpoints/step-00000020.safetensors")
    assert (run / last).read_bytes() == (eager_run / last).read_bytes()


@pytest.mark.parametrize(
    "step",
    [*(pytest.param(step, marks=pytest.mark.full) for step in (13, 12)), 20],
    ids=["between two rows", "measuring kNN", "measuring kNN at the end"],
)
def test_an_error_of_the_data_costs_no_step(
    dataset, eager_run, tmp_path, monkeypatch, capsys, step
):
    run, plain = tmp_path / "run", Trainer.open_loader

    def open_failing(trainer, *plan):
        loader = plain(trainer, *plan)
        kind, following = type(loader), type(loader).__next__

        def fail(self):
            if trainer.steps_done == step:
                raise ValueError("image 7 is damaged")
            return following(self)

        patch.setattr(kind, "__next__", fail)
        return loader

    arguments = train_arguments(dataset, run, "train.compile=never")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "open_loader", open_failing)
        assert cli.main(arguments) == 1
    said = capsys.readouterr().err.splitlines()
    assert said[-1] == "fastmoco: image 7 is damaged"
    assert said[-2] == f"saved     after step {step}"
    assert load_checkpoint(run).step == step
    assert cli.main(arguments) == 0
    assert_same_tensors(run, eager_run)
    assert rows_of(run) == rows_of(eager_run)  # what the error prevented is measured now


def test_a_second_run_in_a_run_folder_is_refused(dataset, tmp_path, monkeypatch):
    """The lock of another process, and of one that was killed: tests/unit/test_run_folder.py."""
    run, others = tmp_path / "run", []
    more = ["train.compile=never", "train.max_steps=3", "monitor.every_epochs=0"]
    arguments = train_arguments(dataset, run, *more)
    cfg, plain = load_config(TrainConfig, arguments[1:]), Trainer.take

    def contents():
        return {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}

    def while_another_tries(self, batch, rate):
        if self.steps_done == 1:
            before = contents()
            with pytest.raises(UsageError) as caught:
                train(cfg)
            others.append(str(caught.value))
            assert contents() == before
        plain(self, batch, rate)

    monkeypatch.setattr(Trainer, "take", while_another_tries)
    assert cli.main(arguments) == 0
    (line,) = others
    assert line.startswith(f"{run} is in use by another process (process ")
    assert load_checkpoint(run).step == 3
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == [2, 3]


@pytest.mark.full
def test_killed_and_resumed_equals_uninterrupted_compiled(dataset, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    always = "train.compile=always"
    assert cli.main(train_arguments(dataset, whole, always)) == 0
    assert run_killer("step", 13, train_arguments(dataset, killed, always)) == -signal.SIGKILL
    assert cli.main(train_arguments(dataset, killed, always)) == 0
    assert_same_run(killed, whole)


def test_run_folder_holds_what_it_should(eager_run):
    names = {path.name for path in eager_run.iterdir()}
    assert names >= {
        "config.yaml",
        "metrics.jsonl",
        "train.log",
        "tensorboard",
        "checkpoints",
        "views.png",
        "curves.png",
        "baselines.json",
        "verdict.json",
    }
    rows = read_metrics(eager_run / "metrics.jsonl")
    assert rows[-1]["step"] == 20
    assert [row["step"] for row in rows if row["knn_top1"] is not None] == [6, 12, 18, 20]
    for name in (*FRESH_METRICS, "rankme"):
        assert [row["step"] for row in rows if row[name] is not None] == [6, 12, 18, 20]
    assert {"loss", "learning_rate", "uniformity", "epoch", *TIMES} <= rows[0].keys()
    assert any((eager_run / "tensorboard").iterdir())
    log = (eager_run / "train.log").read_text()
    assert "monitor   kNN top-1 on 48 images of data.test: raw pixels" in log
    assert "step 1/20  loss" in log  # shown at once, without a row
    assert not list(eager_run.rglob("*.partial"))


def test_a_finished_run_says_so(dataset, eager_run, capsys):
    before = sorted((p, p.stat().st_mtime_ns) for p in (eager_run / "checkpoints").iterdir())
    assert cli.main(train_arguments(dataset, eager_run, "train.compile=never")) == 0
    said = capsys.readouterr().err
    assert "stopped at step 20 of 60 (train.max_steps)" in said
    verdict = json.loads((eager_run / "verdict.json").read_text())
    assert (verdict["outcome"], verdict["step"]) == ("too early", 20)
    assert f"verdict too early: {verdict['reasons'][0]}" in " ".join(said.split())  # wrapped
    measured = "k=5 temperature=0.1"  # as the monitor did
    assert verdict["next"].startswith(f"fastmoco knn {eager_run} {measured} 'data.train={dataset}'")
    assert f"next      {verdict['next']}" in said
    assert before == sorted(
        (p, p.stat().st_mtime_ns) for p in (eager_run / "checkpoints").iterdir()
    )


def test_a_finished_run_that_cannot_be_written_says_so(dataset, eager_run, capsys):
    arguments = train_arguments(dataset, eager_run, "train.compile=never")
    with read_only(eager_run):
        assert cli.main(arguments) == 0
        said = capsys.readouterr().err
        assert f"{eager_run} stopped at step 20 of 60 (train.max_steps); nothing to do" in said
        assert "verdict   too early" in said
        assert "cannot be written" not in said
        assert cli.main([*arguments, "train.max_steps=21"]) == 2
        line = capsys.readouterr().err.splitlines()[-1]
    assert line == (
        f"fastmoco: {eager_run} cannot be written (Permission denied), and its run is at step 20 "
        "of 21; make the folder writable, or set another run_dir or name"
    )


def test_more_steps_go_on_from_the_end_also_in_another_place(dataset, eager_run, tmp_path):
    short, run = "train.max_steps=8", tmp_path / "run"
    assert cli.main(train_arguments(dataset, run, "train.compile=never", short)) == 0
    assert load_checkpoint(run).step == 8
    run, moved = run.rename(tmp_path / "moved"), tmp_path / "copy.beton"
    shutil.copy(dataset, moved)
    assert cli.main(train_arguments(moved, run, "train.compile=never")) == 0
    ours, theirs = load_checkpoint(run), load_checkpoint(eager_run)
    assert all(
        torch.equal(ours.tensors[name], t)
        for name, t in theirs.tensors.items()
        if "metrics" not in name
    )


def test_another_configuration_is_refused(dataset, eager_run, capsys):
    assert (
        cli.main(train_arguments(dataset, eager_run, "train.compile=never", "moco.momentum=0.5"))
        == 2
    )
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1
    assert "moco.momentum: 0.999 there, 0.5 now" in error[0]


@pytest.mark.parametrize(
    ("number", "code"),
    [pytest.param(signal.SIGINT, 130, marks=pytest.mark.full), (signal.SIGTERM, 143)],
)
def test_a_stop_signal_saves_and_the_run_goes_on(
    dataset, eager_run, tmp_path, monkeypatch, capfd, number, code
):
    plain, steps = Trainer.take, []

    def signalling(self, batch, rate):
        steps.append(rate)
        if len(steps) == 7:
            os.kill(os.getpid(), number)
        return plain(self, batch, rate)

    run = tmp_path / "run"
    arguments = train_arguments(dataset, run, "train.compile=never")
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "take", signalling)
        assert cli.main(arguments) == code
    said = capfd.readouterr().err
    assert said.index("fastmoco: stopping after this step") < said.index("stopped after step 7")
    assert load_checkpoint(run).step == 7
    assert cli.main(arguments) == 0
    assert_same_run(run, eager_run)


def test_knn_prints_table_and_json(dataset, eager_run, capsys):
    data = [f"data.train={dataset}", f"data.test={dataset}", "k=3", "temperature=0.2"]
    data += ["allow_overlap=true"]
    assert cli.main(["knn", str(eager_run), *data]) == 0
    table = capsys.readouterr().out
    assert re.search(r"trained +\d", table)
    assert re.search(r"untrained +\d", table)
    assert "k=3, T=0.2, backbone features, 48 training and 48 test images, 48 of them also" in table
    data += ["features=embedding", "baselines=false"]
    assert cli.main(["knn", str(eager_run), *data, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["top1"] <= result["top5"] <= 100
    assert (result["k"], result["temperature"], result["features"]) == (3, 0.2, "embedding")
    assert (result["num_train"], result["num_test"]) == (48, 48)


def test_a_sweep_has_a_run_folder_for_each_job(dataset, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [
        option for option in OPTIONS if "max_steps" not in option and "momentum" not in option
    ]
    arguments = [f"data.train={dataset}", f"data.test={dataset}", *options, "train.compile=never"]
    sweep = ["train.max_steps=1", "name=sweep", "moco.momentum=0.5,0.9", "--multirun"]
    assert cli.main(["train", *arguments, *sweep]) == 0
    runs = sorted(path.parent for path in tmp_path.rglob("metrics.jsonl"))
    assert len(runs) == 2
    assert [load_checkpoint(run).facts["config"]["moco"]["momentum"] for run in runs] == [0.5, 0.9]


@pytest.mark.parametrize(
    "option",
    ["seed=0", "++hydra.job.chdir=false", "experiment=imagenette"],  # also the name of a sweep
)
def test_hydra_prints_the_job(dataset, tmp_path, capsys, monkeypatch, option):
    monkeypatch.chdir(tmp_path)
    assert cli.main(["train", f"data.train={dataset}", "moco.dim=77", option, "--cfg", "job"]) == 0
    assert "dim: 77" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_autocast_trains(dataset, tmp_path, precision):
    run = tmp_path / precision
    more = [
        "train.compile=never",
        f"precision={precision}",
        "train.max_steps=4",
        "monitor.every_epochs=0",
    ]
    assert cli.main(train_arguments(dataset, run, *more)) == 0
    saved = load_checkpoint(run)
    weights = [t for name, t in saved.tensors.items() if "query_encoder" in name]
    assert all(torch.isfinite(t).all() for t in weights)
    assert all(t.dtype == torch.float32 for t in weights if t.is_floating_point())


def test_reproducible_algorithms_train_and_are_given_back(dataset, tmp_path):
    weights = []
    for name in ("first", "second"):
        more = ["train.compile=never", "train.reproducible=true", "train.max_steps=3"]
        assert cli.main(train_arguments(dataset, tmp_path / name, *more)) == 0
        weights.append(load_checkpoint(tmp_path / name).tensors)
    assert all(torch.equal(weights[1][key], tensor) for key, tensor in weights[0].items())
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_diverged_run_stops_and_saves_nothing(dataset, tmp_path, capsys):
    run = tmp_path / "run"
    more = ["train.compile=never", "optimizer.name=sgd", "optimizer.learning_rate=1e30"]
    assert cli.main(train_arguments(dataset, run, *more)) == 1
    line = capsys.readouterr().err.splitlines()[-1]
    assert "the loss, a gradient or a running statistic is not finite" in line
    assert "and start again" in line
    assert not (run / "checkpoints").exists()
