"""Counted operations of a step, and a device's rate."""

import torch
from torch.utils.flop_counter import FlopCounterMode

from fastmoco.moco.build import build_model
from fastmoco.moco.settings import MocoConfig, ModelConfig, Stem
from fastmoco.roofline import matrix_flops, step_flops_per_image


def test_a_step_is_four_forward_passes_and_leaves_the_model_alone():
    """A backward pass is two forwards, less the first layer's gradient by the images."""
    model = build_model(
        ModelConfig(encoder="resnet18", stem=Stem.small_stride2, width=4),
        MocoConfig(dim=8, queue_size=36, batch_norm_splits=2),
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    step = step_flops_per_image(model, 16, 4)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    with FlopCounterMode(display=False) as counter:
        model.query_encoder(torch.randn(4, 3, 16, 16))
    assert 3.8 < step / (counter.get_total_flops() / 4) <= 4.0


def test_a_device_has_a_rate():
    assert 1e8 < matrix_flops(torch.device("cpu"), torch.float32) < 1e15
