"""The written-out heads against autograd and torch's optimizers."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastmoco.errors import UsageError
from fastmoco.evaluate.linear.heads import Heads
from fastmoco.evaluate.linear.rate_grid import RateGrid
from fastmoco.optim.settings import OptimizerConfig

RATES = [0.01, 0.3, 2.0]
FACTORS = [1.0, 1.0, 0.5, 0.1, 0.1]


def batches(weighted):
    generator = torch.Generator().manual_seed(3)
    for factor in FACTORS:
        features = torch.randn(12, 6, generator=generator)
        labels = torch.randint(4, (12,), generator=generator)
        weights = None
        if weighted:
            weights = (torch.rand(12, 3, generator=generator) > 0.3).float()
            weights[:, 2] = 1
        yield factor, features, labels, weights


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("name", "decay"), [("sgd", 0.0), ("sgd", 0.01), ("adam", 0.02), ("adamw", 0.02)]
)
def test_equals_autograd_and_torchs_optimizers(name, decay, weighted):
    cfg = OptimizerConfig(name=name, weight_decay=decay, sgd_momentum=0.8)
    heads = Heads(RATES, dim=6, classes=4, cfg=cfg, device=torch.device("cpu"), seed=5)
    kinds = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
    more = {"momentum": 0.8} if name == "sgd" else {}
    for number, rate in enumerate(RATES):
        layer = nn.Linear(6, 4)
        with torch.no_grad():
            layer.weight.copy_(heads.weight[number::3])
            layer.bias.zero_()
        optimizer = kinds[name](layer.parameters(), lr=rate, weight_decay=decay, **more)
        alone = Heads([rate], dim=6, classes=4, cfg=cfg, device=torch.device("cpu"), seed=5)
        for factor, features, labels, weights in batches(weighted):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.zero_grad()
            losses = F.cross_entropy(layer(features), labels, reduction="none")
            own = None if weights is None else weights[:, number : number + 1]
            loss = losses.mean() if own is None else (losses * own[:, 0]).sum() / own.sum()
            loss.backward()
            found = alone.step(features, labels, factor=factor, weights=own)
            torch.testing.assert_close(found[:, 0], losses.detach(), atol=1e-5, rtol=1e-4)
            optimizer.step()
        torch.testing.assert_close(alone.weight, layer.weight.detach(), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(alone.bias[:, 0], layer.bias.detach(), atol=1e-5, rtol=1e-4)


def test_many_heads_are_as_many_single_ones():
    cfg = OptimizerConfig(weight_decay=0.001)
    args = {"dim": 6, "classes": 4, "cfg": cfg, "device": torch.device("cpu"), "seed": 1}
    together, apart = Heads(RATES, **args), [Heads([rate], **args) for rate in RATES]
    for factor, features, labels, weights in batches(weighted=True):
        losses = together.step(features, labels, factor=factor, weights=weights)
        for number, head in enumerate(apart):
            own = weights[:, number : number + 1]
            found = head.step(features, labels, factor=factor, weights=own)
            torch.testing.assert_close(losses[:, number : number + 1], found)
    weights = torch.stack([head.weight for head in apart], 1).flatten(0, 1)
    torch.testing.assert_close(together.weight, weights)
    logits = together.logits(features)
    assert logits.shape == (4, 3, 12)
    ranks = together.ranks(features, labels)
    expected = (logits > logits.gather(0, labels.expand(1, 3, -1))).sum(0).T
    assert torch.equal(ranks, expected)


def test_of_each_rate_one_head_is_not_told_of_held_out_images():
    grid = RateGrid([0.1, 1.0], np.array([True, False, True, False]))
    weights = grid.weights(torch.device("cpu"))
    assert weights.tolist() == [[0, 0, 1, 1], [1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 1, 1]]
    assert grid.heads == [0.1, 1.0, 0.1, 1.0]
    assert grid.best([50.0, 60.0]) == 3
    assert grid.best([60.0, 60.0]) == 2  # of equals the first
    assert RateGrid([0.1], None).weights(torch.device("cpu")) is None


def test_a_head_that_diverged_is_never_right():
    cfg = OptimizerConfig(learning_rate=1.0)
    heads = Heads([1.0, 1.0], dim=2, classes=3, cfg=cfg, device=torch.device("cpu"), seed=0)
    heads.weight[1::2] = torch.nan
    ranks = heads.ranks(torch.ones(4, 2), torch.tensor([0, 1, 2, 0]))
    assert (ranks[:, 1] == 3).all()
    assert (ranks[:, 0] < 3).all()


def test_unknown_optimizers_are_refused():
    with pytest.raises(UsageError, match=r"optimizer\.name must be one of .*, got lion"):
        Heads(
            [1.0],
            dim=2,
            classes=2,
            cfg=OptimizerConfig(name="lion"),
            device=torch.device("cpu"),
            seed=0,
        )
