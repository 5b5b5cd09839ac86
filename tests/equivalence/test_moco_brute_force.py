"""MoCo against Algorithm 1 of arXiv:1911.05722, written out as a plain loop."""

import copy

import pytest
import torch
from torch.nn import functional as F

from fastmoco.draws.device import permutation
from fastmoco.draws.host import draw_keys
from fastmoco.moco.build import build_model
from fastmoco.moco.settings import MocoConfig, ModelConfig, Stem
from fastmoco.optim.optimizers import build_optimizer
from fastmoco.optim.settings import OptimizerConfig
from fastmoco.pipelines.augment import augment_views
from fastmoco.pipelines.contract import Batch
from fastmoco.pipelines.policies import POLICIES
from fastmoco.train.step import TrainStep

STEPS, BATCH, QUEUE, DIM = 20, 8, 28, 16  # the queue wraps: 28 is no multiple of 8
# Mild: a harsh setting amplifies the rounding of float32 from step to step.
MOMENTUM, TEMPERATURE, LEARNING_RATE, SGD_MOMENTUM, WEIGHT_DECAY = 0.9, 0.2, 0.01, 0.9, 1e-4
MEAN, STD = torch.tensor([0.5, 0.4, 0.3]), torch.tensor([0.2, 0.3, 0.25])


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(5)
    made = []
    for step in range(STEPS):
        ids = torch.arange(BATCH) + BATCH * step
        keys = torch.from_numpy(draw_keys(3, 0, ids.numpy()))
        crops = torch.randint(256, (BATCH, 2, 16, 16, 3), generator=generator).to(torch.uint8)
        boxes = torch.zeros(BATCH, 2, 4, dtype=torch.int32)
        made.append(Batch(crops, boxes, ids, keys, torch.full((BATCH,), -1), 0.0))
    return made


def smooth(model):
    """Replace each ReLU by Softplus.

    A pre-activation that rounds to the other side of ReLU's kink moves the gradient by a finite
    step, which 20 steps then amplify: in float32 that would say nothing about either loop.
    """
    for module in list(model.modules()):
        for name, child in module.named_children():
            if isinstance(child, torch.nn.ReLU):
                setattr(module, name, torch.nn.Softplus())


def brute_force(model, dtype):
    """Algorithm 1, line by line; the dictionary is a list, the optimizer three lines."""
    f_q, f_k = copy.deepcopy(model.query_encoder), copy.deepcopy(model.key_encoder)
    queue = [row.clone() for row in model.queue.keys]
    oldest = 0
    velocity = [torch.zeros_like(p) for p in f_q.parameters()]
    losses = []
    for batch in batches():
        views = augment_views(batch.crops, batch.draw_key, POLICIES["moco_v2"], MEAN, STD, dtype)
        order = permutation(batch.draw_key) if model.shuffle_keys else torch.arange(BATCH)
        loss, keys = torch.zeros((), dtype=dtype), []
        for query_view, key_view in [views, views[::-1]] if model.symmetric else [views]:
            q = F.normalize(f_q(query_view), dim=1)
            with torch.no_grad():
                shuffled = F.normalize(f_k(key_view[order]), dim=1)
            k = torch.empty_like(shuffled)
            for position, source in enumerate(order.tolist()):
                k[source] = shuffled[position]
            per_query = []
            for n in range(BATCH):
                logits = torch.stack([q[n] @ k[n], *(q[n] @ key for key in queue)]) / TEMPERATURE
                per_query.append(F.cross_entropy(logits[None], torch.tensor([0])))
            loss = loss + torch.stack(per_query).mean()
            keys += list(k)
        grads = torch.autograd.grad(loss, list(f_q.parameters()))
        with torch.no_grad():
            for p, v, g in zip(f_q.parameters(), velocity, grads, strict=True):
                v.mul_(SGD_MOMENTUM).add_(g + WEIGHT_DECAY * p)
                p.sub_(LEARNING_RATE * v)
            for p_k, p_q in zip(f_k.parameters(), f_q.parameters(), strict=True):
                p_k.copy_(MOMENTUM * p_k + (1 - MOMENTUM) * p_q)
        for k in keys:  # after both halves: no query met a key of its own image in the queue
            queue[oldest] = k
            oldest = (oldest + 1) % QUEUE
        losses.append(loss.item() / (2 if model.symmetric else 1))
    return losses, f_q, f_k, torch.stack(queue)


@pytest.mark.parametrize(
    ("splits", "symmetric"),
    [(1, False), (2, False), (2, True)],
    ids=["plain", "split", "split-symmetric"],
)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [
        pytest.param(torch.float64, 1e-10, id="float64"),
        pytest.param(torch.float32, 1e-5, id="float32", marks=pytest.mark.full),
    ],
)
def test_twenty_steps_equal_algorithm_1(dtype, tolerance, splits, symmetric):
    torch.manual_seed(0)
    moco = MocoConfig(
        dim=DIM,
        queue_size=QUEUE,
        momentum=MOMENTUM,
        temperature=TEMPERATURE,
        batch_norm_splits=splits,
        symmetric=symmetric,
    )
    model = build_model(ModelConfig(encoder="resnet18", stem=Stem.small, width=4), moco)
    model = model.to(dtype=dtype, memory_format=torch.channels_last)
    if dtype is torch.float32:
        smooth(model)
    losses, f_q, f_k, queue = brute_force(model, dtype)

    settings = OptimizerConfig(
        learning_rate=LEARNING_RATE, sgd_momentum=SGD_MOMENTUM, weight_decay=WEIGHT_DECAY
    )
    optimizer = build_optimizer(model.query_encoder.parameters(), settings)
    step = TrainStep(model, optimizer, policy=POLICIES["moco_v2"], mean=MEAN, std=STD)
    ours = [step(batch, LEARNING_RATE)[0].item() for batch in batches()]

    # The step reports its loss in float32.
    assert ours == pytest.approx(losses, abs=max(tolerance, 1e-6))
    torch.testing.assert_close(model.queue.keys, queue, rtol=0, atol=tolerance)
    for mine, plain in ((model.query_encoder, f_q), (model.key_encoder, f_k)):
        for (name, value), expected in zip(
            mine.state_dict().items(), plain.state_dict().values(), strict=True
        ):
            torch.testing.assert_close(value, expected, rtol=tolerance, atol=tolerance, msg=name)
    moved = [abs(a - b).max() for a, b in zip(f_q.parameters(), f_k.parameters(), strict=True)]
    assert max(moved) > 1e-3  # the encoders went apart: equality above says something
