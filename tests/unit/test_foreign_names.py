"""Encoders are found under the prefixes and in the containers of other projects' files."""

import pytest
import torch
from torch import nn

from fastmoco.errors import UsageError
from fastmoco.moco.build import build_query_encoder
from fastmoco.moco.settings import MocoConfig, ModelConfig
from fastmoco.torch_files.unpickle import find_state
from fastmoco.weights.layouts import take_apart
from fastmoco.weights.settings import WeightsLayout

BACKBONE = build_query_encoder(ModelConfig(encoder="resnet18", width=2), MocoConfig()).backbone
STATE = BACKBONE.state_dict()
OTHER = {name: tensor + 1 for name, tensor in STATE.items()}


def under(prefix, state=STATE):
    return {f"{prefix}{name}": tensor for name, tensor in state.items()}


def is_taken(parts, state=STATE):
    return parts.backbone.keys() == state.keys() and all(
        torch.equal(parts.backbone[name], tensor) for name, tensor in state.items()
    )


@pytest.mark.parametrize(
    ("prefix", "others", "found"),
    [
        ("", ["fc.weight"], ""),
        ("_orig_mod.", ["_orig_mod.fc.weight"], ""),
        ("module._orig_mod.", [], ""),
        ("module.", ["n_averaged"], ""),
        ("backbone._orig_mod.", ["projector.0.weight"], ""),
        ("model._orig_mod.", ["criterion.queue"], "model."),
        ("model.model.", [], "model.model."),
        ("encoder_q.module.", ["queue"], ""),
        ("module.encoder_q.", ["queue_ptr"], ""),
        ("model.encoder_q.", ["model.queue"], "model."),
        ("backbone.", ["neck.fc0.weight"], ""),
        ("_feature_blocks.", [], "_feature_blocks."),
        ("net.0.module.trunk.", ["net.1.weight", "loss.center"], "net.0.trunk."),
    ],
)
def test_any_prefix_is_found(prefix, others, found):
    parts = take_apart(under(prefix) | {name: torch.zeros(1) for name in others})
    assert is_taken(parts)
    assert parts.prefix == found
    assert sum(parts.left_out.values()) + len(parts.head) == len(others)


def test_encoders_that_differ_are_chosen_by_prefix():
    state = under("net.q.") | under("net.module.k.", OTHER)
    with pytest.raises(UsageError, match=r"differ; choose one: .* prefix=net\.k\. or prefix=net\."):
        take_apart(state)
    for prefix, expected in (("net.q.", STATE), ("net.q", STATE), ("net.module.k.", OTHER)):
        parts = take_apart(state, prefix=prefix)
        assert is_taken(parts, expected)
        assert parts.left_out == {"net": len(STATE)}
    assert is_taken(take_apart(under("net.q.") | under("net.k."), WeightsLayout.auto))
    with pytest.raises(UsageError, match=r"prefix=ned\. is the beginning of no tensor name"):
        take_apart(state, prefix="ned")


def test_a_prefix_leads_to_a_layout_with_a_head():
    head = {"model.encoder_q.fc.weight": torch.zeros(8, 16)}
    parts = take_apart(under("model.encoder_q.") | head | {"queue": torch.ones(1)}, prefix="model.")
    assert (parts.layout, set(parts.head)) == (WeightsLayout.moco, {"weight"})


@pytest.mark.parametrize("state", [{}, {"module.a": torch.ones(1), "a": torch.zeros(1)}])
def test_names_that_are_none_or_the_same_end(state):
    with pytest.raises(UsageError, match=r"its \d tensors have \d different names"):
        take_apart(state)


@pytest.mark.parametrize(
    ("loaded", "container"),
    [
        ({"teacher": under("backbone."), "student": OTHER, "epoch": 3}, "teacher"),
        ({"student": OTHER, "ema": STATE}, "ema"),
        ({"state_dict": {"model": STATE, "optimizer": {0: torch.ones(1)}}}, ""),
        ({"classy_state_dict": {"base_model": {"model": {"trunk": STATE, "heads": {}}}}}, ""),
        ({"model": {"ema": STATE, "student": OTHER}, "weights": OTHER}, "model.ema"),
        ({"model": None, "ema": STATE}, ""),
    ],
)
def test_the_first_container_with_tensors_is_taken(loaded, container):
    found, tensors = find_state(loaded)
    assert found == container
    assert is_taken(take_apart(tensors))


def test_other_networks_are_refused():
    with pytest.raises(UsageError, match="no known layout"):
        take_apart(nn.Sequential(nn.Linear(2, 2)).state_dict())
