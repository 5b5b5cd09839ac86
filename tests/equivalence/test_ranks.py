"""Two ranks against one of the same global batch, step by step, on gloo.

In float64 but for one test: there the order of sums changes nothing that 12 steps would amplify
beyond 1e-9, while in float32 a value that rounds to the other side of ReLU's kink moves the
gradient by a finite step.
"""

import dataclasses

import pytest
import torch

from fastmoco.moco.build import build_model
from fastmoco.moco.collectives import average_over_ranks, gather_rows, own_rows
from fastmoco.pipelines.policies import POLICIES
from fastmoco.ranks import ALONE, Ranks
from fastmoco.schema import BatchNorm, MocoConfig, ModelConfig, OptimizerConfig, Precision, Stem
from fastmoco.train.metrics import STEP_METRICS
from fastmoco.train.optimizers import build_optimizer
from fastmoco.train.step import TrainStep
from tests.compiling import require_compiler
from tests.equivalence import test_moco_brute_force as algorithm
from tests.ranks import run_ranks

STEPS = 12
SETTINGS = OptimizerConfig(
    learning_rate=algorithm.LEARNING_RATE,
    sgd_momentum=algorithm.SGD_MOMENTUM,
    weight_decay=algorithm.WEIGHT_DECAY,
)


def make_model(ranks, batch_norm, splits=1, dtype=torch.float64, smooth=False):
    torch.manual_seed(0)
    moco = MocoConfig(
        dim=algorithm.DIM,
        queue_size=algorithm.QUEUE,
        momentum=algorithm.MOMENTUM,
        temperature=algorithm.TEMPERATURE,
        batch_norm=batch_norm,
        batch_norm_splits=splits,
    )
    encoder = ModelConfig(encoder="resnet18", stem=Stem.small, width=4)
    model = build_model(encoder, moco, ranks)
    if smooth:
        algorithm.smooth(model)
    return model.to(dtype=dtype, memory_format=torch.channels_last)


def own_batch(batch, ranks):
    fields = {
        item.name: own_rows(getattr(batch, item.name), ranks)
        for item in dataclasses.fields(batch)
        if item.name != "data_wait_seconds"
    }
    return dataclasses.replace(batch, **fields)


def train_model(model, *, policy="moco_v2", compiled=False, precision=Precision.float32):
    step = TrainStep(
        model,
        build_optimizer(model.query_encoder.parameters(), SETTINGS),
        policy=POLICIES[policy],
        mean=algorithm.MEAN,
        std=algorithm.STD,
        precision=precision,
        compiled=compiled,
    )
    metrics = [
        step(own_batch(batch, model.ranks), algorithm.LEARNING_RATE)
        for batch in algorithm.batches()[:STEPS]
    ]
    return {"metrics": torch.stack(metrics), **model.state_dict()}


def train_on_rank(ranks, model, options):
    return train_model(make_model(ranks, *model), **options)


def train_two(batch_norm, splits=1, dtype=torch.float64, smooth=False, **options):
    first, second = run_ranks(train_on_rank, (batch_norm, splits, dtype, smooth), options)
    differing = [name for name, value in first.items() if not torch.equal(value, second[name])]
    assert differing == []  # also the queue and the metrics
    return first


def assert_same(ours, expected, tolerance):
    """Weights, running statistics, queue and pointer; and the losses, which are float32."""
    for name, value in expected.items():
        if name != "metrics":
            torch.testing.assert_close(ours[name], value, rtol=tolerance, atol=tolerance, msg=name)
    places = [STEP_METRICS.index(n) for n in ("loss", "accuracy_top1", "alignment")]
    torch.testing.assert_close(
        ours["metrics"][:, places],
        expected["metrics"][:, places],
        rtol=0,
        atol=max(tolerance, 1e-5),
    )


def test_two_synchronized_ranks_are_one_rank():
    one = train_model(make_model(ALONE, BatchNorm.plain))
    assert_same(train_two(BatchNorm.synchronized), one, 1e-9)


def test_two_synchronized_ranks_are_one_rank_in_float32():
    """Smooth (no ReLU); rounding of 6e-8 grows over 12 steps to what is allowed at most."""
    one = train_model(make_model(ALONE, BatchNorm.plain, dtype=torch.float32, smooth=True))
    two = train_two(BatchNorm.synchronized, dtype=torch.float32, smooth=True)
    assert_same(two, one, 1e-5)


