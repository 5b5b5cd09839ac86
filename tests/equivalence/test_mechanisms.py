"""Each mechanism against its paper, written out as a plain loop; compiled; on two ranks.

In float64, where the order of sums changes nothing that a few steps would amplify beyond 1e-10.
"""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters
from torch.nn import functional as F

from fastmoco.draws.device import fork, stream_integers
from fastmoco.draws.host import draw_keys
from fastmoco.draws.streams import Draw
from fastmoco.moco import build
from fastmoco.moco.batchnorm import SynchronizedBatchNorm1d, SynchronizedBatchNorm2d
from fastmoco.moco.settings import BatchNorm, Mechanism, MocoConfig, ModelConfig, Negatives
from fastmoco.optim.optimizers import build_optimizer
from fastmoco.pipelines.augment import augment_views
from fastmoco.pipelines.contract import Batch
from fastmoco.pipelines.policies import POLICIES, Policy
from fastmoco.ranks import ALONE
from fastmoco.train.metrics import STEP_METRICS
from fastmoco.train.step import TrainStep
from tests.compiling import require_compiler
from tests.equivalence.test_moco_brute_force import MEAN, STD
from tests.equivalence.test_ranks import SETTINGS, own_batch
from tests.ranks import run_ranks

STEPS, BATCH, SAMPLES, DIM, HIDDEN, NEGATIVES = 6, 8, 21, 16, 24, 13
TEMPERATURE, MOMENTUM, BANK_MOMENTUM = 0.2, 0.8, 0.6
STILL = ("predictor.1.running_mean", "encoder.head.7.bias")
"""What does not move: the mean of what a batch norm gives, 0, and the shift of the last one of
Fast-MoCo's projector, which the predictor's batch norm subtracts again."""
METRICS = [STEP_METRICS.index(n) for n in ("loss", "accuracy_top1", "negative_similarity")]


class SmallEncoder(nn.Module):
    """Quick to run and to compile; stands for a ResNet."""

    feature_dim = 12

    def __init__(self, norm_layer):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, stride=2, padding=1, bias=False)
        self.bn1, self.bn2 = norm_layer(6), norm_layer(12)
        self.conv2 = nn.Conv2d(6, 12, 3, stride=2, padding=1, bias=False)
        self.relu = nn.ReLU()

    def forward(self, images):
        x = self.relu(self.bn1(self.conv1(images)))
        return self.relu(self.bn2(self.conv2(x))).mean((2, 3))


def make_model(mechanism, ranks=ALONE, dtype=torch.float64, **changes):
    torch.manual_seed(0)
    options = {"mechanism": Mechanism(mechanism), "dim": DIM, "temperature": TEMPERATURE}
    options |= {"queue_size": NEGATIVES, "momentum": MOMENTUM}
    own = {"moco_v3": {"hidden_dim": HIDDEN}, "memory_bank": {"bank_momentum": BANK_MOMENTUM}}
    own["fast_moco"] = own["moco_v3"]
    options |= own.get(mechanism, {})
    original = build.build_encoder
    build.build_encoder = lambda *_, norm_layer, **__: SmallEncoder(norm_layer)
    try:
        moco = MocoConfig(**(options | changes))
        model = build.build_model(ModelConfig(), moco, ranks, num_samples=SAMPLES)
    finally:
        build.build_encoder = original
    return model.to(dtype=dtype, memory_format=torch.channels_last)


def batches():
    """Ids come again: a bank's entry is looked up after it was written."""
    generator = torch.Generator().manual_seed(5)
    for step in range(STEPS):
        ids = torch.randperm(SAMPLES, generator=generator)[:BATCH]
        keys = torch.from_numpy(draw_keys(3, step, ids.numpy()))
        crops = torch.randint(256, (BATCH, 2, 16, 16, 3), generator=generator).to(torch.uint8)
        boxes = torch.zeros(BATCH, 2, 4, dtype=torch.int32)
        yield Batch(crops, boxes, ids, keys, torch.full((BATCH,), -1), 0.0)


