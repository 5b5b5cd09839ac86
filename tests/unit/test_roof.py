"""Counted operations of a step, and a device's rate."""

from types import SimpleNamespace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from fastmoco import roofline
from fastmoco.configuration import load_config
from fastmoco.moco.build import build_model
from fastmoco.moco.mechanism import Views
from fastmoco.moco.settings import MocoConfig, ModelConfig, Precision, Stem
from fastmoco.roofline import matrix_flops, step_flops_per_image
from fastmoco.train import dry_run
from fastmoco.train.settings import TrainConfig
from tests.steps import make_step
from tests.unit.test_docs import tables_of


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


@pytest.mark.full
@pytest.mark.parametrize("preset", ["moco_v2", "moco_v3_100", "fast_moco"])
def test_costs_of_mechanisms_are_as_documented(preset):
    (table,) = (rows for rows in tables_of("docs/mechanisms.md") if rows[0][0] == "preset")
    (written,) = (row[1:] for row in table if row[0] == f"`{preset}`")
    cfg = load_config(TrainConfig, [f"experiment={preset}"])
    model = build_model(cfg.model, cfg.moco).to(memory_format=torch.channels_last)
    known = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}
    first, second = (
        torch.randn(2, 3, 224, 224).to(memory_format=torch.channels_last) for _ in range(2)
    )

    def keep(tensor):
        if tensor.data_ptr() not in known:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with saved_tensors_hooks(keep, lambda tensor: tensor):
        model(Views(first, second, *[torch.arange(2)] * 3))
    size = sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / 2e6
    flops = step_flops_per_image(model, 224, 2) / 1e9
    parameters = sum(parameter.numel() for parameter in model.learnable()) / 1e6
    assert [f"{flops:.1f}", f"{size:.0f}", f"{parameters:.1f}"] == written


def test_a_device_has_a_rate():
    assert 1e8 < matrix_flops(torch.device("cpu"), torch.float32) < 1e15


@pytest.mark.parametrize("rounded", [True, False])
def test_products_of_float32_are_rounded_as_convolutions(monkeypatch, rounded):
    products, found = torch.backends.cuda.matmul, []
    before = products.fp32_precision
    monkeypatch.setattr(roofline, "rounds_to_tf32", lambda: rounded)
    monkeypatch.setattr(roofline, "RATE_SECONDS", 0.0)
    monkeypatch.setattr(torch, "mm", lambda *_: found.append(products.fp32_precision))
    matrix_flops(torch.device("cpu"), torch.float32)
    assert set(found) == {"tf32" if rounded else before}
    assert products.fp32_precision == before != "tf32"


@pytest.mark.parametrize(
    ("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)]
)
def test_a_dry_run_uses_the_rate_of_the_precision_that_runs(monkeypatch, precision, dtype):
    asked = []
    monkeypatch.setattr(dry_run, "matrix_flops", lambda _, dtype: asked.append(dtype) or 1e12)
    cfg = TrainConfig(precision=Precision(precision), global_batch_size=8)
    step = make_step(precision=cfg.precision)
    trainer = SimpleNamespace(
        step=step, device=torch.device("cpu"), total_steps=1, steps_done=1, graphed=None, take=None
    )
    monkeypatch.setattr(dry_run, "_take", lambda *_: 0.0)
    found = dry_run._measure(trainer, None, 1.0, cfg)
    assert asked == [dtype]
    assert found.number_format == precision
    assert f"% of 1.00 TFLOP/s in {precision}" in found.to_text()
