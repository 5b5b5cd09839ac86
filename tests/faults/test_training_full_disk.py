"""A disk that is full while a run trains: the run goes on, and says what is missing.

The kernel refuses to extend any file (RLIMIT_FSIZE of 0), as it does on a full disk.
"""

import resource

import pytest

from fastmoco import cli
from fastmoco.runs.checkpoint import load_checkpoint
from fastmoco.runs.checkpoint_writer import CheckpointWriter
from fastmoco.runs.metrics_file import read_metrics
from fastmoco.train.trainer import Trainer
from tests.end_to_end.test_training import assert_same_run, dataset, train_arguments  # noqa: F401

MORE = ["train.compile=never", "monitor.every_epochs=0"]


@pytest.fixture
def full_disk(monkeypatch):
    """Sets the steps before whose end the disk is full; a save ends before the next step begins."""
    steps, hard = set(), resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    plain, begin = Trainer.take, CheckpointWriter.begin

    def begin_and_join(self, checkpoint):
        begin(self, checkpoint)
        self._thread.join()

    monkeypatch.setattr(CheckpointWriter, "begin", begin_and_join)

    def take(self, batch, rate):
        result = plain(self, batch, rate)
        limit = 0 if self.steps_done in steps else hard
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        return result

    monkeypatch.setattr(Trainer, "take", take)
    yield steps
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.fixture(scope="module")
def whole_run(dataset, tmp_path_factory):  # noqa: F811
    run = tmp_path_factory.mktemp("runs") / "whole"
    assert cli.main(train_arguments(dataset, run, *MORE)) == 0
    return run


def test_a_run_goes_on_while_the_disk_is_full(dataset, whole_run, tmp_path, capsys, full_disk):  # noqa: F811
    run = tmp_path / "run"
    full_disk |= set(range(8, 13))  # the save after step 10, and rows
    assert cli.main(train_arguments(dataset, run, *MORE)) == 0
    said = capsys.readouterr().err
    assert said.count("THE STATE AFTER STEP 10 WAS NOT SAVED") == 1
    assert "step-00000010.safetensors" in said
    assert said.count("saved     after step 15, again") == 1
    for name in ("metrics.jsonl", "tensorboard", "train.log"):
        assert said.count(f"{name} cannot be written") == 1, name
    assert_same_run(run, whole_run)  # all rows, too
    assert len(list((run / "tensorboard").iterdir())) == 2
    assert not list(run.rglob("*.partial"))


def test_a_last_state_that_cannot_be_saved_is_an_error(
    dataset,  # noqa: F811
    whole_run,
    tmp_path,
    capsys,
    full_disk,
):
    run = tmp_path / "run"
    full_disk |= {19, 20}
    assert cli.main(train_arguments(dataset, run, *MORE)) == 1
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert line.startswith("fastmoco: ")
    assert str(run) in line
    assert load_checkpoint(run).step == 15
    full_disk.clear()
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert cli.main(train_arguments(dataset, run, *MORE)) == 0
    assert_same_run(run, whole_run)
    assert [row["step"] for row in read_metrics(run / "metrics.jsonl")] == list(range(2, 21, 2))