def train_model(model, *, policy=POLICIES["moco_v2"], compiled=False):
    """Metrics of each step, and the state after the last."""
    step = TrainStep(
        model,
        build_optimizer(model.learnable(), SETTINGS),
        policy=policy,
        mean=MEAN,
        std=STD,
        compiled=compiled,
    )
    metrics = []
    for done, batch in enumerate(batches()):
        model.set_progress(done / STEPS)
        metrics.append(step(own_batch(batch, model.ranks), SETTINGS.learning_rate)[METRICS])
    return {"metrics": torch.stack(metrics), **model.state_dict()}


class Textbook:
    """What every loop needs: views, SGD, and the figures of a step, from lists of similarities."""

    def __init__(self, *modules):
        self.parameters = [p for module in modules for p in module.parameters()]
        self.velocity = [torch.zeros_like(p) for p in self.parameters]
        self.metrics = []

    @staticmethod
    def views(batch):
        return augment_views(
            batch.crops, batch.draw_key, POLICIES["moco_v2"], MEAN, STD, torch.float64
        )

    def contrast(self, pairs):
        """Mean of ``-log(e^(p/T) / (e^(p/T) + sum e^(n/T)))``; pairs of p and list of n."""
        losses, hits, negatives = [], [], []
        for positive, others in pairs:
            total = torch.exp(positive / TEMPERATURE) + sum(
                torch.exp(other / TEMPERATURE) for other in others
            )
            losses.append(-torch.log(torch.exp(positive / TEMPERATURE) / total))
            hits.append(all(positive >= other for other in others))
            negatives += [other.item() for other in others]
        loss = sum(losses) / len(losses)
        figures = loss.item(), 100 * sum(hits) / len(hits), sum(negatives) / len(negatives)
        self.metrics.append(torch.tensor(figures))
        return loss

    def learn(self, loss):
        gradients = torch.autograd.grad(loss, self.parameters)
        with torch.no_grad():
            for p, v, g in zip(self.parameters, self.velocity, gradients, strict=True):
                v.mul_(SETTINGS.sgd_momentum).add_(g + SETTINGS.weight_decay * p)
                p.sub_(SETTINGS.learning_rate * v)


def named(prefix, module):
    return {f"{prefix}.{name}": value for name, value in module.state_dict().items()}


def simclr(model):
    """Algorithm 1 of arXiv:2002.05709: z_1 and z_2 of the first image, and so on."""
    f = copy.deepcopy(model.query_encoder)
    book = Textbook(f)
    for batch in batches():
        both = F.normalize(f(torch.cat(book.views(batch))), dim=1)
        z = [both[view * BATCH + k] for k in range(BATCH) for view in range(2)]
        partner = [i + 1 if i % 2 == 0 else i - 1 for i in range(2 * BATCH)]
        pairs = [
            (
                z[i] @ z[partner[i]],
                [z[i] @ z[k] for k in range(2 * BATCH) if k not in (i, partner[i])],
            )
            for i in range(2 * BATCH)
        ]
        book.learn(book.contrast(pairs))
    return book.metrics, named("query_encoder", f)


def figure_3_end_to_end(model):
    """Queries of one view, keys of the other, gradients to both (arXiv:1911.05722, section 3.3)."""
    f = copy.deepcopy(model.query_encoder)
    book = Textbook(f)
    for batch in batches():
        q, k = F.normalize(f(torch.cat(book.views(batch))), dim=1).chunk(2)
        pairs = [(q[i] @ k[i], [q[i] @ k[j] for j in range(BATCH) if j != i]) for i in range(BATCH)]
        book.learn(book.contrast(pairs))
    return book.metrics, named("query_encoder", f)


