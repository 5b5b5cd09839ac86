"""The cross-channel pretext task against its definition, written out as a plain loop."""

import copy

import pytest
import torch
from kornia.color import rgb_to_lab
from torch.nn import functional as F

from fastmoco.draws.device import permutation
from fastmoco.draws.host import draw_keys
from fastmoco.errors import UsageError
from fastmoco.moco.build import build_model
from fastmoco.moco.cross_channel import CrossChannel
from fastmoco.moco.lab_pair import LAB_HIGH, LAB_LOW, scaled_lab
from fastmoco.moco.mechanism import Views
from fastmoco.moco.settings import MocoConfig, ModelConfig, Pretext, Stem
from fastmoco.optim.optimizers import build_optimizer
from fastmoco.optim.settings import OptimizerConfig
from fastmoco.pipelines.augment import augment_views
from fastmoco.pipelines.contract import Batch
from fastmoco.pipelines.policies import POLICIES
from fastmoco.train.step import TrainStep
from tests.compiling import require_compiler

STEPS, BATCH, QUEUE, DIM = 6, 8, 28, 5  # the queue wraps: 28 is no multiple of 8
MOMENTUM, TEMPERATURE, LEARNING_RATE, SGD_MOMENTUM, WEIGHT_DECAY = 0.9, 0.2, 0.01, 0.9, 1e-4
PLAIN = {"mean": torch.zeros(3), "std": torch.ones(3)}  # halves take RGB in 0..1
POLICY = POLICIES["cifar"]


def batches(count=STEPS):
    generator = torch.Generator().manual_seed(5)
    made = []
    for step in range(count):
        ids = torch.arange(BATCH) + BATCH * step
        keys = torch.from_numpy(draw_keys(3, 0, ids.numpy()))
        crops = torch.randint(256, (BATCH, 2, 16, 16, 3), generator=generator).to(torch.uint8)
        boxes = torch.zeros(BATCH, 2, 4, dtype=torch.int32)
        made.append(Batch(crops, boxes, ids, keys, torch.full((BATCH,), -1), 0.0))
    return made


def model_of(encoder="halves:resnet18", **changes):
    torch.manual_seed(0)
    options = {"dim": DIM, "queue_size": QUEUE, "momentum": MOMENTUM, "temperature": TEMPERATURE}
    moco = MocoConfig(pretext=Pretext.cross_channel, **(options | changes))
    model = build_model(ModelConfig(encoder=encoder, stem=Stem.small, width=8), moco)
    return model.to(memory_format=torch.channels_last)


