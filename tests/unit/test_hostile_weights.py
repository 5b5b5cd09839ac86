"""Safetensors files that are damaged or hostile are refused in one line that names them."""

import tracemalloc

import pytest
import torch

from fastmoco.configuration import config_to_dict
from fastmoco.errors import UsageError
from fastmoco.evaluate.frozen_encoder import load_encoder
from fastmoco.moco.build import build_query_encoder
from fastmoco.runs.checkpoint import CheckpointError
from fastmoco.runs.encoder_file import EncoderFileError, read_encoder_file, write_encoder_file
from fastmoco.runs.weights_file import read_weights
from fastmoco.train.settings import TrainConfig
from tests.faults import zoo_safetensors

HOSTILE = list(zoo_safetensors.cases())
CHANGED = list(zoo_safetensors.encoder_changes())


@pytest.mark.parametrize(("data", "word"), [c[1:] for c in HOSTILE], ids=[c[0] for c in HOSTILE])
def test_hostile_files_are_refused_in_one_line(tmp_path, data, word):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(data)
    tracemalloc.start()
    try:
        if word:
            with pytest.raises(UsageError, match=word) as caught:
                read_weights(path)
            assert str(path) in str(caught.value)
            with pytest.raises(EncoderFileError, match=word):
                read_encoder_file(path)
        else:
            assert [t.shape for t in read_weights(path).tensors.values()] == [(2, 3)]
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 20 << 20


@pytest.fixture(scope="module")
def encoder():
    """Tensors and facts of a small encoder."""
    cfg = TrainConfig()
    cfg.model.encoder, cfg.model.width = "resnet18", 2
    state = build_query_encoder(cfg.model, cfg.moco).state_dict()
    config = config_to_dict(cfg)
    return state, {"config": config, "channel_mean": [0.5] * 3, "channel_std": [0.2] * 3}


@pytest.mark.parametrize(("change", "word"), [c[1:] for c in CHANGED], ids=[c[0] for c in CHANGED])
def test_a_hostile_encoder_file_is_refused_before_it_is_built(tmp_path, encoder, change, word):
    path, (state, facts) = tmp_path / "encoder.safetensors", encoder
    facts = facts | change
    if isinstance(change.get("config"), dict):
        facts["config"] = {
            key: value | change["config"].get(key, {}) if isinstance(value, dict) else value
            for key, value in encoder[1]["config"].items()
        }
    write_encoder_file(path, state, step=1, facts=facts)
    with pytest.raises((CheckpointError, UsageError), match=word) as caught:
        load_encoder(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_encoder_without_a_change_is_loaded(tmp_path, encoder):
    path, (state, facts) = tmp_path / "encoder.safetensors", encoder
    write_encoder_file(path, state, step=1, facts=facts)
    assert torch.equal(load_encoder(path).backbone.conv1.weight, state["backbone.conv1.weight"])
    assert len(HOSTILE) >= 20