def memory_bank(model):
    """Arxiv:1805.01978, section 3, by InfoNCE: an entry for each image, moved when it is seen."""
    f, bank = copy.deepcopy(model.query_encoder), [row.clone() for row in model.bank]
    book = Textbook(f)
    for batch in batches():
        ids = batch.sample_id.tolist()
        q = F.normalize(f(book.views(batch)[0]), dim=1)
        others = [i for i in range(SAMPLES) if i not in ids]
        stream = fork(batch.draw_key[:1], Draw.NEGATIVES, 0)
        drawn = [others[i] for i in stream_integers(stream, 0, NEGATIVES, len(others))[0]]
        pairs = [(q[n] @ bank[i], [q[n] @ bank[j] for j in drawn]) for n, i in enumerate(ids)]
        book.learn(book.contrast(pairs))
        for n, i in enumerate(ids):
            moved = BANK_MOMENTUM * bank[i] + (1 - BANK_MOMENTUM) * q[n].detach()
            bank[i] = moved / moved.norm()
    return book.metrics, {**named("query_encoder", f), "bank": torch.stack(bank)}


def moco_v3(model):
    """Algorithm 1 of arXiv:2104.02057; m as section 4 says, the predictor apart from f_q."""
    f_q, f_k = copy.deepcopy(model.query_encoder), copy.deepcopy(model.key_encoder)
    predictor = copy.deepcopy(model.predictor)
    book = Textbook(f_q, predictor)
    for done, batch in enumerate(batches()):
        m = 1 - (1 - MOMENTUM) * (1 + math.cos(math.pi * done / STEPS)) / 2
        x1, x2 = book.views(batch)
        q1, q2 = (F.normalize(predictor(f_q(x)), dim=1) for x in (x1, x2))
        with torch.no_grad():
            k1, k2 = (F.normalize(f_k(x), dim=1) for x in (x1, x2))
        halves = [
            [(q[i] @ k[i], [q[i] @ k[j] for j in range(BATCH) if j != i]) for i in range(BATCH)]
            for q, k in ((q1, k2), (q2, k1))
        ]
        # The metrics are of all queries; ctr(q1, k2) + ctr(q2, k1) is the sum, 2 tau times each.
        mean = book.contrast(halves[0] + halves[1])
        book.learn(2 * TEMPERATURE * 2 * mean)
        with torch.no_grad():
            for p_k, p_q in zip(f_k.parameters(), f_q.parameters(), strict=True):
                p_k.copy_(m * p_k + (1 - m) * p_q)
    state = named("query_encoder", f_q) | named("key_encoder", f_k) | named("predictor", predictor)
    return book.metrics, state


