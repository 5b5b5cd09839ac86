"""Which configurations a run folder takes, and who may write there."""

import errno
import fcntl
import os
import re
import socket
import subprocess
import sys

import pytest
from omegaconf import OmegaConf

from fastmoco.configuration import config_to_dict
from fastmoco.errors import UsageError
from fastmoco.ranks import ALONE
from fastmoco.runs.run_folder import RunFolder, RunIdentity, check_run_folder, claim_run_folder
from fastmoco.train.settings import FREE_KEYS, CudaGraph, TrainConfig
from tests.limits import HANG_SECONDS
from tests.permissions import read_only


def check(cfg):
    check_run_folder(RunFolder(cfg.run_dir), RunIdentity(cfg, FREE_KEYS))


def claim(cfg):
    return claim_run_folder(RunFolder(cfg.run_dir), RunIdentity(cfg, FREE_KEYS), ALONE)


def save_something(folder):
    """What `check_run_folder` takes for a checkpoint."""
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-00000001.json").write_text("{}")


@pytest.fixture
def older_run(tmp_path):
    """A run folder of a version that did not know `train.accumulate`."""
    saved = config_to_dict(TrainConfig(run_dir=tmp_path))
    del saved["train"]["accumulate"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(saved)))
    save_something(tmp_path)
    return tmp_path


def test_a_run_older_than_an_option_goes_on_with_its_default(older_run):
    with claim(TrainConfig(run_dir=older_run)):
        assert OmegaConf.load(older_run / "config.yaml").train.accumulate == 1


def test_a_run_older_than_an_option_goes_on_with_nothing_else(older_run):
    cfg = TrainConfig(run_dir=older_run)
    cfg.train.accumulate = 2
    with pytest.raises(UsageError, match=r"train\.accumulate: 1 there, 2 now"):
        check(cfg)


def test_a_run_may_go_on_without_a_graph(older_run):
    cfg = TrainConfig(run_dir=older_run)
    cfg.train.cuda_graph = CudaGraph.never
    with claim(cfg):
        assert OmegaConf.load(older_run / "config.yaml").train.cuda_graph == "never"


def test_a_folder_without_a_checkpoint_binds_nobody(tmp_path):
    with claim(TrainConfig(run_dir=tmp_path, seed=0)):
        (tmp_path / "metrics.jsonl").write_text("")
        (tmp_path / "views.png").write_text("of seed 0")
    with claim(TrainConfig(run_dir=tmp_path, seed=1)):
        assert not (tmp_path / "views.png").exists()
        assert OmegaConf.load(tmp_path / "config.yaml").seed == 1
        save_something(tmp_path)
    with (
        pytest.raises(UsageError, match="seed: 1 there, 0 now"),
        claim(TrainConfig(run_dir=tmp_path)),
    ):
        pass


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "holiday.jpg").write_text("")
    with (
        pytest.raises(UsageError, match="is not a run folder"),
        claim(TrainConfig(run_dir=tmp_path)),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize("text", ["", "5", "- 1", "a: [", "run_dir: x\nmodel: resnet\n", "\xff"])
def test_a_config_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text, encoding="latin-1")
    (tmp_path / "tensorboard").mkdir()
    with (
        pytest.raises(UsageError, match="is not a run folder"),
        claim(TrainConfig(run_dir=tmp_path)),
    ):
        pass
    assert (tmp_path / "config.yaml").read_text(encoding="latin-1") == text
    assert (tmp_path / "tensorboard").exists()


def test_what_a_killed_start_leaves_is_taken_up(tmp_path):
    (tmp_path / ".lock").write_text("")
    (tmp_path / ".config.yaml.partial").write_text("na")
    with claim(TrainConfig(run_dir=tmp_path)):
        assert (tmp_path / "config.yaml").exists()


HOLDER = """
import sys, time
from pathlib import Path
from fastmoco.files import locked
with locked(Path(sys.argv[1])):
    print("locked", flush=True)
    time.sleep(1000)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of a run folder."""
    command = [sys.executable, "-c", HOLDER, str(tmp_path / ".lock")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "locked\n"
        yield process
        process.kill()


def test_a_second_process_is_refused_until_the_first_one_is_killed(tmp_path, holder):
    (tmp_path / ".lock").write_text("process 17 on node3")
    with pytest.raises(UsageError) as caught, claim(TrainConfig(run_dir=tmp_path)):
        pass
    assert str(caught.value) == (
        f"{tmp_path} is in use by another process (process 17 on node3); wait for it, or set "
        "another run_dir or name"
    )
    assert not (tmp_path / "config.yaml").exists()
    holder.kill()
    holder.wait(timeout=HANG_SECONDS)
    with claim(TrainConfig(run_dir=tmp_path, seed=1)):
        assert OmegaConf.load(tmp_path / "config.yaml").seed == 1


def test_the_process_that_holds_a_folder_is_named(tmp_path):
    cfg = TrainConfig(run_dir=tmp_path)
    named = rf"\(process {os.getpid()} on {re.escape(socket.gethostname())}\); wait for it"
    with claim(cfg), pytest.raises(UsageError, match=named), claim(cfg):
        pass


def test_without_locks_two_runs_are_warned(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    cfg = TrainConfig(run_dir=tmp_path)
    words = "has no locks .*make sure that no other process writes"
    with pytest.warns(UserWarning, match=words), claim(cfg), claim(cfg):
        assert (tmp_path / "config.yaml").exists()


def test_only_a_folder_with_a_checkpoint_may_be_read_only(tmp_path):
    cfg = TrainConfig(run_dir=tmp_path)
    with claim(cfg) as denied:
        assert denied is None
    with read_only(tmp_path), pytest.raises(PermissionError), claim(cfg):
        pass
    save_something(tmp_path)
    with read_only(tmp_path), claim(cfg) as denied:
        assert denied.errno == errno.EACCES
