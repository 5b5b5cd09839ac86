"""How a run is handed to W&B, by a stand-in for its package; tests/end_to_end has the real one."""

import sys
from types import SimpleNamespace

import pytest

from fastmoco.errors import UsageError
from fastmoco.runs.event_file import EventFile
from fastmoco.runs.run_folder import RunFolder
from fastmoco.runs.wandb_run import WandbRun, check_wandb
from fastmoco.train import report
from fastmoco.train.settings import LoopConfig, Tracker


class Package:
    """The part of wandb that is used."""

    class Error(Exception):
        """As wandb.Error."""

    Settings = dict

    def __init__(self):
        self.mode, self.logged_in, self.failing = "online", True, False
        self.begun, self.rows, self.ended = [], [], 0

    def setup(self, settings=None):
        del settings
        return SimpleNamespace(settings=SimpleNamespace(mode=self.mode))

    def login(self, *, prompt):
        assert prompt is False
        return self.logged_in

    def init(self, **given):
        self._fail()
        self.begun.append(given)
        name = given["id"] or f"new{len(self.begun)}"
        return SimpleNamespace(
            id=name, url=None, log=self.log, finish=self.finish, define_metric=lambda *_, **__: None
        )

    def log(self, row):
        self._fail()
        self.rows.append(row)

    def finish(self):
        self.ended += 1
        self._fail()

    def _fail(self):
        if self.failing:
            raise self.Error("no\nnetwork")


@pytest.fixture
def wandb(monkeypatch):
    found = Package()
    monkeypatch.setitem(sys.modules, "wandb", found)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    return found


def test_a_resumed_run_is_the_same_run(tmp_path, wandb):
    folder = tmp_path / "first/wandb"
    for step in (1, 2):
        run = WandbRun(folder, config={"seed": 0})
        run.write(step, {"loss": 0.5})
        run.close()
    assert [given["id"] for given in wandb.begun] == [None, "new1"]
    assert {given["name"] for given in wandb.begun} == {"first"}
    assert wandb.begun[0]["project"] == "fastmoco"
    assert wandb.begun[0]["dir"] == tmp_path / "first"
    assert wandb.rows == [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.5}]
    assert wandb.ended == 2
    WandbRun(tmp_path / "second/wandb", config={})
    assert wandb.begun[-1]["id"] is None


def test_what_fails_before_a_step_ends_the_run_and_later_it_can_be_done_without(tmp_path, wandb):
    run = WandbRun(tmp_path / "wandb", config={})
    wandb.failing = True
    with pytest.raises(OSError, match=r"^no$"):
        run.write(1, {})
    with pytest.raises(OSError, match=r"^no$"):
        run.close()
    with pytest.raises(UsageError, match=r"cannot begin: no; check network .* WANDB_MODE=offline"):
        WandbRun(tmp_path / "wandb", config={})


def test_an_account_is_needed_only_online_and_never_asked_for(wandb):
    check_wandb()
    wandb.logged_in = False
    with pytest.raises(UsageError, match="finds no account; log in by `wandb login`"):
        check_wandb()
    wandb.mode = "offline"
    check_wandb()


def test_the_package_is_loaded_only_if_it_is_chosen(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)  # importing it fails

    def opened(tracker):
        cfg = SimpleNamespace(train=LoopConfig(tracker=tracker))
        trainer = SimpleNamespace(cfg=cfg, run=RunFolder(tmp_path))
        return report.open_board(trainer, None, 0)

    assert isinstance(opened(Tracker.tensorboard), EventFile)
    assert opened(Tracker.none) is None
    for call in (check_wandb, lambda: WandbRun(tmp_path / "wandb", config={})):
        with pytest.raises(UsageError, match=r"needs wandb; install it: pip install 'wandb>="):
            call()
