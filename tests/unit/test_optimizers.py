import pytest
import torch

from fastmoco.errors import UsageError
from fastmoco.optim.optimizers import build_optimizer, set_learning_rate
from fastmoco.optim.settings import OptimizerConfig
from fastmoco.runs.checkpoint import flatten_optimizer, restore_optimizer
from tests.optional import require


def test_a_first_step_that_loss_scaling_skips_leaves_no_momentum():
    weight = torch.nn.Parameter(torch.ones(64, 64))
    optimizer = build_optimizer([weight], OptimizerConfig(name="sgd", weight_decay=0.0))
    scaler = torch.amp.GradScaler("cpu")
    for gradient in (torch.inf, 0.0):
        weight.grad = torch.full_like(weight, gradient)
        dirty = [torch.full_like(weight, 1e30) for _ in range(64)]  # what lies in free memory
        del dirty
        scaler.scale(torch.zeros((), requires_grad=True))
        scaler.step(optimizer)
        scaler.update()
    assert torch.equal(weight, torch.ones(64, 64))


def test_sgd_is_torchs():
    torch.manual_seed(0)
    start, gradients = torch.randn(5), torch.randn(3, 5)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    settings = {"momentum": 0.9, "weight_decay": 0.01}
    plain = torch.optim.SGD([theirs], lr=0.1, fused=True, **settings)
    cfg = OptimizerConfig(name="sgd", learning_rate=0.1, sgd_momentum=0.9, weight_decay=0.01)
    optimizer = build_optimizer([ours], cfg)
    for gradient in gradients:
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        optimizer.step()
        plain.step()
        assert torch.equal(ours, theirs)


def weights_and_gradients(steps=4):
    """A matrix, a bias and a kernel in channels_last, and their gradients in each step."""
    torch.manual_seed(0)
    shapes = ((4, 3), (4,), (5, 3, 2, 2))
    weights = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    weights[2].data = weights[2].data.to(memory_format=torch.channels_last)
    return weights, [[torch.randn_like(weight) for weight in weights] for _ in range(steps)]


def train(optimizer, weights, gradients):
    for number, step in enumerate(gradients):
        for weight, gradient in zip(weights, step, strict=True):
            weight.grad = gradient.clone()
        set_learning_rate(optimizer, 0.5 / (1 + number))
        optimizer.step()


def test_lars_is_its_formula():
    """arXiv:1708.03888, Algorithm 1, with a trust coefficient of 0.001; biases are plain SGD."""
    require("timm")
    cfg = OptimizerConfig(name="lars", sgd_momentum=0.9, weight_decay=0.01)
    weights, gradients = weights_and_gradients()
    plain = [weight.detach().clone() for weight in weights]
    velocity = [torch.zeros_like(weight) for weight in weights]
    train(build_optimizer(weights, cfg), weights, gradients)
    for number, step in enumerate(gradients):
        for w, v, g in zip(plain, velocity, step, strict=True):
            if w.ndim > 1:
                trust = 0.001 * w.norm() / (g.norm() + 0.01 * w.norm())
                g = trust * (g + 0.01 * w)
            v.mul_(0.9).add_(g)
            w.sub_(0.5 / (1 + number) * v)
    for ours, expected in zip(weights, plain, strict=True):
        torch.testing.assert_close(ours.detach(), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "lars"])
def test_state_comes_back_bit_for_bit(name):
    if name == "lars":
        require("timm")
    cfg = OptimizerConfig(name=name, exclude_bias_and_norm=True)
    (whole, gradients), (first, _), (second, _) = (weights_and_gradients() for _ in range(3))
    train(build_optimizer(whole, cfg), whole, gradients)
    before = build_optimizer(first, cfg)
    train(before, first, gradients[:2])
    for ours, theirs in zip(second, first, strict=True):
        ours.data.copy_(theirs)
    after = build_optimizer(second, cfg)
    saved = {key: value.clone().contiguous() for key, value in flatten_optimizer(before).items()}
    restore_optimizer(after, saved)
    for number, step in enumerate(gradients[2:], 2):
        for weight, gradient in zip(second, step, strict=True):
            weight.grad = gradient.clone()
        set_learning_rate(after, 0.5 / (1 + number))
        after.step()
    assert all(map(torch.equal, second, whole))
    assert not torch.equal(second[0], first[0])


@pytest.mark.parametrize(
    ("name", "excluding", "decays"),
    [
        ("sgd", None, [[0.01] * 3]),
        ("adamw", None, [[0.01] * 3]),
        ("sgd", True, [[0.01] * 2, [0.0]]),
        ("lars", None, [[0.01] * 2, [0.0]]),
        ("lars", False, [[0.01] * 3]),
    ],
)
def test_what_has_weight_decay(name, excluding, decays):
    if name == "lars":
        require("timm")
    weights, _ = weights_and_gradients()
    cfg = OptimizerConfig(name=name, weight_decay=0.01, exclude_bias_and_norm=excluding)
    groups = build_optimizer(weights, cfg).param_groups
    assert [[group["weight_decay"]] * len(group["params"]) for group in groups] == decays
    if len(groups) > 1:
        assert groups[1]["params"][0] is weights[1]


def test_lars_without_timm_says_what_to_install(monkeypatch):
    monkeypatch.setattr("fastmoco.optim.settings.find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"needs timm; install it: pip install timm"):
        build_optimizer(weights_and_gradients()[0], OptimizerConfig(name="lars"))


@pytest.mark.parametrize(("limit", "factor"), [(None, 1.0), (100.0, 1.0), (0.5, 0.1)])
def test_gradients_are_clipped_by_their_norm_together(limit, factor):
    """``g min(1, limit / |g|)`` with |g| = 5 over both weights."""
    weights = [torch.nn.Parameter(torch.zeros(())) for _ in range(2)]
    cfg = OptimizerConfig(sgd_momentum=0.0, weight_decay=0.0, clip_gradient_norm=limit)
    optimizer = build_optimizer(weights, cfg)
    for weight, gradient in zip(weights, (3.0, 4.0), strict=True):
        weight.grad = torch.tensor(gradient)
    set_learning_rate(optimizer, 1.0)
    optimizer.step()
    moved = torch.stack([-weight.detach() for weight in weights])
    torch.testing.assert_close(moved, factor * torch.tensor([3.0, 4.0]))
