"""What follows the optimizer's step, where loss scaling skipped it: nothing."""

import copy

import pytest
import torch

from fastmoco.moco.build import build_model
from fastmoco.moco.mechanism import StepOutput
from fastmoco.moco.queue import Queue
from fastmoco.moco.settings import BatchNorm, MocoConfig, ModelConfig, Stem

YES, NO = torch.tensor(True), torch.tensor(False)


def test_a_skipped_step_enqueues_nothing():
    queue = Queue(7, 2)
    queue.enqueue(torch.ones(5, 2))
    keys, pointer = queue.keys.clone(), queue.pointer.clone()
    queue.enqueue(torch.full((5, 2), torch.nan), NO)
    assert torch.equal(queue.keys, keys)
    assert torch.equal(queue.pointer, pointer)


def test_a_learned_step_enqueues_as_one_that_was_not_asked():
    plain, asked = Queue(7, 2), Queue(7, 2)
    asked.load_state_dict(plain.state_dict())
    for value in range(3):
        rows = torch.full((5, 2), float(value))
        plain.enqueue(rows)
        asked.enqueue(rows, YES)
    assert torch.equal(plain.keys, asked.keys)
    assert torch.equal(plain.pointer, asked.pointer)


@pytest.mark.parametrize("batch_norm", [BatchNorm.plain, BatchNorm.eman])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_momentum_update_by_a_flag_on_the_device(dtype, batch_norm):
    torch.manual_seed(0)
    model = build_model(
        ModelConfig(encoder="resnet18", stem=Stem.small, width=4),
        MocoConfig(dim=8, queue_size=16, momentum=0.99, batch_norm=batch_norm),
    ).to(dtype)
    with torch.no_grad():
        for tensor in (*model.query_encoder.parameters(), *model.running_statistics()[0]):
            tensor.add_(torch.randn_like(tensor))
    bound = 1e-6 if dtype is torch.float32 else 1e-15
    before = copy.deepcopy(model.state_dict())
    rows = torch.randn(3, 8, dtype=dtype)
    source = torch.arange(6).view(3, 2)
    contrast = StepOutput(
        rows.sum(), rows, rows, torch.zeros(3), negative_similarity=rows.sum(), source=source
    )
    model.after_step(contrast, NO)
    assert all(map(torch.equal, before.values(), model.state_dict().values()))
    plain = copy.deepcopy(model)
    model.after_step(contrast, YES)
    plain.after_step(contrast)
    for value, expected in zip(
        model.state_dict().values(), plain.state_dict().values(), strict=True
    ):
        # Weighted by a tensor instead of by a number: the last bit may differ.
        torch.testing.assert_close(value, expected, rtol=bound, atol=bound)
    assert not torch.equal(before["queue.keys"], model.queue.keys)
    assert not torch.equal(
        before["key_encoder.backbone.conv1.weight"],
        model.state_dict()["key_encoder.backbone.conv1.weight"],
    )
