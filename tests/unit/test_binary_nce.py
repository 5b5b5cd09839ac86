"""`moco.objective=binary_nce`: equal to a loop over keys, with one normalizer for all ranks."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from fastmoco.configuration import load_config
from fastmoco.errors import UsageError
from fastmoco.moco import binary_nce
from fastmoco.moco.binary_nce import BinaryNce, chance_binary_nce
from fastmoco.moco.build import build_model
from fastmoco.moco.mechanism import Views
from fastmoco.moco.settings import Mechanism, MocoConfig, ModelConfig, Objective, Pretext, Stem
from fastmoco.ranks import ALONE, Ranks
from fastmoco.train.checks import check_config
from fastmoco.train.settings import TrainConfig
from tests.steps import TINY_RUN, differing, make_batch, make_trainer

IMAGES, T = 50, 0.5
"""Images of the dataset, which cancel, and the temperature."""


def vectors(seed: int, rows: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(rows, 8, dtype=torch.float64, generator=generator))


def brute_force(query, key, queue, normalizer: float | None) -> tuple[torch.Tensor, float]:
    """Loss and normalizer as CMC's ``MemoryMoCo`` and ``NCECriterion`` have them, key by key."""
    scores = [
        [torch.exp(q @ k / T) for k in (own, *queue)] for q, own in zip(query, key, strict=True)
    ]
    if normalizer is None:
        normalizer = sum(s.item() for row in scores for s in row) / (6 * 13) * IMAGES
    noise, total = 12 / IMAGES, torch.zeros((), dtype=torch.float64)
    for positive, *negatives in scores:
        total -= torch.log(positive / normalizer / (positive / normalizer + noise))
        for negative in negatives:
            total -= torch.log(noise / (negative / normalizer + noise))
    return total / len(query), normalizer


def test_loss_and_gradient_are_those_of_a_loop_and_the_normalizer_stays():
    objective, normalizer = BinaryNce(T, ALONE), None
    for step in range(2):
        query, key, queue = vectors(3 * step, 6), vectors(3 * step + 1, 6), vectors(step + 9, 12)
        ours, theirs = (query.clone().requires_grad_() for _ in range(2))
        value, rank = objective(ours, key, queue)
        expected, normalizer = brute_force(theirs, key, queue, normalizer)
        torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
        gradients = [torch.autograd.grad(*pair)[0] for pair in ((value, ours), (expected, theirs))]
        torch.testing.assert_close(*gradients, rtol=1e-5, atol=1e-7)
        assert rank.tolist() == [
            sum(float(q @ k) > float(q @ own) for k in queue)
            for q, own in zip(query, key, strict=True)
        ]
        known, log = objective.normalizer.tolist()
        assert (known, math.exp(log) * IMAGES) == (1, pytest.approx(normalizer, rel=1e-5))


def test_two_ranks_fix_the_normalizer_of_their_batches_together(monkeypatch):
    query, key, queue = vectors(0, 8), vectors(1, 8), vectors(2, 12)
    whole = BinaryNce(T, ALONE)
    whole(query, key, queue)
    sent: list[torch.Tensor] = []
    monkeypatch.setattr(binary_nce, "gather_rows", lambda own, _: sent.append(own) or own)
    halves = [slice(0, 4), slice(4, 8)]
    for half in halves:
        BinaryNce(T, Ranks(0, 2))(query[half], key[half], queue)
    monkeypatch.setattr(binary_nce, "gather_rows", lambda *_: torch.cat(sent))
    for rank, half in enumerate(halves):
        one = BinaryNce(T, Ranks(rank, 2))
        one(query[half], key[half], queue)
        torch.testing.assert_close(one.normalizer, whole.normalizer)


def test_a_model_keeps_the_normalizer_in_its_state_and_undoes_it_with_a_skipped_step():
    torch.manual_seed(0)
    encoder = ModelConfig(encoder="resnet18", stem=Stem.small_stride2, width=4)
    moco = MocoConfig(objective=Objective.binary_nce, dim=8, queue_size=16, temperature=T)
    model = build_model(encoder, moco)
    images, ids = torch.randn(2, 4, 3, 16, 16), torch.arange(4)
    output = model(Views(images[0], images[1], ids, ids, ids))
    assert model.state_dict()["binary_nce.normalizer"][0] == 1
    assert any(one is model.binary_nce.normalizer for one in model.moved_by_forward())
    output.loss.backward()
    assert model.chance_loss(4) == pytest.approx(math.log(17) + 16 * math.log(17 / 16))
    assert "binary NCE" in model.describe(4)
    plain = build_model(encoder, MocoConfig(dim=8, queue_size=16))
    assert not any("normalizer" in name for name in plain.state_dict())


def test_a_resumed_run_keeps_the_normalizer_bit_by_bit():
    options = [*TINY_RUN, "moco.objective=binary_nce", "optimizer.learning_rate=0.3"]
    whole, resumed = (make_trainer(options) for _ in range(2))
    for number in range(2):
        whole.take(make_batch(number), 0.3)
    before = whole.step.model.binary_nce.normalizer.clone()
    resumed.restore(whole.checkpoint())
    for trainer in (whole, resumed):
        trainer.take(make_batch(2), 0.3)
    assert differing(resumed.step, whole.step) == []
    assert torch.equal(resumed.step.model.binary_nce.normalizer, before)


@pytest.mark.parametrize("ratio", [0.01, 0.5, 2.0, 100.0])
def test_no_guess_is_better_than_chance(ratio):
    """Keys that are all equally similar, farther or nearer than when Z was fixed."""
    rows = vectors(0, 1).expand(6, 8)
    objective = BinaryNce(T, ALONE)
    objective(rows, rows, rows)
    objective.normalizer[1] -= math.log(ratio)
    assert float(objective(rows, rows, rows)[0]) > chance_binary_nce(6)


def test_16_bits_round_the_features_alone():
    query, key, queue = vectors(0, 6), vectors(1, 6), vectors(2, 12)
    expected, _ = BinaryNce(T, ALONE)(query, key, queue)
    for dtype in (torch.bfloat16, torch.float16):
        with torch.autocast("cpu", torch.bfloat16):
            found, _ = BinaryNce(T, ALONE)(query.to(dtype), key.to(dtype), queue.to(torch.float16))
        assert found.dtype is torch.float32
        assert float(found) == pytest.approx(float(expected), rel=2e-2)


def test_equal_keys_give_the_loss_of_chance():
    rows = vectors(0, 1).expand(6, 8)
    value, _ = BinaryNce(T, ALONE)(rows, rows, rows)
    assert float(value) == pytest.approx(chance_binary_nce(6))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss": "chunked"}, r"moco\.loss=chunked .*got binary_nce.*; set moco\.loss=auto"),
        ({"loss": "fused"}, r"moco\.loss=fused "),
        ({"pretext": Pretext.cross_channel}, r"moco\.pretext=instance, got cross_channel"),
        (
            {"mechanism": Mechanism.memory_bank},
            r"moco\.objective=binary_nce .*moco\.mechanism=moco",
        ),
    ],
)
def test_pairs_without_a_form_are_refused(changes, message):
    with pytest.raises(UsageError, match=message):
        MocoConfig(objective=Objective.binary_nce, **changes)


def test_micro_batches_are_refused(tmp_path):
    options = ["moco.objective=binary_nce", "train.accumulate=2", f"data.train={tmp_path}"]
    with pytest.raises(UsageError, match=r"train\.accumulate=2 .*got binary_nce.*accumulate=1"):
        check_config(load_config(TrainConfig, options))
