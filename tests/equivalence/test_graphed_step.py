"""A recorded step against the plain one: on a CPU by a tape of its operations, on a GPU for real.

The tape is as strict as a CUDA graph: what the host computed while recording stays as it was, and
tensors are read and written where they lay. So equality shows that nothing of a step is frozen.
"""

import re

import pytest
import torch

from fastmoco.errors import UsageError
from fastmoco.moco.model import MoCo
from fastmoco.moco.settings import Loss, Mechanism, Precision
from fastmoco.optim.settings import OptimizerConfig
from fastmoco.pipelines.policies import POLICIES
from fastmoco.ranks import ALONE, Ranks
from fastmoco.runs.checkpoint import flatten_optimizer, restore_optimizer
from fastmoco.train import acceleration
from fastmoco.train.acceleration import WARM_UP_STEPS, CudaRecording, GraphedStep
from fastmoco.train.settings import CudaGraph, TrainConfig
from tests.recording import TapeRecording
from tests.steps import TINY_RUN, differing, make_batch, make_step, make_trainer, tensors_of

STEPS = 8


def rate(number):
    return 0.03 * (1 + number)


def graphed(step):
    return GraphedStep(step, TapeRecording(lambda: tensors_of(step).values()))


def train(step, start, stop, *, device="cpu"):
    """Metrics of each step; its batch is overwritten afterwards, as a loader's buffers are."""
    found, batches = [], []
    for number in range(start, stop):
        getattr(step, "step", step).model.set_progress(number / 20)
        batch = make_batch(number, device=device)
        found.append(step(batch, rate(number)).clone())
        batch.crops.zero_()
        batch.draw_key.zero_()
        batch.sample_id.zero_()
        batches.append(batch)
    assert not any(batch.crops.any() for batch in batches)  # the loader's, and left alone
    return torch.stack(found)


