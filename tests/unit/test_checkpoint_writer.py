"""Checkpoints that a thread writes: the bytes of the twin, one at a time, no error lost."""

import threading

import pytest
import torch

from fastmoco.errors import DivergedError
from fastmoco.runs import checkpoint_writer
from fastmoco.runs.checkpoint import Checkpoint, newest_checkpoint, save_checkpoint
from fastmoco.runs.checkpoint_writer import CheckpointWriter
from tests.limits import HANG_SECONDS


def state(step):
    tensors = {
        "weight": torch.randn(4, 3, 2, 2).to(memory_format=torch.channels_last),
        "part": torch.arange(10)[::2],
        "count": torch.tensor(step),
        "half": torch.ones(5).half(),
        "mask": torch.tensor([True, False]),
    }
    return Checkpoint(step=step, tensors=tensors, facts={"config": {"seed": 1}})


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def gate(monkeypatch):
    """The thread writes when it is set."""
    opened, plain = threading.Event(), checkpoint_writer.write_checkpoint

    def write(*args, **kwargs):
        assert opened.wait(HANG_SECONDS)
        return plain(*args, **kwargs)

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", write)
    yield opened
    opened.set()


def test_the_bytes_are_those_of_the_twin_whatever_becomes_of_the_state(tmp_path, gate):
    for folder in (tmp_path / "ours", tmp_path / "twin"):
        folder.mkdir()
    writer = CheckpointWriter(tmp_path / "ours", keep=2)
    for step in (1, 2, 3):
        gate.clear()
        saved = state(step)
        save_checkpoint(tmp_path / "twin", saved, keep=2)
        writer.begin(saved)
        for tensor in saved.tensors.values():
            tensor.zero_()  # the next step changes it in place
        assert not writer.poll()
        gate.set()
        assert writer.wait()
        assert not writer.wait()  # it is told once
    assert contents(tmp_path / "ours") == contents(tmp_path / "twin")
    assert len(contents(tmp_path / "ours")) == 4


def test_memory_for_the_copy_is_taken_once(tmp_path, monkeypatch):
    places = []

    def write(_folder, _step, tensors, *_args, **_kwargs):
        places.append({name: tensor.data_ptr() for name, tensor in tensors.items()})

    monkeypatch.setattr(checkpoint_writer, "write_checkpoint", write)
    writer = CheckpointWriter(tmp_path, keep=2)
    for step in range(3):
        writer.begin(state(step))
        writer.wait()
    assert places[0] == places[1] == places[2]
    other = state(4)
    other.tensors["count"] = torch.zeros(3)  # an optimizer's state appears, a dtype changes
    writer.begin(other)
    writer.wait()
    assert places[3]["weight"] == places[0]["weight"]
    assert places[3]["count"] != places[0]["count"]


def test_one_is_written_at_a_time_and_the_wait_is_bounded(tmp_path, gate, monkeypatch):
    monkeypatch.setattr(checkpoint_writer, "WAIT_SECONDS", 0.01)
    writer = CheckpointWriter(tmp_path, keep=2)
    writer.begin(state(1))
    with pytest.raises(TimeoutError, match="still being written") as caught:
        writer.wait()
    assert caught.value.filename == str(tmp_path)
    with pytest.raises(TimeoutError):
        writer.begin(state(2))
    gate.set()
    monkeypatch.setattr(checkpoint_writer, "WAIT_SECONDS", HANG_SECONDS)
    assert writer.wait()
    assert newest_checkpoint(tmp_path).step == 1


def test_an_error_of_the_thread_is_raised_once_and_the_next_save_works(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device", "step-00000002.safetensors")

    writer = CheckpointWriter(tmp_path, keep=1)
    writer.begin(state(1))
    assert writer.wait()
    with monkeypatch.context() as patch:
        patch.setattr("fastmoco.runs.checkpoint.write_tensors", full)
        writer.begin(state(2))
        with pytest.raises(OSError, match="No space left"):
            writer.wait()
    assert not writer.wait()
    assert newest_checkpoint(tmp_path).step == 1
    writer.begin(state(3))
    assert writer.wait()
    assert [path.name for path in tmp_path.glob("*.json")] == ["step-00000003.json"]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -1e38])
def test_a_state_that_is_not_finite_is_refused_before_anything_is_written(tmp_path, value):
    writer = CheckpointWriter(tmp_path, keep=1)
    bad = state(1)
    bad.tensors["weight"][3, 2, 1, 1] = value
    with pytest.raises(DivergedError, match="weight has values that are not finite after step 1"):
        writer.begin(bad)
    assert not writer.wait()
    assert contents(tmp_path) == {}


def test_what_a_killed_process_was_writing_goes_with_the_next_save(tmp_path):
    for left in (".step-00000040.safetensors.partial", ".step-00000040.json.partial"):
        (tmp_path / left).write_bytes(b"half")
    save_checkpoint(tmp_path, state(41), keep=1)
    assert sorted(contents(tmp_path)) == ["step-00000041.json", "step-00000041.safetensors"]
