"""When a run saves, and what it says: without a trainer's model."""

import logging
from types import SimpleNamespace

import pytest
import torch

from fastmoco.errors import DivergedError, Interrupted
from fastmoco.ranks import ALONE
from fastmoco.runs.checkpoint import Checkpoint, newest_checkpoint
from fastmoco.runs.reporter import SilentReporter
from fastmoco.runs.run_folder import RunFolder
from fastmoco.train import saving
from fastmoco.train.saving import Saver
from fastmoco.train.settings import TrainConfig

FULL = OSError(28, "No space left on device", "a-file")


@pytest.fixture
def trainer(tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "check_numbers", lambda *_: None)

    def checkpoint():
        tensors = {"weight": torch.full((3,), float(found.steps_done))}
        return Checkpoint(step=found.steps_done, tensors=tensors, facts={})

    found = SimpleNamespace(
        cfg=TrainConfig(),
        run=RunFolder(tmp_path),
        ranks=ALONE,
        steps_done=0,
        finished=False,
        in_step=False,
        checkpoint=checkpoint,
    )
    return found


@pytest.fixture
def lines():
    return []


@pytest.fixture
def saver(trainer, lines):
    logger = logging.Logger("test")
    handler = logging.Handler()
    handler.emit = lambda record: lines.append(record.getMessage())
    logger.addHandler(handler)
    return Saver(trainer, SilentReporter(), logger)


def fail_after(saver, trainer, step, error):
    """Raise an error in the loop after a step."""
    with saver.saving_first():
        trainer.steps_done = step
        raise error


def saved_step(trainer):
    found = newest_checkpoint(trainer.run.checkpoints)
    return found.step if found else None


@pytest.fixture
def clock(monkeypatch):
    found = SimpleNamespace(now=100.0)
    monkeypatch.setattr(saving.time, "monotonic", lambda: found.now)
    return found


def test_by_time_a_save_is_due_after_the_minutes_a_measurement_and_at_the_end(
    trainer, clock, lines
):
    del lines
    saver = Saver(trainer, SilentReporter(), logging.Logger("test"))
    plain = {"is_late": False, "measured": False}
    assert not saver.is_late
    assert not saver.is_due(**plain)
    assert saver.is_due(is_late=False, measured=True)
    clock.now += 299
    assert not saver.is_late
    clock.now += 2
    assert saver.is_late
    assert saver.is_due(is_late=True, measured=False)
    trainer.steps_done = 5
    saver.save(is_last=False)
    assert not saver.is_late
    trainer.finished = True
    assert saver.is_due(**plain)
    saver.report(wait=True)


def test_by_steps_neither_time_nor_a_measurement_counts(trainer, saver):
    trainer.cfg.checkpoint.every_steps = 10
    due = []
    for trainer.steps_done in range(1, 31):
        if saver.is_due(is_late=True, measured=True):
            due.append(trainer.steps_done)
    assert due == [10, 20, 30]
    trainer.steps_done, trainer.finished = 31, True
    assert saver.is_due(is_late=False, measured=False)


def test_saved_is_said_when_it_is_on_the_disk(trainer, saver, lines):
    trainer.steps_done = 5
    saver.save(is_last=False)
    saver.report(wait=True)
    assert lines == ["saved     after step 5"]
    assert saved_step(trainer) == 5
    trainer.steps_done = 6
    saver.save(is_last=True)  # waits
    assert lines[1:] == ["saved     after step 6"]
    assert saved_step(trainer) == 6


def test_a_failed_save_is_a_loud_line_and_the_next_one_makes_up_for_it(
    trainer, saver, lines, monkeypatch
):
    def full(*_args, **_kwargs):
        raise FULL

    with monkeypatch.context() as patch:
        patch.setattr("fastmoco.runs.checkpoint.write_tensors", full)
        for trainer.steps_done in (5, 6):
            saver.save(is_last=False)
        saver.report(wait=True)
        assert len(lines) == 2
        assert "THE STATE AFTER STEP 5 WAS NOT SAVED: a-file: No space" in lines[0]
        assert "THE STATE AFTER STEP 6 WAS NOT SAVED" in lines[1]
        trainer.steps_done = 7
        with pytest.raises(OSError, match="No space"):
            saver.save(is_last=True)
    trainer.steps_done = 8
    saver.save(is_last=True)
    assert lines[2:] == ["saved     after step 8, again"]


@pytest.mark.parametrize("kind", [ValueError, RuntimeError, OSError])
def test_what_was_learned_is_saved_before_an_error_outside_a_step(trainer, saver, lines, kind):
    with pytest.raises(kind, match="of a loader"):
        fail_after(saver, trainer, 7, kind("of a loader"))
    assert lines == ["saved     after step 7"]
    assert saved_step(trainer) == 7


@pytest.mark.parametrize(
    ("error", "in_step"),
    [
        (ValueError("in a step"), True),
        (DivergedError("weights"), False),
        (Interrupted(15, "stopped"), False),
    ],
)
def test_a_state_that_is_none_to_resume_from_is_not_saved(trainer, saver, lines, error, in_step):
    trainer.steps_done = 6
    saver.save(is_last=False)
    trainer.in_step = in_step
    with pytest.raises(type(error)):
        fail_after(saver, trainer, 7, error)
    assert lines == ["saved     after step 6"]  # what was being written is waited for
    assert saved_step(trainer) == 6


def test_numbers_that_are_not_finite_are_not_saved_for_another_error(
    trainer, saver, lines, monkeypatch
):
    def refuse(*_):
        raise DivergedError("step 7: a gradient is not finite")

    monkeypatch.setattr(saving, "check_numbers", refuse)
    with pytest.raises(KeyError):
        fail_after(saver, trainer, 7, KeyError("another"))
    assert lines == [
        "warning   the state after step 7 was not saved: step 7: a gradient is not finite",
    ]
    assert saved_step(trainer) is None


def test_an_error_without_a_step_since_the_last_save_writes_nothing(trainer, saver, lines):
    trainer.steps_done = 7
    saver.save(is_last=True)
    with pytest.raises(KeyError):
        fail_after(saver, trainer, 7, KeyError("next"))
    assert lines == ["saved     after step 7"]


def test_other_ranks_write_nothing(trainer, saver, lines):
    trainer.ranks = SimpleNamespace(is_first=False)
    trainer.steps_done = 7
    saver.save(is_last=True)
    assert saved_step(trainer) is None
    assert lines == []
