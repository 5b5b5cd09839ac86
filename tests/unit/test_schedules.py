import math

import pytest
import torch

from fastmoco.schema import OptimizerConfig, UsageError
from fastmoco.train.optimizers import build_optimizer
from fastmoco.train.schedules import base_learning_rate, learning_rate


def rates(cfg, steps, *, steps_per_epoch=10, epochs=20):
    return [
        learning_rate(cfg, s, peak=1.0, steps_per_epoch=steps_per_epoch, epochs=epochs)
        for s in steps
    ]


def test_cosine_falls_from_peak_to_zero():
    cfg = OptimizerConfig(schedule="cosine")
    assert rates(cfg, [0, 100, 200]) == pytest.approx([1.0, 0.5, 0.0])
    assert rates(cfg, [50]) == pytest.approx([0.5 * (1 + math.cos(math.pi / 4))])


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
    with pytest.raises(UsageError, match=r"optimizer\.name=lamb is unknown.*sgd, adam, adamw"):
        build_optimizer([], OptimizerConfig(name="lamb"))
    with pytest.raises(UsageError, match=r"optimizer\.schedule=step is unknown.*cosine"):
        rates(OptimizerConfig(schedule="step"), [0])
