"""Activation checkpointing: less memory, and the same weights and running statistics."""

import pytest
import torch

from fastmoco.errors import UsageError
from fastmoco.moco import resnet
from fastmoco.moco.encoders import build_encoder
from fastmoco.moco.settings import BatchNorm, ModelConfig
from fastmoco.optim.precision import AUTOCAST_DTYPES
from tests.optional import require
from tests.steps import differing, make_batch, make_step

ON = {"activation_checkpointing": True}


def train(step, steps=3):
    return torch.stack([step(make_batch(number), 0.03) for number in range(steps)])


@pytest.mark.parametrize("precision", list(AUTOCAST_DTYPES))
@pytest.mark.parametrize(
    "moco",
    [{}, {"batch_norm_splits": 2}, {"symmetric": True}, {"batch_norm": BatchNorm.eman}],
    ids=["plain", "split", "symmetric", "eman"],
)
def test_checkpointed_equals_kept(moco, precision):
    """Bit for bit: the same operations on the same numbers."""
    kept, checkpointed = (make_step(moco=moco, model=m, precision=precision) for m in ({}, ON))
    assert torch.equal(train(checkpointed), train(kept))
    assert differing(checkpointed, kept) == []


def test_bottlenecks_too():
    kept, checkpointed = (
        make_step(model={"encoder": "resnet50", "width": 2, **m}) for m in ({}, ON)
    )
    assert torch.equal(train(checkpointed, 2), train(kept, 2))
    assert differing(checkpointed, kept) == []


def test_only_queries_are_computed_again(monkeypatch):
    calls = []
    plain = resnet.recomputed
    monkeypatch.setattr(resnet, "recomputed", lambda *given: calls.append(1) or plain(*given))
    step = make_step(model=ON)
    step(make_batch(0), 0.03)
    assert len(calls) == 8  # blocks of a ResNet-18, of one encoder
    assert step.model.query_encoder.backbone.bn1.num_batches_tracked == 1
    assert step.model.query_encoder.backbone.layer4[1].bn2.num_batches_tracked == 1


def kept_bytes(model):
    """Bytes of what autograd keeps of a forward pass."""
    step, sizes = make_step(model=model), {}

    def pack(tensor):
        sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    images = torch.randn(64, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = step.model.query_encoder(images)
    return sum(sizes.values()), output


def test_less_is_kept():
    (checkpointed, _), (kept, _) = kept_bytes(ON), kept_bytes({})
    assert checkpointed < 0.5 * kept


def gradients_and_buffers(encoder, run):
    images = torch.randn(8, 3, 16, 16).contiguous(memory_format=torch.channels_last)
    for _ in range(2):
        encoder.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            output = run(images)
        output.float().square().sum().backward()
    found = {name: parameter.grad for name, parameter in encoder.named_parameters()}
    return found | dict(encoder.named_buffers())


@pytest.mark.full
def test_compiled_statistics_are_counted_once(compile_without_inductor):
    """Under autocast, with two groups of batch norm."""
    compile_without_inductor()
    kept, checkpointed = (
        make_step(moco={"batch_norm_splits": 2}, model=model).model.query_encoder
        for model in ({}, ON)
    )
    torch.manual_seed(1)
    expected = gradients_and_buffers(kept, kept)
    torch.manual_seed(1)
    run = torch.compile(lambda images: checkpointed(images), dynamic=False, fullgraph=True)
    found = gradients_and_buffers(checkpointed, run)
    assert found["backbone.layer4.1.bn2.num_batches_tracked"] == 2
    for name, value in expected.items():  # compiled bfloat16 is rounded otherwise
        difference = (found[name] - value).float().norm()
        assert difference <= 3e-2 * value.float().norm(), name


@pytest.mark.parametrize("encoder", ["alexnet", "timm:resnet18"])
def test_other_encoders_are_refused(encoder):
    if encoder.startswith("timm:"):
        require("timm")
    with pytest.raises(UsageError, match=r"set .*model\.activation_checkpointing=false"):
        build_encoder(ModelConfig(encoder=encoder, activation_checkpointing=True))
