"""A batch in micro-batches against the undivided step, and its memory."""

import pytest
import torch
from torch._dynamo.utils import counters

from fastmoco.data.settings import DataConfig
from fastmoco.errors import UsageError
from fastmoco.moco.batchnorm import SplitBatchNorm2d
from fastmoco.moco.settings import BatchNorm, Mechanism, MocoConfig, Precision, Pretext, Stem
from fastmoco.optim.settings import OptimizerConfig
from fastmoco.ranks import Ranks
from fastmoco.train.checks import check_config
from fastmoco.train.settings import Compile, Gradients, LoopConfig, TrainConfig
from tests.equivalence.test_moco_brute_force import smooth
from tests.steps import TINY_RUN, make_batch, make_step, make_trainer, tensors_of

STEPS = 5
# Mild: a harsh setting amplifies rounding from step to step.
SGD = OptimizerConfig(learning_rate=0.01)
# Last maps of 2 x 2: batch norm over 4 values alone would make rounding grow tenfold a step.
WIDE_MAPS = {"stem": Stem.small}


def train(step, *, steps=STEPS):
    metrics = [step(make_batch(number), 0.01) for number in range(steps)]
    return {"metrics": torch.stack(metrics), **tensors_of(step)}


def assert_same(ours, expected, tolerance):
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        # The step reports in float32.
        bound = 2e-4 if name == "metrics" else tolerance
        torch.testing.assert_close(ours[name], value, rtol=bound, atol=bound, msg=name)


def both(accumulate, moco=None, *, whole=None, **settings):
    """States after the steps in micro-batches, and undivided with as many groups."""
    settings = {"model": WIDE_MAPS, "optimizer": SGD, **settings}
    parts = make_step(accumulate=accumulate, moco=moco, **settings)
    splits = (moco or {}).get("batch_norm_splits", 1)
    undivided = {**(moco or {}), "batch_norm_splits": max(splits, accumulate), **(whole or {})}
    return parts, make_step(moco=undivided, **settings)


@pytest.mark.parametrize(
    ("accumulate", "moco"),
    [
        (2, {}),
        (4, {}),
        (2, {"batch_norm_splits": 4}),
        (2, {"symmetric": True}),
        (2, {"batch_norm": BatchNorm.shuffled}),
        (2, {"pretext": Pretext.cross_channel, "symmetric": True}),
    ],
    ids=["2", "4", "2 of split batch norm", "symmetric", "shuffled", "cross-channel"],
)
def test_micro_batches_are_groups_of_batch_norm(accumulate, moco):
    model = dict(WIDE_MAPS)
    if "pretext" in moco:
        model |= {"encoder": "halves:resnet18", "width": 8, "activation_checkpointing": True}
    parts, whole = both(accumulate, moco, model=model, dtype=torch.float64)
    prefix = "backbone.lightness" if "pretext" in moco else "backbone"
    layer = parts.model.query_encoder.get_submodule(f"{prefix}.bn1")
    assert isinstance(layer, SplitBatchNorm2d) == ("batch_norm_splits" in moco)
    assert parts.model.shuffle_keys
    ours, expected = train(parts), train(whole)
    assert_same(ours, expected, 1e-10)
    assert ours[f"query_encoder.{prefix}.bn1.num_batches_tracked"] == STEPS * parts_terms(parts)
    name = f"key_encoder.{prefix}.conv1.weight"
    start = tensors_of(both(accumulate, moco, model=model, dtype=torch.float64)[0])
    assert (ours[name] - start[name]).abs().max() > 1e-5


def parts_terms(step):
    return 2 if step.model.symmetric else 1


def test_micro_batches_in_float32():
    """Smooth (no ReLU), as a value that rounds to the other side of the kink is no small error."""
    parts, whole = both(2)
    for step in (parts, whole):
        smooth(step.model)
    assert_same(train(parts), train(whole), 1e-5)


@pytest.mark.parametrize("batch_norm", ["evaluating", "eman"])
def test_micro_batches_are_the_batch_where_batch_norm_sees_no_batch(batch_norm):
    moco = {"batch_norm": BatchNorm.plain}
    parts, whole = both(4, moco, whole=moco, dtype=torch.float64)
    for step in (parts, whole):
        step.model.query_encoder.eval()
        step.model.key_encoder.eval()
        step.model.running_keys = batch_norm == "eman"
    assert not parts.model.shuffle_keys
    assert_same(train(parts), train(whole), 1e-10)


def test_plain_and_eman_groups_are_micro_batches_without_shuffling():
    for batch_norm in (BatchNorm.plain, BatchNorm.eman):
        parts, whole = both(
            2, {"batch_norm": batch_norm}, whole={"batch_norm": BatchNorm.auto}, dtype=torch.float64
        )
        whole.model.shuffle_keys = False
        whole.model.running_keys = batch_norm is BatchNorm.eman
        whole.model.train()
        assert_same(train(parts), train(whole), 1e-10)


