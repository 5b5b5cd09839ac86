"""Two ranks against one of the same global batch, step by step, on gloo.

In float64 but for one test: there the order of sums changes nothing that 12 steps would amplify
beyond 1e-9, while in float32 a value that rounds to the other side of ReLU's kink moves the
gradient by a finite step.
"""

import copy
import dataclasses
import math
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from fastmoco.draws.device import permutation
from fastmoco.draws.host import draw_keys
from fastmoco.moco.build import build_model
from fastmoco.moco.collectives import average_over_ranks, gather_rows, own_rows
from fastmoco.moco.key_exchange import key_exchange
from fastmoco.moco.settings import BatchNorm, MocoConfig, ModelConfig, Objective, Precision, Stem
from fastmoco.optim.optimizers import build_optimizer
from fastmoco.optim.settings import OptimizerConfig
from fastmoco.pipelines.policies import POLICIES
from fastmoco.ranks import ALONE, Ranks
from fastmoco.train import overlap
from fastmoco.train.metrics import STEP_METRICS
from fastmoco.train.settings import Gradients
from fastmoco.train.step import TrainStep
from tests.compiling import require_compiler
from tests.equivalence import test_moco_brute_force as algorithm
from tests.limits import HANG_SECONDS
from tests.ranks import run_ranks

STEPS = 12
SETTINGS = OptimizerConfig(
    learning_rate=algorithm.LEARNING_RATE,
    sgd_momentum=algorithm.SGD_MOMENTUM,
    weight_decay=algorithm.WEIGHT_DECAY,
)


def make_model(
    ranks,
    batch_norm,
    splits=1,
    dtype=torch.float64,
    smooth=False,
    symmetric=False,
    accumulate=1,
    objective="info_nce",
):
    torch.manual_seed(0)
    moco = MocoConfig(
        dim=algorithm.DIM,
        queue_size=algorithm.QUEUE,
        momentum=algorithm.MOMENTUM,
        temperature=algorithm.TEMPERATURE,
        batch_norm=BatchNorm(batch_norm),
        batch_norm_splits=splits,
        symmetric=symmetric,
        objective=Objective(objective),
    )
    encoder = ModelConfig(encoder="resnet18", stem=Stem.small, width=4)
    model = build_model(encoder, moco, ranks, accumulate)
    if smooth:
        algorithm.smooth(model)
    return model.to(dtype=dtype, memory_format=torch.channels_last)


class GatheredKeys(NamedTuple):
    """Plain twin of `KeyExchange`: every rank gathers all rows, and keeps its own."""

    draw_key: Tensor
    order: Tensor  # of the global batch, (B,)
    rank: Tensor  # (2,): rank, world_size

    def scattered(self, rows):
        ranks = Ranks(*self.rank.tolist())
        return own_rows(gather_rows(rows.contiguous(), ranks)[self.order], ranks)

    def returned(self, rows):
        ranks = Ranks(*self.rank.tolist())
        gathered = gather_rows(rows, ranks)
        return own_rows(torch.empty_like(gathered).index_copy_(0, self.order, gathered), ranks)


def gathered_keys(all_draw_keys, ranks):
    keys = torch.from_numpy(all_draw_keys)
    order = permutation(keys)  # by the device's draws
    who = torch.tensor([ranks.rank, ranks.world_size])
    return GatheredKeys(keys[own_rows(order, ranks)], order, who)


def exchange_of(model, batch, *, twin=False):
    """The exchange of a global batch, if there is one."""
    if not model.exchanges_keys:
        return None
    all_draw_keys = batch.draw_key.numpy()
    if twin:
        return gathered_keys(all_draw_keys, model.ranks)
    return key_exchange(all_draw_keys, model.ranks, torch.device("cpu"))


def own_batch(batch, ranks):
    fields = {
        item.name: own_rows(getattr(batch, item.name), ranks)
        for item in dataclasses.fields(batch)
        if item.name not in ("data_wait_seconds", "images")
    }
    return dataclasses.replace(batch, **fields)


