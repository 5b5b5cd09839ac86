"""Loss scaling on the device against twins that decide on the host; steps without host reads."""

import copy
import math

import pytest
import torch

from fastmoco.moco.settings import Loss, Mechanism, Precision
from fastmoco.optim.loss_scaler import LossScaler
from fastmoco.optim.optimizers import build_optimizer
from fastmoco.optim.settings import OptimizerConfig
from fastmoco.optim.step_guard import StepGuard
from tests.optional import require
from tests.recording import HostReads
from tests.steps import differing, make_batch, make_step

OPTIMIZERS = ("sgd", "adam", "adamw", "lars")
CHANGES = {
    "": {},
    "symmetric": {"moco": {"symmetric": True, "batch_norm_splits": 2}},
    "end to end": {"moco": {"mechanism": Mechanism.end_to_end}},
    "memory bank": {"moco": {"mechanism": Mechanism.memory_bank}},
    "MoCo v3": {"moco": {"mechanism": Mechanism.moco_v3, "hidden_dim": 8}},
    "in parts": {"accumulate": 2, "model": {"activation_checkpointing": True}},
}


def optimizer_config(name):
    if name == "lars":
        require("timm")
    return OptimizerConfig(name=name)


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
@pytest.mark.parametrize(
    ("optimizer", "precision"),
    [
        ("sgd", Precision.float32),
        ("adam", Precision.bf16),
        *((o, Precision.fp16) for o in OPTIMIZERS),
    ],
)
def test_a_step_reads_nothing_of_the_device(optimizer, precision, change):
    step = make_step(optimizer=optimizer_config(optimizer), precision=precision, **change)
    step.model.loss = Loss.chunked
    with HostReads() as reads:
        step(make_batch(0), 0.03)
        step(make_batch(1), 0.02)
    assert reads.found == []


def test_a_host_read_is_noticed():
    step = make_step()
    with HostReads() as reads:
        step(make_batch(0), 0.03)[0].item()
    assert reads.found == ["aten._local_scalar_dense.default"]


class HostGuard:
    """The plain twin: looks at the gradients, and does or leaves all of it."""

    def __init__(self, step):
        self.model, self.scaler, self.skipped = step.model, step.scaler, False

    def remember(self):
        self.before = copy.deepcopy(self.model.state_dict())

    def step(self, optimizer, loss):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        if self.scaler.enabled:
            for gradient in gradients:
                gradient.mul_(1 / self.scaler.scale)
        squares = sum(float((gradient**2).sum()) for gradient in gradients)
        self.skipped = not (math.isfinite(squares) and math.isfinite(loss))
        if self.skipped:
            self.model.load_state_dict(self.before)
        else:
            optimizer.step()
        if self.scaler.enabled:
            tracked = self.scaler.growth_tracker.item() + 1
            self.scaler.scale.mul_(0.5 if self.skipped else 1.0)
            self.scaler.growth_tracker.fill_(0 if self.skipped else tracked)
        return torch.tensor(not self.skipped)


def use_host_guard(step):
    step.guard = HostGuard(step)
    after_step = step.model.after_step
    step.model.after_step = lambda *given: None if step.guard.skipped else after_step(*given)


COMBINED = [
    pytest.param(
        optimizer,
        CHANGES[change],
        id=f"{optimizer}-{change}",
        marks=[pytest.mark.full] if optimizer != "sgd" and change else [],
    )
    for optimizer in OPTIMIZERS
    for change in CHANGES
]


@pytest.mark.parametrize(("optimizer", "change"), COMBINED)
def test_overflown_steps_are_skipped_as_by_the_host(optimizer, change):
    """The first step overflows, where momentum does not exist yet, and a later one."""
    settings = {"optimizer": optimizer_config(optimizer), "precision": Precision.fp16, **change}
    step, twin = make_step(**settings), make_step(**settings)
    use_host_guard(twin)
    skipped = []
    for number in range(5):
        for one in (step, twin):
            one.scaler.scale.fill_(3e38 if number in (0, 3) else 1024.0)
            one(make_batch(number), 0.03)
        skipped.append(twin.guard.skipped)
        if number:  # Adam's state does not exist yet in a twin whose first step was left out
            assert differing(step, twin) == []
    assert skipped == [True, False, False, True, False]
    if hasattr(step.model, "queue"):
        assert step.model.queue.pointer.item() == 3 * 8 * (1 + step.model.symmetric) % 28


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_the_scale_moves_as_torchs(optimizer, monkeypatch):
    monkeypatch.setattr("fastmoco.optim.loss_scaler.GROWTH_INTERVAL", 3)
    weights = [torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2)]
    ours, theirs = LossScaler(torch.device("cpu"), enabled=True), torch.amp.GradScaler("cpu")
    theirs.set_growth_interval(3)
    optimizers = [build_optimizer([weight], OptimizerConfig(name=optimizer)) for weight in weights]
    for gradient in (torch.inf, 1.0, 2.0, torch.nan, 3.0, 1.0, 4.0, 1.0):
        for weight, scaler in zip(weights, (ours, theirs), strict=True):
            scale = scaler.scale if scaler is ours else scaler.scale(torch.ones(()))
            weight.grad = torch.full_like(weight, gradient) * scale
        learned = StepGuard(ours, []).step(optimizers[0], torch.zeros(()))
        theirs.step(optimizers[1])
        theirs.update()
        assert learned.item() == (gradient in (1.0, 2.0, 3.0, 4.0))
        assert ours.state() == theirs.state_dict()
        assert torch.equal(*weights)
    assert ours.scale.item() == 65536.0 / 2 / 2 * 2


def test_a_checkpoint_of_torchs_scaler_goes_on():
    theirs = torch.amp.GradScaler("cpu", init_scale=256.0)
    ours = LossScaler(torch.device("cpu"), enabled=True)
    theirs.scale(torch.ones(()))
    address = ours.scale.data_ptr()
    ours.restore({**theirs.state_dict(), "_growth_tracker": 7})
    assert (ours.scale.item(), ours.growth_tracker.item()) == (256.0, 7)
    assert ours.scale.data_ptr() == address
    assert LossScaler(torch.device("cpu"), enabled=False).state() == {}
    ours.restore({})  # of a run that did not scale
    assert ours.scale.item() == 256.0
