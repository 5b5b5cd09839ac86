"""Signals in every phase of a run: it ends as documented, and the same command resumes it."""

import os
from signal import SIGHUP, SIGINT, SIGTERM, SIGUSR1
from types import SimpleNamespace

import pytest

from fastmoco import cli
from fastmoco.evaluate.monitor import KnnMonitor
from fastmoco.runs.checkpoint import load_checkpoint
from fastmoco.train import loop, trainer
from fastmoco.train.review import Review
from fastmoco.train.saving import Saver
from tests.end_to_end.test_several_devices import command_line, finish, start
from tests.end_to_end.test_training import (  # noqa: F401
    KILLER,
    assert_same_run,
    dataset,
    eager_run,
    train_arguments,
)

PHASES = {
    "building": (loop, "begin", 1),
    "first picture": (loop, "write_first_views", 1),
    "opening the loader": (trainer.Trainer, "open_loader", 2),  # 1: of the first picture
    "first batch": (None, "", 1),
    "first step": (trainer.Trainer, "take", 1),
    "waiting for data": (None, "", 9),
    "step": (trainer.Trainer, "take", 13),
    "measuring": (KnnMonitor, "measure", 1),
    "saving": (Saver, "save", 2),
    "end": (Review, "at_end", 1),
}
NOTHING_TO_SAVE = ("building", "first picture", "opening the loader", "first batch", "first step")
# Restarted by torchrun after one rank was killed in its first life.
ONCE = KILLER.replace(
    "place, count = sys.argv[1], int(sys.argv[2])",
    "place, count = sys.argv[1], int(sys.argv[2])\n"
    "if os.environ['RANK'] != '1' or os.environ['TORCHELASTIC_RESTART_COUNT'] != '0':\n"
    "    count = -1",
)
# Sends a signal to one rank of two in a phase: PHASE NUMBER RANK.
SENDING = """
import os, sys
import pytest
from tests.end_to_end import test_signals
phase, number, rank = sys.argv[1:4]
with pytest.MonkeyPatch.context() as patch:
    if os.environ["RANK"] == rank:
        test_signals.send_in(patch, phase, int(number))
    from fastmoco import cli
    sys.exit(cli.main(sys.argv[4:]))
"""


def sending(function, count, number):
    """The function, whose n-th call first sends a signal to this process."""
    calls = []

    def wrapped(*args, **kwargs):
        calls.append(1)
        if len(calls) == count:
            os.kill(os.getpid(), number)
        return function(*args, **kwargs)

    return wrapped


def send_in(patch, phase, number):
    owner, name, count = PHASES[phase]
    if owner is not None:
        patch.setattr(owner, name, sending(getattr(owner, name), count, number))
        return
    opened = trainer.Trainer.open_loader

    def open_loader(self, plan=None):
        loader = opened(self, plan)
        if plan is None:  # else it is that of the first picture
            following = sending(loader.__next__, count, number)
            loader = SimpleNamespace(close=loader.close, decode_device=loader.decode_device)
            kind = type("Sending", (SimpleNamespace,), {"__next__": lambda _: following()})
            return kind(**vars(loader))
        return loader

    patch.setattr(trainer.Trainer, "open_loader", open_loader)


@pytest.fixture
def arguments(dataset, tmp_path):  # noqa: F811
    return train_arguments(dataset, tmp_path / "run", "train.compile=never")


def stopped_at(run):
    return load_checkpoint(run).step if list(run.glob("checkpoints/*.json")) else 0


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("number", [SIGINT, SIGTERM, SIGHUP, SIGUSR1], ids=lambda n: n.name)
@pytest.mark.full
def test_a_signal_in_every_phase(arguments, eager_run, tmp_path, number, phase):  # noqa: F811
    with pytest.MonkeyPatch.context() as patch:
        send_in(patch, phase, number)
        code = cli.main(arguments)
    run = tmp_path / "run"
    if number == SIGUSR1 or phase == "end":
        assert (code, stopped_at(run)) == (0, 20)
    else:
        assert code == 128 + number
        assert (stopped_at(run) == 0) == (phase in NOTHING_TO_SAVE)
        assert cli.main(arguments) == 0
    assert_same_run(run, eager_run)


@pytest.mark.full
@pytest.mark.usefixtures("interruptible")
def test_slurm_warns_stops_and_requeues(arguments, eager_run, tmp_path, monkeypatch):  # noqa: F811
    """SIGUSR1 before the limit saves, SIGTERM at the limit stops, the same command resumes."""
    run, saved = tmp_path / "run", []

    def take(self, batch, rate):
        if self.steps_done == 7:
            os.kill(os.getpid(), SIGUSR1)
        if self.steps_done == 12:  # the writer has had four steps
            saved.append((run / "checkpoints" / "step-00000008.json").exists())
            os.kill(os.getpid(), SIGTERM)
        return step(self, batch, rate)

    step = trainer.Trainer.take
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Trainer, "take", take)
        assert cli.main(arguments) == 143
    assert (saved, stopped_at(run)) == ([True], 13)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert cli.main(arguments) == 0
    assert_same_run(run, eager_run)


@pytest.fixture(scope="module")
def pair_of_ranks(dataset, tmp_path_factory):  # noqa: F811
    run = tmp_path_factory.mktemp("runs") / "pair"
    code, output = finish(
        start(*command_line(train_arguments(dataset, run, "train.compile=never")))
    )
    assert code == 0, output
    return run


@pytest.mark.full
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("number", [SIGTERM, SIGUSR1], ids=lambda n: n.name)
def test_a_signal_to_one_rank_of_two(arguments, pair_of_ranks, tmp_path, number, phase):
    sending = [*command_line([])[:1], "-c", SENDING, phase, str(int(number)), "0", *arguments]
    code, output = finish(start(*sending))
    assert 'Traceback (most recent call last):\n  File "<string>"' not in output
    if number == SIGUSR1 or phase == "end":
        assert code == 0, output
    else:
        assert code == 1, output  # torchrun's
        assert (stopped_at(tmp_path / "run") == 0) == (phase in NOTHING_TO_SAVE)
        code, output = finish(start(*command_line(arguments)))
        assert code == 0, output
    assert_same_run(tmp_path / "run", pair_of_ranks)


@pytest.mark.full
def test_torchrun_restarts_after_a_kill(arguments, pair_of_ranks, tmp_path):
    killed = [*command_line([])[:1], "-c", ONCE, "step", "13", *arguments]
    code, output = finish(start(*killed, restarts=1))
    assert code == 0, output
    assert_same_run(tmp_path / "run", pair_of_ranks)