@pytest.mark.full
def test_compiled_micro_batches_are_eager_ones(compile_without_inductor):
    compile_without_inductor()
    counters.clear()
    compiled, eager = (
        train(
            make_step(
                accumulate=2, optimizer=SGD, policy="cifar", dtype=torch.float64, compiled=compiled
            ),
            steps=3,
        )
        for compiled in (True, False)
    )
    assert_same(compiled, eager, 1e-6)  # colors are float32 and rounded otherwise
    assert counters["stats"]["unique_graphs"] == 3  # views, keys, queries: no recompilation


def test_micro_batches_scale_and_skip_as_the_batch_does():
    parts, whole = both(2, precision=Precision.fp16)
    for step in (parts, whole):
        smooth(step.model)
        step.scaler.scale.fill_(3e38)
    ours, expected = train(parts, steps=1), train(whole, steps=1)
    assert ours["scaler.scale"] == expected["scaler.scale"] == pytest.approx(1.5e38)
    assert torch.equal(ours["queue.keys"], expected["queue.keys"])


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"batch of 8 cannot be cut into 3.*train\.accumulate"):
        make_step(accumulate=3, moco={"batch_norm": BatchNorm.plain})(make_batch(0), 0.1)


@pytest.mark.parametrize(
    ("batch", "devices", "accumulate", "splits", "words"),
    [
        (8, 1, 16, 1, "train.accumulate must divide the 8 images of a device, got 16"),
        (8, 1, 3, 1, "train.accumulate must divide the 8 images of a device, got 3"),
        (8, 2, 8, 1, "train.accumulate must divide the 4 images of a device, got 8"),
        (8, 1, 8, 1, "groups of 2 or more on 1 device with train.accumulate=8"),
        (24, 1, 4, 6, "6 groups do not divide evenly among 1 device with train.accumulate=4"),
        (24, 2, 2, 6, "set it to a multiple of 4, or to 1"),
    ],
)
def test_what_cannot_be_cut_is_refused(tmp_path, batch, devices, accumulate, splits, words):
    cfg = TrainConfig(
        data=DataConfig(train=tmp_path),
        global_batch_size=batch,
        moco=MocoConfig(batch_norm_splits=splits),
        train=LoopConfig(accumulate=accumulate),
    )
    with pytest.raises(UsageError, match=words):
        check_config(cfg, Ranks(0, devices))


def test_micro_batches_have_their_gradients_averaged_once(tmp_path):
    train = LoopConfig(accumulate=2, gradients=Gradients.ddp)
    cfg = TrainConfig(data=DataConfig(train=tmp_path), train=train)
    words = r"train\.accumulate=2 needs train\.gradients=flat, got ddp; set one"
    with pytest.raises(UsageError, match=words):
        check_config(cfg)


def test_overlapped_gradients_need_an_eager_step(tmp_path):
    train = LoopConfig(compile=Compile.always, gradients=Gradients.ddp_bf16)
    cfg = TrainConfig(data=DataConfig(train=tmp_path), train=train)
    with pytest.raises(UsageError, match=r"train\.compile=always needs train\.gradients=flat, got"):
        check_config(cfg)


def test_no_micro_batches_are_refused():
    with pytest.raises(UsageError, match=r"train\.accumulate must be 1 or more, got 0"):
        LoopConfig(accumulate=0)


class Activations:
    """Counts the bytes that autograd keeps alive; the most so far is `peak`."""

    def __init__(self):
        self.alive = self.peak = 0

    def pack(self, tensor):
        kept = Kept(tensor, self)
        self.alive += kept.size
        self.peak = max(self.peak, self.alive)
        return kept


class Kept:
    def __init__(self, tensor, activations):
        self.tensor, self.activations = tensor, activations
        self.size = tensor.nbytes

    def __del__(self):
        self.activations.alive -= self.size


def test_one_micro_batch_has_activations_at_a_time():
    peaks = []
    for accumulate, symmetric in ((4, False), (1, False), (4, True)):
        step, seen = (
            make_step(accumulate=accumulate, moco={"symmetric": symmetric, "queue_size": 512}),
            Activations(),
        )
        with torch.autograd.graph.saved_tensors_hooks(seen.pack, lambda kept: kept.tensor):
            step(make_batch(0, size=256), 0.01)
        assert seen.alive == 0
        peaks.append(seen.peak)
    quarter, whole, symmetric = peaks
    assert quarter < 0.3 * whole
    assert symmetric == quarter


@pytest.mark.gpu
def test_micro_batches_need_less_memory_on_a_gpu():
    peaks = []
    for accumulate in (4, 1):
        options = ["device=cuda", "model.width=64", "global_batch_size=2048"]
        options += ["moco.queue_size=4096", f"train.accumulate={accumulate}"]
        step = make_trainer([*TINY_RUN, *options], num_samples=2048).step
        batch = make_batch(0, size=2048, device="cuda")
        step(batch, 0.01)
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step(batch, 0.01)
        peaks.append(torch.cuda.max_memory_allocated() - before)
    assert peaks[0] < 0.5 * peaks[1]


def test_other_mechanisms_are_refused(tmp_path):
    cfg = TrainConfig(data=DataConfig(train=tmp_path), train=LoopConfig(accumulate=2))
    cfg.moco.mechanism = Mechanism.end_to_end
    with pytest.raises(UsageError, match=r"train\.accumulate=2 is for moco\.mechanism=moco"):
        check_config(cfg)
