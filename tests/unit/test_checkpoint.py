import io
import json
import os
from pathlib import Path

import pytest
import safetensors.torch
import torch

from fastmoco.files import file_sha256
from fastmoco.moco.queue import Queue
from fastmoco.runs import checkpoint as checkpoint_module
from fastmoco.runs.checkpoint import (
    Checkpoint,
    NoCheckpointError,
    at_step,
    checkpoint_before,
    flatten_optimizer,
    load_checkpoint,
    newest_checkpoint,
    restore_module,
    restore_optimizer,
    save_checkpoint,
)
from fastmoco.runs.checkpoint_files import CheckpointError, newest_first, step_of
from fastmoco.runs.record import record_text, sealed
from fastmoco.runs.tensor_file import DTYPES, read_tensors, write_tensors


def checkpoint(step):
    tensors = {"a.weight": torch.arange(6.0).view(2, 3) + step, "b": torch.tensor(step)}
    return Checkpoint(step=step, tensors=tensors, facts={"config": {"seed": 1}})


def test_what_is_saved_comes_back(tmp_path):
    save_checkpoint(tmp_path, checkpoint(7), keep=2)
    loaded = newest_checkpoint(tmp_path)
    assert loaded.step == 7
    assert loaded.facts == {"config": {"seed": 1}}
    for name, tensor in checkpoint(7).tensors.items():
        assert torch.equal(loaded.tensors[name], tensor)


def test_the_newest_stay(tmp_path):
    for step in (5, 10, 115):
        save_checkpoint(tmp_path, checkpoint(step), keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000010.json",
        "step-00000010.safetensors",
        "step-00000115.json",
        "step-00000115.safetensors",
    ]
    assert newest_checkpoint(tmp_path).step == 115


def test_a_run_folder_or_either_file_is_taken(tmp_path):
    path = save_checkpoint(tmp_path / "checkpoints", checkpoint(3), keep=1)
    for given in (tmp_path, tmp_path / "checkpoints", path, path.with_suffix(".safetensors")):
        assert load_checkpoint(given).step == 3