def test_two_plain_ranks_are_one_rank_split_in_two():
    model = make_model(ALONE, BatchNorm.shuffled, splits=2)
    model.shuffle_keys = False
    two = train_two(BatchNorm.plain)
    assert_same(two, train_model(model), 1e-9)
    whole = train_model(make_model(ALONE, BatchNorm.plain))
    assert (whole["queue.keys"] - two["queue.keys"]).abs().max() > 1e-3


@pytest.mark.parametrize("splits", [1, 4], ids=["a group each", "two groups each"])
def test_two_shuffling_ranks_are_algorithm_1(splits, monkeypatch):
    monkeypatch.setattr(algorithm, "STEPS", STEPS)
    model = make_model(ALONE, BatchNorm.shuffled, splits=max(2, splits))
    assert model.shuffle_keys
    losses, f_q, f_k, queue = algorithm.brute_force(model, torch.float64)
    two = train_two(BatchNorm.auto, splits)
    assert two["metrics"][:, 0].tolist() == pytest.approx(losses, abs=1e-6)
    torch.testing.assert_close(two["queue.keys"], queue, rtol=0, atol=1e-9)
    for part, plain in (("query_encoder", f_q), ("key_encoder", f_k)):
        for name, expected in plain.state_dict().items():
            torch.testing.assert_close(two[f"{part}.{name}"], expected, rtol=1e-9, atol=1e-9)


def test_two_shuffling_ranks_with_a_pool_are_one_rank():
    one = train_model(make_model(ALONE, BatchNorm.shuffled, splits=2), policy="imagenette_pool")
    assert_same(train_two(BatchNorm.shuffled, policy="imagenette_pool"), one, 1e-9)


def test_two_eman_ranks_are_one_rank_split_in_two():
    model = make_model(ALONE, BatchNorm.shuffled, splits=2)
    model.shuffle_keys, model.running_keys = False, True
    model.train()
    assert_same(train_two(BatchNorm.eman), train_model(model), 1e-9)


def test_two_ranks_with_loss_scaling_stay_equal():
    two = train_two(BatchNorm.auto, dtype=torch.float32, precision=Precision.fp16)
    assert two["metrics"].isfinite().all()


@pytest.mark.timeout(600)
@pytest.mark.parametrize("batch_norm", [BatchNorm.synchronized, BatchNorm.shuffled])
def test_two_compiled_ranks_are_two_eager_ones(batch_norm):
    require_compiler()
    options = {"dtype": torch.float64, "policy": "moco_v1"}
    eager, compiled = (
        train_two(batch_norm, **options),
        train_two(batch_norm, **options, compiled=True),
    )
    assert_same(compiled, eager, 1e-4)


def gather_and_average(ranks: Ranks):
    rows = torch.full((2, 3), float(ranks.rank + 1), requires_grad=True)
    gathered = gather_rows(rows, ranks)
    # A loss of its own on each rank: rank r weighs row i by (r + 1) i.
    ((ranks.rank + 1) * torch.arange(len(gathered)) * gathered.sum(dim=1)).sum().backward()
    crops = torch.full((1, 2), ranks.rank, dtype=torch.uint8)
    strided = torch.arange(6.0).view(2, 3).T + ranks.rank
    average_over_ranks([strided, rows.detach()], ranks)
    return gathered.detach(), rows.grad, gather_rows(crops, ranks), strided, rows.detach()


def test_gather_and_average_are_what_they_say():
    for rank, found in enumerate(run_ranks(gather_and_average, world_size=3)):
        gathered, gradient, crops, strided, mean = found
        assert gathered[:, 0].tolist() == [1, 1, 2, 2, 3, 3]
        assert gradient.tolist() == [[6 * (2 * rank + i)] * 3 for i in range(2)]
        assert crops.tolist() == [[0, 0], [1, 1], [2, 2]]
        assert torch.equal(strided, torch.arange(6.0).view(2, 3).T + 1)
        assert torch.equal(mean, torch.full((2, 3), 2.0))
