"""What saves launches on a GPU computes the same: counters, weight casts, the momentum update."""

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from fastmoco.moco.batchnorm import BatchCounters
from fastmoco.moco.momentum import follow, follow_by_sgd
from fastmoco.moco.settings import Mechanism, Precision, Pretext
from fastmoco.moco.weight_casts import cast_weights
from tests.steps import differing, make_batch, make_step

CASES = {
    "moco": {},
    "eman": {"moco": {"batch_norm": "eman"}},
    "symmetric, split": {"moco": {"symmetric": True, "batch_norm_splits": 2}},
    "end to end": {"moco": {"mechanism": Mechanism.end_to_end}},
    "memory bank": {"moco": {"mechanism": Mechanism.memory_bank}},
    "moco v3": {"moco": {"mechanism": Mechanism.moco_v3, "hidden_dim": 8}},
    "Fast-MoCo": {"moco": {"mechanism": Mechanism.fast_moco, "hidden_dim": 8}},
    "cross channel": {
        "moco": {"pretext": Pretext.cross_channel},
        "model": {"encoder": "halves:resnet18", "width": 8},
        "policy": "moco_v1",
    },
}


@pytest.mark.parametrize("change", CASES.values(), ids=CASES)
def test_a_step_counts_as_its_layers_would(change):
    step, plain = make_step(**change), make_step(**change)
    plain.counters = BatchCounters(nn.Module())  # its layers count for themselves
    for one in (step, plain):
        one(make_batch(0), 0.03)
    assert (
        step.model.query_encoder.state_dict().keys()
        == plain.model.query_encoder.state_dict().keys()
    )
    assert differing(step, plain) == []


def test_a_layer_that_averages_by_its_count_keeps_it():
    counters = BatchCounters(nn.Sequential(nn.BatchNorm1d(2, momentum=None), nn.BatchNorm1d(2)))
    with counters.held():
        assert [len(layer._buffers) for layer in counters._layers] == [3]
    assert len(counters._layers) == 1


class Casts(TorchDispatchMode):
    """Counts casts of single tensors among those given, and of lists."""

    def __init__(self, weights):
        super().__init__()
        self.weights = {weight.data_ptr() for weight in weights}
        self.single = self.lists = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        del types
        name = func.overloadpacket.__name__
        self.single += name == "_to_copy" and args[0].data_ptr() in self.weights
        self.lists += name == "_foreach_copy_" and args[0][0].dtype is torch.bfloat16
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["moco", "memory bank", "moco v3", "cross channel"])
def test_weights_cast_together_are_those_that_autocast_casts(name):
    step, plain = (make_step(precision=Precision.bf16, **CASES[name]) for _ in range(2))
    step.casts_once = True  # as where it is compiled
    watch = Casts(step.model.parameters())
    plain(make_batch(0), 0.03)
    with watch:
        step(make_batch(0), 0.03)
    assert differing(step, plain) == []
    keys = hasattr(step.model, "key_encoder")
    assert (watch.single, watch.lists) == (0, 2 if keys else 1)


@pytest.mark.parametrize("learned", [None, True, False])
@pytest.mark.parametrize("step", [0.001, torch.tensor(0.25, dtype=torch.float64)])
def test_one_pass_is_the_plain_momentum_update(step, learned):
    learned = None if learned is None else torch.tensor(learned)
    shapes = [(5, 3, 3, 3), (7,)]
    start, query = ([torch.randn(*shape) for shape in shapes] for _ in range(2))
    plain, one_pass = ([tensor.clone() for tensor in start] for _ in range(2))
    follow(plain, query, step, learned)
    follow_by_sgd(one_pass, query, step, learned)
    for found, expected, before in zip(one_pass, plain, start, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-7)  # one rounding
        assert torch.equal(found, before) == (learned is not None and not learned)


def test_a_weight_of_two_layers_is_left_to_autocast():
    """`functional_call` takes one value for a shared weight, and two casts are two."""
    first, second, own = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = nn.Sequential(first, second, own)
    cast = cast_weights(model, torch.bfloat16)
    assert cast.keys() == {"0.bias", "1.bias", "2.weight", "2.bias"}
    with torch.autocast("cpu", torch.bfloat16):
        found = torch.func.functional_call(model, cast, (torch.ones(2, 4),))
        assert torch.equal(found, model(torch.ones(2, 4)))