CASES = {
    "sgd": {},
    "adam": {"optimizer": OptimizerConfig(name="adam")},
    "adamw": {"optimizer": OptimizerConfig(name="adamw", exclude_bias_and_norm=True)},
    "fp16": {"precision": Precision.fp16},
    "bf16, split": {"precision": Precision.bf16, "moco": {"batch_norm_splits": 2}},
    "momentum that moves": {"moco": {"final_momentum": 1.0}},
    "end to end": {"moco": {"mechanism": Mechanism.end_to_end}},
    "memory bank": {"moco": {"mechanism": Mechanism.memory_bank}},
    "MoCo v3, fp16": {
        "moco": {"mechanism": Mechanism.moco_v3, "hidden_dim": 8},
        "precision": Precision.fp16,
        "optimizer": OptimizerConfig(name="adamw"),
    },
    "symmetric, in parts": {
        "moco": {"symmetric": True},
        "accumulate": 2,
        "optimizer": OptimizerConfig(name="adam"),
    },
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_a_recorded_step_is_the_plain_one(settings):
    plain, step = make_step(**settings), make_step(**settings)
    recorded = graphed(step)
    recording = recorded._recording
    assert torch.equal(train(recorded, 0, STEPS), train(plain, 0, STEPS))
    assert differing(step, plain) == []
    assert (recording.warm_ups, recording.replays) == (WARM_UP_STEPS, STEPS - WARM_UP_STEPS)


@pytest.mark.filterwarnings("ignore:the step cannot be captured")
def test_steps_before_the_first_replay_alone_are_known_as_warm_up():
    step = make_step()
    recorded, refused = graphed(make_step()), GraphedStep(step, Refusing(step, CAPTURING))
    found = []
    for number in range(6):
        train(recorded, number, number + 1)
        train(refused, number, number + 1)
        found.append((recorded.warms_up, refused.warms_up))
    assert found == 4 * [(True, True)] + 2 * [(False, False)]


def test_overflow_in_a_recorded_step_skips_it():
    plain, step = (make_step(precision=Precision.fp16) for _ in range(2))
    recorded = graphed(step)
    for one, scaler, one_guard in (
        (plain, plain.scaler, plain.guard),
        (recorded, step.scaler, step.guard),
    ):
        train(one, 0, 5)
        scaler.scale.fill_(3e38)
        before = {name: value.clone() for name, value in tensors_of(step).items()}
        train(one, 5, 6)
        assert one_guard.found_inf.item() == 1
        assert scaler.scale.item() == pytest.approx(1.5e38)
        scaler.scale.fill_(1024.0)
    moved = {
        name for name, value in tensors_of(step).items() if not torch.equal(value, before[name])
    }
    assert moved
    assert all("scaler" in name for name in moved)
    assert torch.equal(train(recorded, 6, 8), train(plain, 6, 8))
    assert differing(step, plain) == []


@pytest.mark.parametrize("saved", [2, 6])
def test_a_resumed_run_warms_up_again_and_learns_the_same(saved):
    """As a run killed in the middle of an epoch: its process, and what it recorded, are gone."""
    settings = {"precision": Precision.fp16, "optimizer": OptimizerConfig(name="adamw")}
    whole, first, second = (make_step(**settings) for _ in range(3))
    expected = train(graphed(whole), 0, 12)
    train(graphed(first), 0, saved)
    second.model.load_state_dict(first.model.state_dict())
    restore_optimizer(second.optimizer, flatten_optimizer(first.optimizer))
    second.scaler.restore(first.scaler.state())
    again = graphed(second)
    assert torch.equal(train(again, saved, 12), expected[saved:])
    assert differing(second, whole) == []
    assert again._recording.warm_ups == WARM_UP_STEPS


class Refusing(TapeRecording):
    """Fails in the middle of a step that it has recorded, which left gradients behind."""

    def __init__(self, step, error):
        super().__init__(lambda: tensors_of(step).values())
        self.error = error

    def record(self, work):
        super().record(work)
        raise self.error


CAPTURING = RuntimeError("operation not permitted when stream is capturing\nmore")
ODD = {
    "driver": (CAPTURING, "operation not permitted when stream is capturing"),
    "no words": (NotImplementedError(), "NotImplementedError"),
    "python": (KeyError("layer4"), "'layer4'"),
    "compiler": (SyntaxError("bad PTX"), "bad PTX"),
    "memory": (torch.OutOfMemoryError("CUDA out of memory"), "CUDA out of memory"),
    "disk": (OSError(28, "No space left on device"), "No space left on device"),
}


@pytest.mark.parametrize(("error", "reason"), ODD.values(), ids=ODD)
def test_a_step_that_cannot_be_recorded_goes_on_without(error, reason):
    """Each batch is learned from once, the one of the failed recording too."""
    plain, step = make_step(), make_step()
    recording = Refusing(step, error)
    recorded = GraphedStep(step, recording)
    with pytest.warns(UserWarning, match=re.escape("graph and runs without (")) as warned:
        found = train(recorded, 0, 6)
    assert [reason in str(one.message) for one in warned] == [True]
    assert torch.equal(found, train(plain, 0, 6))
    assert differing(step, plain) == []
    assert (recording.warm_ups, recording.abandoned, recording.replays) == (WARM_UP_STEPS, 1, 0)


def test_ctrl_c_while_recording_is_no_failure_of_the_graph():
    step = make_step()
    recorded = GraphedStep(step, Refusing(step, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        train(recorded, 0, 4)


def test_a_step_that_must_be_recorded_says_what_to_do():
    step = make_step()
    recorded = GraphedStep(step, Refusing(step, CAPTURING), required=True)
    with pytest.raises(ValueError, match=r"capturing\); set train\.cuda_graph=never"):
        train(recorded, 0, 4)
    assert all(parameter.grad is None for parameter in step.model.learnable())


@pytest.mark.parametrize(
    ("choice", "device", "ranks", "change", "captured", "words"),
    [
        ("auto", "cuda", ALONE, {}, True, "CUDA graph after 3 steps"),
        ("always", "cuda", ALONE, {}, True, "CUDA graph"),
        ("never", "cuda", ALONE, {}, False, "train.cuda_graph=never"),
        ("auto", "cpu", ALONE, {}, False, ""),
        ("auto", "cuda", Ranks(0, 2), {}, False, "several devices"),
        ("auto", "cuda", ALONE, {"name": "lars"}, False, "optimizer.name=lars"),
        ("auto", "cuda", ALONE, {"pool": True}, False, "policy.pool"),
        ("auto", "cuda", ALONE, {"profile": True}, False, "train.profile"),
    ],
)
def test_where_a_step_is_captured(choice, device, ranks, change, captured, words):
    cfg = TrainConfig()
    cfg.train.cuda_graph = CudaGraph(choice)
    cfg.train.profile = change.get("profile", False)
    cfg.optimizer.name = change.get("name", "sgd")
    if change.get("pool"):
        cfg.policy = POLICIES["imagenette_pool"]
    found, text = acceleration.resolve_cuda_graph(cfg, torch.device(device), ranks)
    assert found == captured
    assert words in text
    assert bool(text) == (device == "cuda")


@pytest.mark.parametrize(
    ("device", "ranks", "words"),
    [("cpu", ALONE, "the device is cpu"), ("cuda", Ranks(1, 2), "several devices")],
)
def test_a_graph_that_must_be_and_cannot_is_refused(device, ranks, words):
    cfg = TrainConfig()
    cfg.train.cuda_graph = CudaGraph.always
    with pytest.raises(UsageError, match=f"train.cuda_graph=always is not possible: {words}"):
        acceleration.resolve_cuda_graph(cfg, torch.device(device), ranks)


RUNS = {
    "as it comes": [],
    "float32": ["precision=float32"],
    "adam": ["optimizer.name=adam"],
    "adamw": ["optimizer.name=adamw", "optimizer.exclude_bias_and_norm=true"],
    "fp16": ["precision=fp16"],
    "bf16, split": ["precision=bf16", "moco.batch_norm_splits=2"],
    "momentum that moves": ["moco.final_momentum=1.0"],
    "end to end": ["moco.mechanism=end_to_end"],
    "memory bank": ["moco.mechanism=memory_bank"],
    "MoCo v3, fp16": [
        "precision=fp16",
        "moco.mechanism=moco_v3",
        "moco.hidden_dim=8",
        "optimizer.name=adamw",
    ],
    "symmetric, in parts": [
        "moco.symmetric=true",
        "train.accumulate=2",
        "optimizer.name=adam",
    ],
}
"""Options of runs, which the GPU's tests build as `train` does: loss, queue and precision too."""


def run_step(*overrides):
    """The step of a run on a GPU, eager or compiled, without its graph."""
    options = [*TINY_RUN, "device=cuda", "train.cuda_graph=never", *overrides]
    step = make_trainer(options).step
    with_queue = isinstance(step.model, MoCo)
    assert not with_queue or step.model.loss is Loss.fused
    assert not with_queue or step.model.queue.keys.dtype is torch.float16
    return step


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("overrides", RUNS.values(), ids=RUNS)
def test_a_captured_step_on_a_gpu(overrides, compiled, monkeypatch):
    """20 steps bit for bit: the same kernels in the same order, made deterministic."""
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    compiling = f"train.compile={'always' if compiled else 'never'}"
    plain, step = (run_step(*overrides, compiling) for _ in range(2))
    recorded = GraphedStep(step, CudaRecording(torch.device("cuda")), required=True)
    ours, theirs = (train(one, 0, 20, device="cuda") for one in (recorded, plain))
    assert torch.equal(ours, theirs)
    assert differing(step, plain) == []


@pytest.mark.gpu
def test_a_captured_step_resumes_on_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "deterministic", True)
    whole, first, second = (run_step("precision=fp16") for _ in range(3))

    def captured(step):
        return GraphedStep(step, CudaRecording(torch.device("cuda")), required=True)

    expected = train(captured(whole), 0, 14, device="cuda")
    train(captured(first), 0, 7, device="cuda")
    second.model.load_state_dict(first.model.state_dict())
    restore_optimizer(second.optimizer, flatten_optimizer(first.optimizer))
    second.scaler.restore(first.scaler.state())
    assert torch.equal(train(captured(second), 7, 14, device="cuda"), expected[7:])
    assert differing(second, whole) == []
