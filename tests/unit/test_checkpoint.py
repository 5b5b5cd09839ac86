import json

import pytest
import torch

from fastmoco.runs.checkpoint import (
    Checkpoint,
    CheckpointError,
    flatten_optimizer,
    load_checkpoint,
    newest_checkpoint,
    restore_module,
    restore_optimizer,
    save_checkpoint,
)


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


@pytest.mark.parametrize("text", ["", "{", "[]", '{"step": 1}'])
def test_a_damaged_record_is_noticed(tmp_path, text):
    path = save_checkpoint(tmp_path, checkpoint(3), keep=1)
    path.write_text(text)
    with pytest.raises(CheckpointError, match="is damaged or is not a checkpoint; remove"):
        newest_checkpoint(tmp_path)


def test_another_format_version_is_refused(tmp_path):
    path = save_checkpoint(tmp_path, checkpoint(3), keep=1)
    record = json.loads(path.read_text())
    path.write_text(json.dumps({**record, "format_version": 9}))
    with pytest.raises(CheckpointError, match="format version 9"):
        newest_checkpoint(tmp_path)


def test_a_failed_write_leaves_the_earlier_checkpoint(tmp_path, monkeypatch):
    save_checkpoint(tmp_path, checkpoint(3), keep=1)

    def full(*_args, **_kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("fastmoco.runs.checkpoint.save_file", full)
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
