"""A step with numbers that are not finite changes nothing; the host learns which step it was."""

import pytest
import torch

from fastmoco.moco.settings import Mechanism, Precision
from fastmoco.optim.loss_scaler import LossScaler
from fastmoco.optim.settings import OptimizerConfig
from fastmoco.optim.step_guard import MOST_SKIPPED_IN_A_ROW, StepGuard
from tests.optional import require
from tests.steps import make_batch, make_step, tensors_of

MECHANISMS = {
    "moco": {},
    "eman": {"moco": {"batch_norm": "eman"}},
    "symmetric": {"moco": {"symmetric": True, "batch_norm_splits": 2}},
    "memory bank": {"moco": {"mechanism": Mechanism.memory_bank}},
    "moco v3": {"moco": {"mechanism": Mechanism.moco_v3, "hidden_dim": 8}},
    "in parts": {"accumulate": 2},
}


def spoil_gradient(step, value):
    """One element of one gradient, in the next backward pass."""
    parameter = step.model.query_encoder.backbone.conv1.weight

    def spoil(gradient):
        handle.remove()
        gradient = gradient.clone()
        gradient[0, 1, 2, 1] = value
        return gradient

    handle = parameter.register_hook(spoil)


def spoil_view(step, value):
    """One pixel of the next views."""
    name = "_forward" if step._micro_batches else "make_views"
    views = getattr(step, name)

    def spoiled(*given):
        setattr(step, name, views)
        made = views(*given)
        made.query[0, 0, 0, 0] = value
        return made

    setattr(step, name, spoiled)


SPOILERS = {"gradient": spoil_gradient, "view": spoil_view}


@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS)
@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [
        ("sgd", Precision.float32),
        ("adam", Precision.bf16),
        ("adamw", Precision.fp16),
        ("lars", Precision.float32),
    ],
)
def test_a_bad_step_changes_nothing(optimizer, precision, spoil):
    if optimizer == "lars":
        require("timm")
    step = make_step(optimizer=OptimizerConfig(name=optimizer), precision=precision)
    step.scaler.scale.fill_(64.0)
    scales = precision is Precision.fp16
    for number, value in enumerate((torch.nan, -torch.inf, 1e38)):
        step(make_batch(2 * number), 0.03)
        before = {name: value.clone() for name, value in tensors_of(step).items()}
        spoil(step, value)
        step(make_batch(2 * number + 1), 0.03)
        after = tensors_of(step)
        moved = [name for name, old in before.items() if not torch.equal(after[name], old)]
        assert [name for name in moved if not name.startswith("scaler.")] == []
        assert after["scaler.scale"] == before["scaler.scale"] / (2 if scales else 1)
        faults = 0 if scales else number + 1  # loss scaling looks for its scale
        first = 2 if faults else 0
        assert step.guard.read() == (2 * number + 2, number + 1, faults, first, 1)
    step(make_batch(9), 0.03)
    assert all(tensor.isfinite().all() for tensor in tensors_of(step).values())


@pytest.mark.parametrize("change", MECHANISMS.values(), ids=MECHANISMS)
def test_a_bad_step_of_every_mechanism_changes_nothing(change):
    step = make_step(**change)
    step(make_batch(0), 0.03)
    before = {name: value.clone() for name, value in tensors_of(step).items()}
    spoil_view(step, torch.nan)
    step(make_batch(1), 0.03)
    assert [n for n, old in before.items() if not torch.equal(tensors_of(step)[n], old)] == []
    assert step.guard.read().faults == 1


def test_running_statistics_that_are_not_finite_are_a_fault():
    step = make_step()
    layer = step.model.key_encoder.backbone.bn1
    layer.running_var[0] = 1e38
    step(make_batch(0), 0.03)
    assert step.guard.read() == (1, 1, 1, 1, 1)


def test_a_guarded_step_learns_the_same_bits():
    step, plain = make_step(), make_step()
    plain.guard.step = lambda optimizer, _loss: optimizer.step()  # and nothing is masked
    for number in range(3):
        for one in (step, plain):
            one(make_batch(number), 0.03)
    found, expected = tensors_of(step), tensors_of(plain)
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


def guarded(*, scaling: bool, scale: float = 65536.0):
    weight = torch.nn.Parameter(torch.ones(3))
    scaler = LossScaler(torch.device("cpu"), enabled=scaling)
    scaler.scale.fill_(scale)
    guard, optimizer = StepGuard(scaler, []), torch.optim.SGD([weight], lr=0.1, fused=True)

    def take(gradient: float):
        weight.grad = torch.full((3,), gradient)
        guard.step(optimizer, torch.zeros(()))

    return guard, take


def test_loss_scaling_may_skip_steps_in_a_row_until_no_scale_helps():
    guard, take = guarded(scaling=True, scale=2.0**40)
    for _ in range(MOST_SKIPPED_IN_A_ROW - 1):
        take(torch.inf)
    assert guard.read().faults == 0
    take(torch.inf)
    assert guard.read() == (20, 20, 1, 20, 20)
    take(1.0)
    assert guard.read().in_a_row == 0


def test_at_the_smallest_scale_a_skipped_step_is_a_fault():
    guard, take = guarded(scaling=True, scale=4.0)
    take(torch.inf)
    take(torch.inf)
    assert guard.read().faults == 0
    take(torch.inf)  # the scale is 1
    assert guard.read() == (3, 3, 1, 3, 3)
    assert guard.scaler.scale == 1


def test_counts_start_anew():
    guard, take = guarded(scaling=False)
    for gradient in (1.0, torch.nan, 1.0, torch.inf):
        take(gradient)
    assert guard.read() == (4, 2, 2, 2, 1)
    guard.forget()
    assert guard.read() == (0, 0, 0, 0, 1)
    take(1e38)
    assert guard.read() == (1, 1, 1, 1, 2)