def train_model(
    model,
    *,
    policy="moco_v2",
    compiled=False,
    precision=Precision.float32,
    accumulate=1,
    overflowing=(),
    twin=False,
    gradients=Gradients.flat,
):
    """Metrics and state after `STEPS`; in those of `overflowing`, rank 1 alone overflows.

    Keys are exchanged by `GatheredKeys` where `twin` is set.
    """
    overlap.BUCKET_MEGABYTES = 0.1  # several messages
    step = TrainStep(
        model,
        build_optimizer(model.query_encoder.parameters(), SETTINGS),
        policy=POLICIES[policy],
        mean=algorithm.MEAN,
        std=algorithm.STD,
        precision=precision,
        compiled=compiled,
        accumulate=accumulate,
        gradients=gradients,
    )
    metrics, skipped = [], []
    for number, batch in enumerate(algorithm.batches()[:STEPS]):
        overflows = number in overflowing and model.ranks.rank == 1
        step.scaler.scale.fill_(3e38 if overflows else 1024.0)
        exchange = exchange_of(model, batch, twin=twin)
        metrics.append(step(own_batch(batch, model.ranks), algorithm.LEARNING_RATE, exchange))
        skipped.append(step.guard.found_inf.clone())
    assert step.compiled == compiled
    found = {"metrics": torch.stack(metrics), "skipped": torch.stack(skipped)}
    return {**found, **model.state_dict()}


# What two ranks train: arguments of `make_model`, and of `train_model`.
RUNS = {
    "synchronized": (("synchronized",), {}),
    "synchronized, float32": (("synchronized", 1, torch.float32, True), {}),
    "plain": (("plain",), {}),
    "a group each": (("auto", 1), {}),
    "a group each, ddp": (("auto", 1), {"gradients": Gradients.ddp}),
    "a group each, bf16": (("auto", 1), {"gradients": Gradients.ddp_bf16}),
    "synchronized, ddp": (("synchronized",), {"gradients": Gradients.ddp}),
    "fp16, ddp": (
        ("auto", 1, torch.float32),
        {"precision": Precision.fp16, "overflowing": (0, 3), "gradients": Gradients.ddp},
    ),
    "a group each, gathered": (("auto", 1), {"twin": True}),
    "two groups each": (("auto", 4), {}),
    "pool": (("shuffled",), {"policy": "imagenette_pool"}),
    "eman": (("eman",), {}),
    "symmetric": (("shuffled", 1, torch.float64, False, True), {"policy": "moco_v3"}),
    "symmetric, gathered": (
        ("shuffled", 1, torch.float64, False, True),
        {"policy": "moco_v3", "twin": True},
    ),
    "fp16": (("auto", 1, torch.float32), {"precision": Precision.fp16, "overflowing": (0, 3)}),
    "binary NCE": (("auto", 1, torch.float64, False, False, 1, "binary_nce"), {}),
    "in parts": (
        ("auto", 1, torch.float64, False, False, 2),
        {"accumulate": 2, "policy": "moco_v3"},
    ),
}
COMPILED = {
    name: (model, {"compiled": True})
    for name, (model, _) in RUNS.items()
    if name in ("synchronized", "a group each")
}


def train_on_rank(ranks, runs):
    return {
        name: train_model(make_model(ranks, *model), **options)
        for name, (model, options) in runs.items()
    }


def train_two(runs):
    first, second = run_ranks(train_on_rank, runs, timeout_seconds=HANG_SECONDS)
    for name, state in first.items():
        differing = [
            key for key, value in state.items() if not torch.equal(value, second[name][key])
        ]
        assert differing == [], name  # also queue, running statistics and metrics
    return first


@pytest.fixture(scope="module")
def two_ranks():
    """What `RUNS` came to; the states of both ranks are bit-equal."""
    return train_two(RUNS)


def assert_same(ours, expected, tolerance):
    """Weights, running statistics, queue and pointer; and the losses, which are float32."""
    for name, value in expected.items():
        if name not in ("metrics", "skipped"):
            torch.testing.assert_close(ours[name], value, rtol=tolerance, atol=tolerance, msg=name)
    places = [STEP_METRICS.index(n) for n in ("loss", "accuracy_top1", "alignment")]
    torch.testing.assert_close(
        ours["metrics"][:, places],
        expected["metrics"][:, places],
        rtol=0,
        atol=max(tolerance, 1e-5),
    )


def test_two_synchronized_ranks_are_one_rank(two_ranks):
    one = train_model(make_model(ALONE, "plain"))
    assert_same(two_ranks["synchronized"], one, 1e-9)


def test_two_synchronized_ranks_are_one_rank_in_float32(two_ranks):
    """Smooth (no ReLU); rounding of 6e-8 grows over 12 steps to what is allowed at most."""
    one = train_model(make_model(ALONE, "plain", dtype=torch.float32, smooth=True))
    assert_same(two_ranks["synchronized, float32"], one, 1e-5)