@pytest.mark.parametrize("where", [0, -1, 40])
def test_a_flipped_byte_is_noticed(tmp_path, where):
    path = save_checkpoint(tmp_path, checkpoint(3), keep=1).with_suffix(".safetensors")
    damaged = bytearray(path.read_bytes())
    damaged[where] ^= 1
    path.write_bytes(damaged)
    with pytest.raises(CheckpointError, match=r"step-00000003\.safetensors is missing or damaged"):
        newest_checkpoint(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": 1}', "[" * 10_000])
def test_a_damaged_record_is_noticed(tmp_path, text):
    path = save_checkpoint(tmp_path, checkpoint(3), keep=1)
    path.write_text(text)
    with pytest.raises(CheckpointError, match=r"is damaged or is not a checkpoint \(.+\); remove"):
        newest_checkpoint(tmp_path)


def test_another_format_version_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint(3), keep=1)
    record = json.loads(path.read_text())
    path.write_text(record_text(sealed({**record, "format_version": 9})))
    with pytest.raises(CheckpointError, match="format version 9"):
        newest_checkpoint(tmp_path)


def test_every_flipped_bit_of_the_record_is_noticed(tmp_path):
    facts = {"config": {"seed": 1, "rate": 1e-05, "name": "M\u00fcnchen"}, "metrics_count": 3}
    saved = Checkpoint(step=3, tensors={"b": torch.tensor(1)}, facts=facts)
    path = save_checkpoint(tmp_path, saved, keep=1)
    good = path.read_bytes()
    assert load_checkpoint(path).facts == facts
    unnoticed = []
    for place in range(8 * len(good)):
        damaged = bytearray(good)
        damaged[place // 8] ^= 1 << place % 8
        path.write_bytes(damaged)
        try:
            load_checkpoint(path)
            unnoticed.append(place)
        except CheckpointError:
            pass
    assert unnoticed == []
    for damaged in (
        good[:-1],
        good + b" ",
        good[:40] + good[41:],
        good.replace(b"1e-05", b"1E-05"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [("step", "3"), ("sha256", 5), ("facts", []), ("facts", {"config": 1}), ("step", True)],
)
def test_values_of_a_wrong_kind_are_noticed(tmp_path, key, value):
    path = save_checkpoint(tmp_path, checkpoint(3), keep=1)
    record = json.loads(path.read_text())
    del record["manifest"]
    path.write_text(record_text(sealed({**record, key: value})))
    with pytest.raises(
        CheckpointError, match=r"its \w+ is (missing or )?of a wrong kind|missing or"
    ):
        load_checkpoint(path)


def test_weights_of_another_step_are_noticed(tmp_path):
    paths = [save_checkpoint(tmp_path, checkpoint(step), keep=2) for step in (3, 4)]
    os.replace(paths[0].with_suffix(".safetensors"), paths[1].with_suffix(".safetensors"))
    with pytest.raises(CheckpointError, match="wrong checksum"):
        load_checkpoint(paths[1])
    record = json.loads(paths[1].read_text())
    del record["manifest"]
    record["sha256"] = file_sha256(paths[1].with_suffix(".safetensors"))
    paths[1].write_text(record_text(sealed(record)))
    with pytest.raises(CheckpointError, match="is of step 3"):
        load_checkpoint(paths[1])


def test_a_checkpoint_of_the_first_format_is_read(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint(3), keep=1)
    weights = path.with_suffix(".safetensors")
    safetensors.torch.save_file(checkpoint(3).tensors, weights)
    record = {"format_version": 1, "step": 3, "sha256": file_sha256(weights), "facts": {"a": 1}}
    path.write_text(json.dumps(record))
    loaded = load_checkpoint(tmp_path)
    assert (loaded.step, loaded.facts) == (3, {"a": 1})
    assert torch.equal(loaded.tensors["a.weight"], checkpoint(3).tensors["a.weight"])


def test_every_dtype_and_shape_comes_back_by_the_library(tmp_path):
    tensors = {
        str(dtype): torch.arange(-3, 9).to(dtype).view(3, 4)[:, 1:].contiguous() for dtype in DTYPES
    }
    tensors |= {
        "empty": torch.zeros(0, 3),
        "scalar": torch.tensor(2.5),
        "a b.\u00e9": torch.ones(1),
    }
    path = tmp_path / "x.safetensors"
    with path.open("wb") as file:
        digest = write_tensors(file, tensors, {"step": "7"})
    assert digest == file_sha256(path)
    found, metadata = read_tensors(path)
    assert metadata == {"step": "7"}
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8 : 8 + length])
    starts = {name: 8 + length + header[name]["data_offsets"][0] for name in tensors}
    assert not any(at % tensors[name].element_size() for name, at in starts.items())
    for digits in range(8):
        write_tensors(found := io.BytesIO(), {}, {"step": "7" * digits})
        assert len(found.getvalue()) % 8 == 0


def damage(path):
    weights = path.with_suffix(".safetensors")
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")


def test_the_one_before_a_damaged_checkpoint_is_used_and_said(tmp_path):
    paths = [save_checkpoint(tmp_path, checkpoint(step), keep=3) for step in (3, 4, 5)]
    damage(paths[2])
    paths[1].write_text("{")
    with pytest.warns(UserWarning, match=r"step-00000005.*damaged.*of step 3, is used"):
        assert newest_checkpoint(tmp_path).step == 3
    with pytest.warns(UserWarning, match="of step 3, is used"):
        assert load_checkpoint(tmp_path).step == 3
    with pytest.raises(CheckpointError, match="step-00000005"):
        newest_checkpoint(tmp_path, refuse_damaged=True)
    # The run goes on from step 3; what was damaged is out of its way, and not lost.
    save_checkpoint(tmp_path, checkpoint(4), keep=3)
    assert newest_checkpoint(tmp_path).step == 4
    names = {path.name for path in tmp_path.glob("*.damaged")}
    assert names == {"step-00000005.json.damaged", "step-00000005.safetensors.damaged"}


def test_the_best_by_knn_stays(tmp_path):
    for step, top1 in ((1, 40.0), (2, 60.0), (3, None), (4, 50.0), (5, 60.0), (6, 10.0), (7, None)):
        saved = checkpoint(step)
        saved.facts["knn_top1"] = top1
        save_checkpoint(tmp_path / "checkpoints", saved, keep=1)
    steps = [step_of(path) for path in newest_first(tmp_path / "checkpoints")]
    assert steps == [7, 5]
    assert load_checkpoint(at_step(Path(f"{tmp_path}@best"))).step == 5
    assert load_checkpoint(at_step(Path(f"{tmp_path}@7"))).step == 7
    with pytest.raises(CheckpointError, match="it has 7, 5"):
        at_step(Path(f"{tmp_path}@6"))
    (tmp_path / "checkpoints" / "step-00000005.json").unlink()
    with pytest.raises(CheckpointError, match="has a kNN accuracy"):
        at_step(Path(f"{tmp_path}@best"))


def test_nothing_is_removed_for_a_checkpoint_that_reads_otherwise(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, checkpoint(3), keep=1)
    monkeypatch.setattr("fastmoco.runs.checkpoint_files.file_sha256", lambda _: "another")
    with pytest.warns(UserWarning, match="reads otherwise; older ones stay"):
        save_checkpoint(tmp_path, checkpoint(4), keep=1)
    assert len(newest_first(tmp_path)) == 2


def test_what_cannot_be_removed_is_a_warning(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, checkpoint(3), keep=1)

    def refuse(self, missing_ok=False):
        del missing_ok
        if self.suffix != ".partial":
            raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.warns(UserWarning, match=r"cannot be removed: .*step-00000003\.json"):
        save_checkpoint(tmp_path, checkpoint(4), keep=1)
    assert newest_checkpoint(tmp_path).step == 4


def test_only_the_names_of_checkpoints_count(tmp_path):
    save_checkpoint(tmp_path, checkpoint(3), keep=1)
    for name in ("step-00000009.json.partial", "step-9.json", "step-0000000x.json", "step-.json"):
        (tmp_path / name).write_text("{}")
    assert newest_checkpoint(tmp_path).step == 3


def test_the_checkpoint_before_a_step(tmp_path):
    for step in (3, 99_999_999, 100_000_000):
        save_checkpoint(tmp_path, checkpoint(step), keep=3)
    found = [checkpoint_before(tmp_path, step) for step in (3, 4, 100_000_000, 100_000_001)]
    assert [one and one.step for one in found] == [None, 3, 99_999_999, 100_000_000]


def test_a_checkpoint_that_a_run_removes_meanwhile_is_not_called_damaged(tmp_path, monkeypatch):
    for step in (3, 4):
        save_checkpoint(tmp_path, checkpoint(step), keep=2)
    plain = checkpoint_module.read_tensors

    def removed_meanwhile(weights):
        if "00000004" in weights.name:
            save_checkpoint(tmp_path, checkpoint(5), keep=1)
        return plain(weights)

    monkeypatch.setattr(checkpoint_module, "read_tensors", removed_meanwhile)
    assert newest_checkpoint(tmp_path).step == 5


def test_a_checkpoint_that_was_listed_and_is_gone_is_listed_again(tmp_path, monkeypatch):
    paths = [save_checkpoint(tmp_path, checkpoint(step), keep=2) for step in (3, 4)]
    plain = checkpoint_module.read_record

    def removed_after_its_record(path):
        record = plain(path)
        if step_of(path) == 4:
            save_checkpoint(tmp_path, checkpoint(5), keep=1)
        return record

    monkeypatch.setattr(checkpoint_module, "read_record", removed_after_its_record)
    assert load_checkpoint(tmp_path).step == 5
    with pytest.raises(NoCheckpointError, match="does not exist"):
        load_checkpoint(paths[1])
    save_checkpoint(tmp_path, checkpoint(4), keep=2)
    with pytest.raises(NoCheckpointError, match="was removed while it was read"):
        load_checkpoint(paths[1])


def test_a_failed_write_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, checkpoint(3), keep=1)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastmoco.runs.checkpoint.write_tensors", full)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(tmp_path, checkpoint(4), keep=1)
    assert newest_checkpoint(tmp_path).step == 3
    assert not list(tmp_path.glob("*.partial"))


