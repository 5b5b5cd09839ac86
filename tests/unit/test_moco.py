"""Split batch norm, queue, loss and momentum update."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from fastmoco.moco.batchnorm import SplitBatchNorm2d
from fastmoco.moco.build import build_model
from fastmoco.moco.loss import info_nce
from fastmoco.moco.mechanism import Views
from fastmoco.moco.queue import Queue
from fastmoco.moco.settings import MocoConfig, ModelConfig, Stem


def test_split_batch_norm_is_plain_batch_norm_of_each_group():
    torch.manual_seed(0)
    images = torch.randn(12, 5, 3, 3).to(memory_format=torch.channels_last) * 3 + 1
    split = SplitBatchNorm2d(5, num_splits=3)
    nn.init.normal_(split.weight)
    means, variances, outputs = [], [], []
    for group in images.split(4):
        plain = nn.BatchNorm2d(5)
        plain.weight = split.weight
        outputs.append(plain(group))
        means.append(plain.running_mean)
        variances.append(plain.running_var)
    result = split(images)
    torch.testing.assert_close(result, torch.cat(outputs), atol=1e-5, rtol=1e-5)
    assert result.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(split.running_mean, torch.stack(means).mean(0))
    torch.testing.assert_close(split.running_var, torch.stack(variances).mean(0))
    whole = nn.BatchNorm2d(5)
    whole.weight = split.weight
    assert not torch.allclose(result, whole(images), atol=1e-3)


def test_split_batch_norm_in_evaluation_is_plain():
    split, plain = SplitBatchNorm2d(4, num_splits=2).eval(), nn.BatchNorm2d(4).eval()
    images = torch.randn(3, 4, 2, 2)
    assert torch.equal(split(images), plain(images))


def test_split_batch_norm_refuses_a_batch_that_does_not_split():
    with pytest.raises(ValueError, match=r"batch of 5 .* 2 equal groups.*moco\.batch_norm_splits"):
        SplitBatchNorm2d(3, num_splits=2)(torch.randn(5, 3, 2, 2))


def test_queue_overwrites_the_oldest_and_wraps():
    queue = Queue(5, 2)
    start = queue.keys.clone()
    address = queue.keys.data_ptr()
    first, second = torch.full((3, 2), 1.0), torch.full((3, 2), 2.0)
    queue.enqueue(first)
    assert torch.equal(queue.keys, torch.cat([first, start[3:]]))
    queue.enqueue(second)
    assert queue.keys[:, 0].tolist() == [2, 1, 1, 2, 2]
    assert queue.pointer.item() == 1
    assert queue.keys.data_ptr() == address


def test_queue_starts_as_unit_vectors_and_refuses_a_larger_batch():
    queue = Queue(6, 8)
    torch.testing.assert_close(queue.keys.norm(dim=1), torch.ones(6))
    with pytest.raises(ValueError, match=r"queue_size=6 is smaller than a batch of 7"):
        queue.enqueue(torch.zeros(7, 8))


def test_queue_is_in_the_state():
    assert {"keys", "pointer", "source"} == set(Queue(4, 2).state_dict())


def unit(*shape):
    return F.normalize(torch.randn(*shape, dtype=torch.float64), dim=1)


def test_info_nce_is_cross_entropy_over_k_plus_1():
    torch.manual_seed(1)
    query, key, queue = unit(7, 6).requires_grad_(), unit(7, 6), unit(11, 6)
    loss, rank = info_nce(query, key, queue, 0.3)
    logits = torch.cat([(query * key).sum(1, keepdim=True), query @ queue.T], dim=1) / 0.3
    expected = F.cross_entropy(logits, torch.zeros(7, dtype=torch.int64))
    torch.testing.assert_close(loss, expected)
    gradients = [
        torch.autograd.grad(value, query, retain_graph=True)[0] for value in (loss, expected)
    ]
    torch.testing.assert_close(*gradients)
    order = logits.argsort(dim=1, descending=True)
    assert rank.tolist() == (order == 0).nonzero()[:, 1].tolist()


def test_info_nce_at_chance_is_ln_k_plus_1():
    query = torch.eye(8)[:4]
    queue = torch.eye(8)[4:].repeat(5, 1)  # as far from the queries as the positives
    loss, rank = info_nce(query, torch.eye(8)[4:], queue, 0.07)
    assert loss.item() == pytest.approx(math.log(len(queue) + 1), abs=1e-6)
    assert rank.tolist() == [0] * 4


@pytest.mark.parametrize(
    ("shapes", "temperature", "message"),
    [
        (((2, 3), (2, 3), (4, 3)), 0.0, "temperature must be above 0, got 0.0"),
        (((2, 3), (3, 3), (4, 3)), 0.1, "must have the shapes"),
        (((2, 3), (2, 3), (4, 2)), 0.1, "must have the shapes"),
    ],
)
def test_info_nce_refuses(shapes, temperature, message):
    with pytest.raises(ValueError, match=message):
        info_nce(*(torch.randn(shape) for shape in shapes), temperature)


def test_info_nce_computes_in_float32_under_autocast():
    query = F.normalize(torch.randn(4, 32), dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = info_nce(query, query, F.normalize(torch.randn(64, 32), dim=1), 0.07)
    assert loss.dtype == torch.float32


def small_model(**changes):
    moco = MocoConfig(dim=8, queue_size=32, **changes)
    return build_model(ModelConfig(encoder="resnet18", stem=Stem.small, width=4), moco)


def test_key_encoder_starts_equal_and_follows_by_momentum():
    torch.manual_seed(0)
    model = small_model(momentum=0.75)
    pairs = list(zip(model.query_encoder.parameters(), model.key_encoder.parameters(), strict=True))
    assert all(torch.equal(q, k) and not k.requires_grad for q, k in pairs)
    before = [k.clone() for _, k in pairs]
    addresses = [k.data_ptr() for _, k in pairs]
    with torch.no_grad():
        for q, _ in pairs:
            q.add_(1.0)
    model.update_key_encoder()
    for (_, k), old in zip(pairs, before, strict=True):
        torch.testing.assert_close(k, old + 0.25)
    assert addresses == [k.data_ptr() for _, k in pairs]


def test_shuffled_keys_come_back_in_order():
    torch.manual_seed(0)
    plain, shuffling = small_model(), small_model(batch_norm_splits=2)
    plain.eval(), shuffling.eval()  # in evaluation no sample touches another
    shuffling.load_state_dict(plain.state_dict())
    views = torch.randn(2, 8, 3, 16, 16)
    ids = torch.arange(8)
    given = Views(views[0], views[1], torch.randperm(8), ids, ids)
    torch.testing.assert_close(shuffling(given).key, plain(given).key)
    assert shuffling.shuffle_keys
    assert not plain.shuffle_keys


def test_key_batch_norm_is_in_training_mode():
    model = small_model()
    before = model.key_encoder.backbone.bn1.running_mean.clone()
    views = torch.randn(2, 8, 3, 16, 16)
    contrast = model(Views(views[0], views[1], *[torch.arange(8)] * 3))
    assert not torch.equal(before, model.key_encoder.backbone.bn1.running_mean)
    assert not contrast.key.requires_grad
    assert contrast.loss.requires_grad