def test_two_plain_ranks_are_one_rank_split_in_two(two_ranks):
    model = make_model(ALONE, "shuffled", splits=2)
    model.shuffle_keys = False
    assert_same(two_ranks["plain"], train_model(model), 1e-9)
    whole = train_model(make_model(ALONE, "plain"))
    assert (whole["queue.keys"] - two_ranks["plain"]["queue.keys"]).abs().max() > 1e-3


@pytest.mark.parametrize(("run", "groups"), [("a group each", 2), ("two groups each", 4)])
def test_two_shuffling_ranks_are_algorithm_1(two_ranks, run, groups, monkeypatch):
    monkeypatch.setattr(algorithm, "STEPS", STEPS)
    model = make_model(ALONE, "shuffled", splits=groups)
    assert model.shuffle_keys
    losses, f_q, f_k, queue = algorithm.brute_force(model, torch.float64)
    two = two_ranks[run]
    assert two["metrics"][:, 0].tolist() == pytest.approx(losses, abs=1e-6)
    torch.testing.assert_close(two["queue.keys"], queue, rtol=0, atol=1e-9)
    for part, plain in (("query_encoder", f_q), ("key_encoder", f_k)):
        for name, expected in plain.state_dict().items():
            torch.testing.assert_close(two[f"{part}.{name}"], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("run", ["a group each", "symmetric"])
def test_keys_sent_once_are_the_same_bits_as_gathered_keys(two_ranks, run):
    gathered = two_ranks[f"{run}, gathered"]
    assert [n for n, t in two_ranks[run].items() if not torch.equal(t, gathered[n])] == []


@pytest.mark.parametrize("run", ["a group each", "synchronized", "fp16"])
def test_overlapped_averages_are_the_same_bits_as_the_flat_one(two_ranks, run):
    """With two ranks each sum has two terms; halving is exact before and after it."""
    overlapped = two_ranks[f"{run}, ddp"]
    assert [n for n, t in two_ranks[run].items() if not torch.equal(t, overlapped[n])] == []


def test_gradients_in_bf16_are_the_flat_ones_up_to_their_rounding(two_ranks):
    """2^-9 of each gradient, which steps amplify: 2.5% of a loss after 12."""
    losses = two_ranks["a group each, bf16"]["metrics"][:, 0]
    flat = two_ranks["a group each"]["metrics"][:, 0]
    assert torch.equal(losses[0], flat[0])
    assert not torch.equal(losses, flat)
    torch.testing.assert_close(losses[:4], flat[:4], rtol=0.01, atol=0)
    torch.testing.assert_close(losses, flat, rtol=0.05, atol=0)


def test_two_shuffling_ranks_with_a_pool_are_one_rank(two_ranks):
    one = train_model(make_model(ALONE, "shuffled", splits=2), policy="imagenette_pool")
    assert_same(two_ranks["pool"], one, 1e-9)


def test_two_eman_ranks_are_one_rank_split_in_two(two_ranks):
    model = make_model(ALONE, "shuffled", splits=2)
    model.shuffle_keys, model.running_keys = False, True
    model.train()
    assert_same(two_ranks["eman"], train_model(model), 1e-9)


def test_two_symmetric_shuffling_ranks_are_one_rank(two_ranks):
    """With unlike views, each of which is query and key."""
    one = train_model(make_model(ALONE, "shuffled", splits=2, symmetric=True), policy="moco_v3")
    assert_same(two_ranks["symmetric"], one, 1e-9)


def test_two_ranks_of_binary_nce_are_one_rank(two_ranks):
    """With the normalizer of both ranks' first batches, which then stays."""
    one = train_model(make_model(ALONE, "auto", splits=2, objective="binary_nce"))
    assert_same(two_ranks["binary NCE"], one, 1e-9)
    assert two_ranks["binary NCE"]["binary_nce.normalizer"][0] == 1


def test_two_ranks_with_loss_scaling_skip_alike(two_ranks):
    """What overflows on one rank is left out on both: their states were found bit-equal."""
    found = two_ranks["fp16"]
    assert found["skipped"].tolist() == [number in (0, 3) for number in range(STEPS)]
    assert all(value.isfinite().all() for value in found.values())
    assert found["queue.pointer"] == (STEPS - 2) * algorithm.BATCH % algorithm.QUEUE


def test_two_ranks_in_two_micro_batches_are_one_rank_split_in_four(two_ranks):
    """With unlike views, of which the second is exchanged."""
    one = train_model(make_model(ALONE, "shuffled", splits=4), policy="moco_v3")
    assert_same(two_ranks["in parts"], one, 1e-9)


@pytest.mark.full
def test_two_compiled_ranks_are_two_eager_ones(two_ranks):
    """Colors are float32 and rounded otherwise: 6 steps, before that meets a kink of ReLU."""
    require_compiler()
    for name, compiled in train_two(COMPILED).items():
        losses, expected = (state["metrics"][:6, 0] for state in (compiled, two_ranks[name]))
        torch.testing.assert_close(losses, expected, rtol=0, atol=1e-5, msg=name)


def exchange(ranks: Ranks):
    """Rows by the exchange and by its twin, forth and back, for several steps."""
    found = []
    for step in range(8):
        keys = draw_keys(0, 0, np.arange(12, dtype=np.int64) + 12 * step)
        rows = torch.arange(12 * 5, dtype=torch.uint8).view(12, 5)
        ways = [key_exchange(keys, ranks, torch.device("cpu")), gathered_keys(keys, ranks)]
        there = [way.scattered(own_rows(rows, ranks)) for way in ways]
        back = [way.returned(there[0]) for way in ways]
        found.append([there, back, [way.draw_key for way in ways], own_rows(rows, ranks)])
    return found


@pytest.mark.full
@pytest.mark.parametrize("world_size", [2, 4])
def test_each_row_is_sent_to_the_rank_that_encodes_it(world_size):
    for on_rank in run_ranks(exchange, world_size=world_size):
        moved = 0
        for there, back, keys, own in on_rank:
            assert torch.equal(*there)
            assert torch.equal(*keys)
            assert torch.equal(back[0], own)
            assert torch.equal(back[1], own)
            moved += int((there[0] != own).any(dim=1).sum())
        assert moved > 8 * len(own) // 2  # most rows change their place: equality says something


def stopped_and_resumed(ranks):
    """State after six steps, and after three in one process and three in another."""
    overlap.BUCKET_MEGABYTES = 0.1
    batches, found = algorithm.batches(), []
    for parts in ([range(6)], [range(3), range(3, 6)]):
        kept = None
        for part in parts:
            model = make_model(ranks, "auto", dtype=torch.float32)
            step = TrainStep(
                model,
                build_optimizer(model.learnable(), SETTINGS),
                policy=POLICIES["moco_v2"],
                mean=algorithm.MEAN,
                std=algorithm.STD,
                gradients=Gradients.ddp,
            )
            if kept:
                model.load_state_dict(kept[0])
                step.optimizer.load_state_dict(kept[1])
            for batch in (batches[number] for number in part):
                exchange = exchange_of(model, batch)
                step(own_batch(batch, ranks), algorithm.LEARNING_RATE, exchange)
            kept = copy.deepcopy((model.state_dict(), step.optimizer.state_dict()))
        found.append(dict(model.state_dict()))
    return found


@pytest.mark.full
def test_overlapped_averages_resume_with_the_same_bits():
    """Four ranks: the order of a sum depends on the messages, which must not depend on the step."""
    for whole, resumed in run_ranks(stopped_and_resumed, world_size=4):
        assert [n for n, t in whole.items() if not torch.equal(t, resumed[n])] == []


def gather_and_average(ranks: Ranks):
    rows = torch.full((2, 3), float(ranks.rank + 1), requires_grad=True)
    gathered = gather_rows(rows, ranks)
    # A loss of its own on each rank: rank r weighs row i by (r + 1) i.
    ((ranks.rank + 1) * torch.arange(len(gathered)) * gathered.sum(dim=1)).sum().backward()
    crops = torch.full((1, 2), ranks.rank, dtype=torch.uint8)
    strided = torch.arange(6.0).view(2, 3).T + ranks.rank
    overflow = torch.tensor([1.0] * 4 if ranks.rank else [math.inf, -math.inf, math.nan, 1.0])
    average_over_ranks([strided, rows.detach(), overflow], ranks)
    return gathered.detach(), rows.grad, gather_rows(crops, ranks), strided, rows.detach(), overflow


@pytest.mark.full
def test_gather_and_average_are_what_they_say():
    """On three ranks; all tests above rest on these two."""
    for rank, found in enumerate(run_ranks(gather_and_average, world_size=3)):
        gathered, gradient, crops, strided, mean, overflow = found
        assert gathered[:, 0].tolist() == [1, 1, 2, 2, 3, 3]
        assert gradient.tolist() == [[6 * (2 * rank + i)] * 3 for i in range(2)]
        assert crops.tolist() == [[0, 0], [1, 1], [2, 2]]
        assert torch.equal(strided, torch.arange(6.0).view(2, 3).T + 1)
        assert torch.equal(mean, torch.full((2, 3), 2.0))
        assert overflow.isfinite().tolist() == [False, False, False, True]