def step_of(model, **options):
    settings = OptimizerConfig(
        learning_rate=LEARNING_RATE, sgd_momentum=SGD_MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    optimizer = build_optimizer(model.query_encoder.parameters(), settings)
    return TrainStep(model, optimizer, policy=POLICY, **PLAIN, **options)


def channels(views):
    """L and ab of RGB in 0..1 by Kornia, scaled to -1..1."""
    low, high = (
        torch.tensor(bound, dtype=views.dtype)[:, None, None] for bound in (LAB_LOW, LAB_HIGH)
    )
    lab = 2 * (rgb_to_lab(views) - low) / (high - low) - 1
    return lab[:, :1], lab[:, 1:]


def parts_of(encoder):
    """The two encoders of a pair: of L, and of ab."""
    return [
        (encoder.backbone.lightness, encoder.head.lightness),
        (encoder.backbone.color, encoder.head.color),
    ]


def embed(part, images):
    backbone, head = part
    return F.normalize(head(backbone(images)), dim=1)


def cross_entropy(queries, keys, queue):
    per_query = []
    for q, k in zip(queries, keys, strict=True):
        logits = torch.stack([q @ k, *(q @ negative for negative in queue)]) / TEMPERATURE
        per_query.append(F.cross_entropy(logits[None], torch.tensor([0])))
    return torch.stack(per_query).mean()


def brute_force(model):
    """Four encoders and two lists of keys."""
    f_q, f_k = copy.deepcopy(model.query_encoder), copy.deepcopy(model.key_encoder)
    (query_l, query_ab), (key_l, key_ab) = parts_of(f_q), parts_of(f_k)
    unit = model.queue.keys * 2**0.5
    queue_ab, queue_l = list(unit[:, :DIM]), list(unit[:, DIM:])
    velocity = [torch.zeros_like(p) for p in f_q.parameters()]
    losses = []
    for batch in batches():
        views = augment_views(batch.crops, batch.draw_key, POLICY, **PLAIN, dtype=torch.float64)
        order = permutation(batch.draw_key)
        back = torch.argsort(order)
        loss, keys_l, keys_ab = torch.zeros(()).double(), [], []
        for query_view, key_view in [views, views[::-1]] if model.symmetric else [views]:
            (l_1, ab_1), (l_2, ab_2) = channels(query_view), channels(key_view)
            with torch.no_grad():
                k_l, k_ab = embed(key_l, l_2[order])[back], embed(key_ab, ab_2[order])[back]
            loss = loss + cross_entropy(embed(query_l, l_1), k_ab, queue_ab)
            loss = loss + cross_entropy(embed(query_ab, ab_1), k_l, queue_l)
            keys_l, keys_ab = keys_l + list(k_l), keys_ab + list(k_ab)
        gradients = torch.autograd.grad(loss, list(f_q.parameters()))
        with torch.no_grad():
            for p, v, g in zip(f_q.parameters(), velocity, gradients, strict=True):
                v.mul_(SGD_MOMENTUM).add_(g + WEIGHT_DECAY * p)
                p.sub_(LEARNING_RATE * v)
            for p_k, p_q in zip(f_k.parameters(), f_q.parameters(), strict=True):
                p_k.copy_(MOMENTUM * p_k + (1 - MOMENTUM) * p_q)
        queue_ab, queue_l = (queue_ab + keys_ab)[-QUEUE:], (queue_l + keys_l)[-QUEUE:]
        losses.append(loss.item() / (4 if model.symmetric else 2))
    return losses, f_q, f_k, torch.stack(queue_ab), torch.stack(queue_l)


@pytest.mark.parametrize("symmetric", [False, True])
def test_steps_equal_the_definition(symmetric):
    model = model_of(batch_norm_splits=2, symmetric=symmetric).double()
    assert isinstance(model, CrossChannel)
    losses, f_q, f_k, queue_ab, queue_l = brute_force(model)
    step = step_of(model)
    ours = [step(batch, LEARNING_RATE)[0].item() for batch in batches()]
    assert ours == pytest.approx(losses, abs=1e-6)  # the step reports its loss in float32
    assert len({round(loss, 3) for loss in losses}) == STEPS
    oldest_first = model.queue.keys.roll(-int(model.queue.pointer), dims=0) * 2**0.5
    torch.testing.assert_close(oldest_first[:, :DIM], queue_ab, rtol=0, atol=1e-10)
    torch.testing.assert_close(oldest_first[:, DIM:], queue_l, rtol=0, atol=1e-10)
    for mine, plain in ((model.query_encoder, f_q), (model.key_encoder, f_k)):
        for (name, value), expected in zip(
            mine.state_dict().items(), plain.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(value, expected, rtol=1e-9, atol=1e-10, msg=name)
    moved = [abs(a - b).max() for a, b in zip(f_q.parameters(), f_k.parameters(), strict=True)]
    assert max(moved) > 1e-3  # the encoders went apart: equality above says something


@pytest.mark.full
def test_compiled_steps_equal_eager_ones():
    """Captured as one graph, forward and backward; how kernels are made of it is torch's matter."""
    torch.compiler.reset()
    losses = []
    for compiled in (False, True):
        model = model_of("halves:alexnet_bn", batch_norm_splits=2)
        if compiled:
            model.forward = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
        step = step_of(model)
        losses.append([step(batch, LEARNING_RATE)[0].item() for batch in batches(3)])
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)  # sums may be rounded otherwise


def test_a_state_holds_the_whole_task():
    """3 steps, saved, 3 more from there: bit for bit 6 steps."""
    whole, resumed = model_of().double(), model_of().double()
    step = step_of(whole)
    for batch in batches()[:3]:
        step(batch, LEARNING_RATE)
    resumed.load_state_dict(copy.deepcopy(whole.state_dict()))
    other = step_of(resumed)
    other.optimizer.load_state_dict(copy.deepcopy(step.optimizer.state_dict()))
    for batch in batches()[3:]:
        assert torch.equal(step(batch, LEARNING_RATE), other(batch, LEARNING_RATE))
    assert all(map(torch.equal, whole.state_dict().values(), resumed.state_dict().values()))


def test_metrics_are_means_of_both_halves():
    model = model_of().double()
    batch = batches(1)[0]
    views = augment_views(batch.crops, batch.draw_key, POLICY, **PLAIN, dtype=torch.float64)
    ids = torch.arange(BATCH)
    contrast = model(Views(views[0], views[1], ids, ids, ids))
    halves = [rows.unflatten(1, (2, DIM)) for rows in (contrast.query, contrast.key)]
    for rows in (*halves, model.queue.keys.unflatten(1, (2, DIM))):
        lengths = rows.norm(dim=2)
        torch.testing.assert_close(lengths, torch.full_like(lengths, 0.5**0.5), rtol=0, atol=1e-6)
    similarity = 2 * (halves[0] * halves[1]).sum(2)  # (N, 2), of unit vectors
    torch.testing.assert_close((contrast.query * contrast.key).sum(1), similarity.mean(1))
    queue = 2 * torch.einsum("nhc,khc->hnk", halves[0], model.queue.keys.view(QUEUE, 2, DIM))
    torch.testing.assert_close(contrast.negative_similarity, queue.mean())
    ranks = (queue > similarity.T[:, :, None]).sum(2)
    assert contrast.rank.tolist() == ranks.flatten().tolist()


def test_lab_is_kornias():
    torch.manual_seed(0)
    images = torch.rand(2, 3, 40, 40, dtype=torch.float64)
    images[0] *= 0.05  # the curves' linear parts
    expected = torch.cat(channels(images), dim=1)
    torch.testing.assert_close(scaled_lab(images), expected, rtol=0, atol=1e-12)
    with torch.autocast("cpu", torch.bfloat16):
        in_float32 = scaled_lab(images.float())
    torch.testing.assert_close(in_float32.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.full
def test_compiled_lab_is_the_same():
    require_compiler()
    images = torch.rand(2, 3, 8, 8)
    compiled = torch.compile(scaled_lab, fullgraph=True)(images)
    torch.testing.assert_close(compiled, scaled_lab(images), rtol=0, atol=1e-5)


def test_lab_spans_its_range():
    """The bounds are those of sRGB: a cube of colors reaches each within 1% and leaves none."""
    levels = torch.linspace(0, 1, 52, dtype=torch.float64)
    cube = torch.stack(torch.meshgrid(levels, levels, levels, indexing="ij")).flatten(1)
    found = scaled_lab(cube[None, :, :, None])[0, :, :, 0]
    torch.testing.assert_close(found.amax(1), torch.ones(3).double(), rtol=0, atol=1e-4)
    torch.testing.assert_close(found.amin(1), -torch.ones(3).double(), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("encoder", "changes", "message"),
    [
        ("resnet18", {}, r"needs a pair of encoders, .*; set model\.encoder=halves:resnet18"),
        ("timm:test_vit", {}, r"set model\.encoder=halves:resnet50"),
    ],
)
def test_a_task_without_its_encoder_is_refused(encoder, changes, message):
    moco = MocoConfig(pretext=Pretext.cross_channel, **changes)
    with pytest.raises(UsageError, match=message):
        build_model(ModelConfig(encoder=encoder), moco)