def test_no_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    with pytest.raises(CheckpointError, match="contains no checkpoint"):
        load_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match="does not exist"):
        load_checkpoint(tmp_path / "step-00000001.json")


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
def test_optimizer_state_comes_back_in_its_memory_format(kind):
    def trained(steps, state=None):
        torch.manual_seed(0)
        layer = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
        options = {"momentum": 0.9} if kind is torch.optim.SGD else {}
        optimizer = kind(layer.parameters(), lr=0.1, fused=True, **options)
        if state:
            layer.load_state_dict(state[0])
            restore_optimizer(optimizer, {k: v.contiguous() for k, v in state[1].items()})
        for _ in range(steps):
            for parameter in layer.parameters():
                parameter.grad = parameter.detach().clone()
            optimizer.step()
        return layer.state_dict(), flatten_optimizer(optimizer)

    whole, resumed = trained(4), trained(2, trained(2))
    for ours, theirs in zip(resumed, whole, strict=True):
        for name, value in theirs.items():
            assert torch.equal(ours[name], value), name
            assert ours[name].stride() == value.stride()


def test_weights_of_another_model_are_refused():
    saved = checkpoint(1)
    module = torch.nn.Linear(2, 2)
    with pytest.raises(CheckpointError, match=r"another model: weight is \(3, 2\) there, \(2, 2\)"):
        restore_module(module, torch.nn.Linear(2, 3).state_dict(), saved)
    with pytest.raises(CheckpointError, match="bias is absent there"):
        restore_module(module, torch.nn.Linear(2, 2, bias=False).state_dict(), saved)
    with pytest.raises(CheckpointError, match=r"bias is .*, absent in the configuration"):
        restore_module(torch.nn.Linear(2, 2, bias=False), module.state_dict(), saved)


def test_a_state_from_before_a_buffer_leaves_it_as_it_is():
    queue, older = Queue(4, 2), Queue(4, 2).state_dict()
    del older["source"]
    for module, state in (
        (queue, older),
        (torch.nn.Sequential(queue), {f"0.{name}": value for name, value in older.items()}),
    ):
        queue.source.fill_(7)
        restore_module(module, state, checkpoint(1))
        assert torch.equal(queue.keys, older["keys"])
        assert (queue.source == 7).all()
    restore_module(queue, {**older, "source": torch.full((4, 2), 5)}, checkpoint(1))
    assert (queue.source == 5).all()
    del older["pointer"]
    with pytest.raises(CheckpointError, match="pointer is absent there"):
        restore_module(queue, older, checkpoint(1))