def fast_moco(model):
    """Section 3 of arXiv:2207.08220: split, encode, combine; keys of complete views."""
    f_q, f_k = copy.deepcopy(model.query_encoder), copy.deepcopy(model.key_encoder)
    predictor = copy.deepcopy(model.predictor)
    book = Textbook(f_q, predictor)

    def queries(view):
        """Six of each image, in its order; the batch passes together, for batch norm."""
        corners = [(top, left) for top in (0, 8) for left in (0, 8)]
        patches = [image[:, t : t + 8, left : left + 8] for image in view for t, left in corners]
        features = f_q.backbone(torch.stack(patches))
        means = [
            (features[4 * i + a] + features[4 * i + b]) / 2
            for i in range(BATCH)
            for a in range(4)
            for b in range(a + 1, 4)
        ]
        return F.normalize(predictor(f_q.head(torch.stack(means))), dim=1)

    for batch in batches():
        views = book.views(batch)
        q = [queries(view) for view in views]
        with torch.no_grad():
            k = [F.normalize(f_k(view), dim=1) for view in views]
        pairs = [
            (one @ other[i // 6], [one @ other[j] for j in range(BATCH) if j != i // 6])
            for own, other in ((q[0], k[1]), (q[1], k[0]))
            for i, one in enumerate(own)
        ]
        book.learn(book.contrast(pairs))
        with torch.no_grad():
            for p_k, p_q in zip(f_k.parameters(), f_q.parameters(), strict=True):
                p_k.copy_(MOMENTUM * p_k + (1 - MOMENTUM) * p_q)
    state = named("query_encoder", f_q) | named("key_encoder", f_k) | named("predictor", predictor)
    return book.metrics, state


CASES = {
    "end_to_end": (simclr, {}),
    "other_view": (figure_3_end_to_end, {"negatives": Negatives.other_view}),
    "memory_bank": (memory_bank, {}),
    "moco_v3": (moco_v3, {}),
    "fast_moco": (fast_moco, {}),
}


def case_model(case, ranks=ALONE, **more):
    mechanism = "end_to_end" if case == "other_view" else case
    return make_model(mechanism, ranks, **CASES[case][1], **more)


@pytest.mark.parametrize("case", CASES)
def test_steps_equal_the_textbook(case):
    model = case_model(case)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    metrics, expected = CASES[case][0](model)
    state = train_model(model)
    # The step reports its figures in float32.
    torch.testing.assert_close(state.pop("metrics"), torch.stack(metrics), rtol=1e-5, atol=1e-6)
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(state[name], value, rtol=1e-10, atol=1e-10, msg=name)
        if value.is_floating_point() and not name.endswith(STILL):
            assert (value - before[name]).abs().max() > 1e-4, name
    assert len({round(value.item(), 4) for value in torch.stack(metrics)[:, 0]}) == STEPS


@pytest.mark.parametrize(
    ("case", "backend"),
    [
        ("end_to_end", "aot_eager"),
        ("memory_bank", "aot_eager"),
        pytest.param("memory_bank", "inductor", marks=pytest.mark.full),
        pytest.param("moco_v3", "aot_eager", marks=pytest.mark.full),
        pytest.param("fast_moco", "aot_eager", marks=pytest.mark.full),
    ],
)
def test_compiled_is_eager(case, backend, monkeypatch):
    """Views that are only flipped: augmentation and its compilation are tested elsewhere.

    Without kernels (aot_eager) where they would take 15 to 30 s: what is captured is tested, what a
    bank draws and looks up also as kernels.
    """
    require_compiler()
    torch.compiler.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    counters.clear()
    eager, compiled = (
        train_model(case_model(case), policy=Policy(), compiled=compiled)
        for compiled in (False, True)
    )
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]
    for name, value in eager.items():
        tolerance = 1e-6 if name == "metrics" else 1e-10
        torch.testing.assert_close(compiled[name], value, rtol=tolerance, atol=tolerance, msg=name)


def train_on_rank(ranks):
    changes = {"batch_norm": BatchNorm.synchronized}
    return {case: train_model(case_model(case, ranks, **changes)) for case in CASES}


@pytest.fixture(scope="module")
def two_ranks():
    first, second = run_ranks(train_on_rank)
    for case, state in first.items():
        differing = [n for n, value in state.items() if not torch.equal(value, second[case][n])]
        assert differing == [], case  # also bank, running statistics and metrics
    return first


@pytest.mark.parametrize("case", CASES)
def test_two_ranks_are_one_rank(two_ranks, case):
    expected = train_model(case_model(case))
    for name, value in two_ranks[case].items():
        tolerance = 1e-5 if name == "metrics" else 1e-10
        torch.testing.assert_close(
            value, expected[name], rtol=tolerance, atol=tolerance, msg=f"{case}: {name}"
        )


def test_a_batch_norm_for_vectors_is_that_of_one_rank():
    torch.manual_seed(0)
    vectors = torch.randn(6, 5, dtype=torch.float64) * 3 + 1
    for affine in (True, False):
        layers = [
            make(5, affine=affine).double()
            for make in (partial(SynchronizedBatchNorm1d, ranks=ALONE), nn.BatchNorm1d)
        ]
        torch.testing.assert_close(*(layer(vectors) for layer in layers))
        torch.testing.assert_close(*(layer.running_var for layer in layers))
        torch.testing.assert_close(*(layer.eval()(vectors) for layer in layers))
    with pytest.raises(ValueError, match="4D input"):
        SynchronizedBatchNorm2d(5, ranks=ALONE).eval()(vectors)
