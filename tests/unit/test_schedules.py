import math

import pytest
import torch

from fastmoco.errors import UsageError
from fastmoco.optim.optimizers import build_optimizer
from fastmoco.optim.schedules import base_learning_rate, learning_rate
from fastmoco.optim.settings import OptimizerConfig


def rates(cfg, steps, *, steps_per_epoch=10, epochs=20):
    return [
        learning_rate(cfg, s, peak=1.0, steps_per_epoch=steps_per_epoch, epochs=epochs)
        for s in steps
    ]


def test_cosine_falls_from_peak_to_zero():
    cfg = OptimizerConfig(schedule="cosine")
    assert rates(cfg, [0, 100, 200]) == pytest.approx([1.0, 0.5, 0.0])
    assert rates(cfg, [50]) == pytest.approx([0.5 * (1 + math.cos(math.pi / 4))])


def test_cosine_per_epoch_is_that_of_the_official_code():
    """``lr *= 0.5 * (1 + cos(pi * epoch / epochs))``, set once at the start of each epoch."""
    cfg = OptimizerConfig(schedule="cosine_per_epoch")
    expected = [0.5 * (1 + math.cos(math.pi * epoch / 20)) for epoch in (0, 0, 1, 1, 19, 19)]
    assert rates(cfg, [0, 9, 10, 19, 190, 199]) == pytest.approx(expected)
    first, last = ([97 * epoch + step for epoch in range(20)] for step in (0, 96))
    assert rates(cfg, first, steps_per_epoch=97) == rates(cfg, last, steps_per_epoch=97)
    weight = torch.nn.Parameter(torch.zeros(1))
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(torch.optim.SGD([weight], lr=1.0), 20)
    for epoch in range(20):
        assert scheduler.get_last_lr()[0] == pytest.approx(rates(cfg, [10 * epoch + 3])[0])
        scheduler.optimizer.step()
        scheduler.step()


def test_cosine_from_1_is_that_of_the_notebook():
    """``for epoch in range(1, epochs + 1)``: the same formula, an epoch ahead and 0 in the last."""
    cfg = OptimizerConfig(schedule="cosine_from_1")
    expected = [0.5 * (1 + math.cos(math.pi * epoch / 20)) for epoch in (1, 1, 2, 20)]
    assert rates(cfg, [0, 9, 10, 195]) == pytest.approx(expected)


def test_cosine_starts_where_the_warm_up_ends():
    """As in the codes of MoCo v3 (``adjust_learning_rate``) and SimCLR: nothing jumps."""
    cfg = OptimizerConfig(schedule="cosine", warmup_epochs=5)
    expected = [0.5 * (1 + math.cos(math.pi * (epoch - 5) / 15)) for epoch in (5, 10, 20)]
    assert rates(cfg, [49, 50, 100, 200]) == pytest.approx([1.0, *expected])
    assert rates(cfg, [50]) == [1.0]
    older = OptimizerConfig(schedule="cosine", warmup_epochs=5, cosine_after_warmup=False)
    assert rates(older, [49, 50]) == pytest.approx([1.0, 0.5 * (1 + math.cos(math.pi / 4))])
    longer = OptimizerConfig(schedule="cosine", warmup_epochs=30)
    assert rates(longer, [199]) == pytest.approx([200 / 300])


def test_constant_stays_at_the_peak_after_the_warm_up():
    cfg = OptimizerConfig(schedule="constant", warmup_epochs=1)
    assert rates(cfg, [0, 4, 9, 10, 199]) == pytest.approx([0.1, 0.5, 1, 1, 1])


def test_multistep_drops_at_epochs():
    cfg = OptimizerConfig(schedule="multistep", milestones=[12, 16])
    assert rates(cfg, [119, 120, 159, 160]) == pytest.approx([1, 0.1, 0.1, 0.01])


def test_warmup_rises_linearly_then_joins_the_schedule():
    cfg = OptimizerConfig(schedule="multistep", warmup_epochs=2)
    assert rates(cfg, [0, 9, 19, 20]) == pytest.approx([0.05, 0.5, 1.0, 1.0])


def test_scaling_by_batch_size():
    assert base_learning_rate(OptimizerConfig(learning_rate=0.06), 512) == 0.06
    scaled = OptimizerConfig(learning_rate=0.06, scale_learning_rate=True)
    assert base_learning_rate(scaled, 512) == pytest.approx(0.12)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_optimizers_step_as_torchs_plain_ones(name):
    weights = [torch.nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2)]
    cfg = OptimizerConfig(name=name, learning_rate=0.1, weight_decay=0.01)
    plain = {
        "sgd": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=0.01),
        "adam": lambda p: torch.optim.Adam(p, lr=0.1, weight_decay=0.01),
        "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.01),
    }[name]([weights[1]])
    ours = build_optimizer([weights[0]], cfg)
    for _ in range(3):
        for weight in weights:
            weight.grad = 2 * weight.detach()
        ours.step()
        plain.step()
    torch.testing.assert_close(*weights)


def test_unknown_names_are_refused():
    with pytest.raises(UsageError, match=r"optimizer\.name must be one of sgd, .*got lamb"):
        OptimizerConfig(name="lamb")
    with pytest.raises(UsageError, match=r"optimizer\.schedule must be one of cosine, .*got step"):
        OptimizerConfig(schedule="step")
