"""What the host says of steps that were not finite, without a model."""

import logging
from types import SimpleNamespace

import pytest

from fastmoco.errors import DivergedError
from fastmoco.optim.step_guard import GuardCounts
from fastmoco.ranks import ALONE
from fastmoco.runs.run_folder import RunFolder
from fastmoco.train import divergence
from fastmoco.train.settings import TrainConfig


def test_a_full_disk_does_not_hide_a_bad_step(tmp_path, monkeypatch, caplog):
    def full(*_):
        raise OSError(28, "No space left on device")

    counts = GuardCounts(steps=3, skipped=1, faults=1, first_fault=2, in_a_row=0)
    trainer = SimpleNamespace(
        cfg=TrainConfig(),
        run=RunFolder(tmp_path),
        ranks=ALONE,
        step=SimpleNamespace(guard=SimpleNamespace(read=lambda: counts, forget=lambda: None)),
        steps_done=5,
        skipped_steps=0,
        learning_rate=0.1,
    )
    monkeypatch.setattr(divergence, "bad_step", lambda *_: {})
    monkeypatch.setattr(divergence, "atomic_write_text", full)
    with pytest.raises(DivergedError, match="step 4: the loss, a gradient"):
        divergence.check_numbers(trainer, logging.getLogger("test"))
    assert "bad-step-4.json cannot be written (No space left on device)" in caplog.text
