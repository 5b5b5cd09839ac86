"""Projections of narrow ResNets: the convolution that they are, and no write beyond its memory."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fastmoco.moco.encoders import build_encoder
from fastmoco.moco.resnet import SlicedProjection
from fastmoco.moco.settings import ModelConfig
from tests.limits import HANG_SECONDS

ROOT = Path(__file__).parents[2]


def with_gradients(module: nn.Module, images: Tensor) -> list[Tensor]:
    """Output, and the gradients of input and weight under an output gradient that varies."""
    images = images.clone().requires_grad_()
    output = module(images)
    weights = torch.linspace(-1, 1, output.numel(), dtype=output.dtype).view_as(output)
    (output * weights).sum().backward()
    (weight,) = module.parameters()
    assert images.grad is not None
    assert weight.grad is not None
    return [output, images.grad, weight.grad]


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(8, 8), (7, 5), (1, 1)])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("channels", [1, 4, 7])
def test_it_is_the_strided_convolution(
    channels: int, stride: int, size: tuple[int, int], memory_format: torch.memory_format
) -> None:
    options = {"stride": stride, "bias": False, "dtype": torch.float64}
    sliced = SlicedProjection(channels, 12, 1, **options)
    plain = nn.Conv2d(channels, 12, 1, **options)
    plain.load_state_dict(sliced.state_dict())
    images = torch.randn(3, channels, *size, dtype=torch.float64)
    images = images.contiguous(memory_format=memory_format)
    for ours, theirs in zip(
        with_gradients(sliced, images), with_gradients(plain, images), strict=True
    ):
        # The same products; sums over at most 192 places may be taken in another order.
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("width", "sliced"), [(4, 1), (7, 1), (8, 0), (64, 0)])
def test_only_narrow_projections_are_sliced(width: int, sliced: int) -> None:
    with torch.device("meta"):
        model = build_encoder(ModelConfig(encoder="resnet18", width=width))
    assert sum(isinstance(module, SlicedProjection) for module in model.modules()) == sliced
    assert "SlicedProjection" not in str(model)  # the text is part of an encoder's fingerprint


BACKWARD = """
import torch
from fastmoco.moco.encoders import build_encoder
from fastmoco.moco.settings import ModelConfig, Stem

torch.set_num_threads(1)
torch.manual_seed(0)
model = build_encoder(ModelConfig(encoder="resnet18", width=4, stem=Stem.small_stride2))
model = model.to(memory_format=torch.channels_last)
images = torch.randn(16, 3, 32, 32).contiguous(memory_format=torch.channels_last)
for _ in range(4):
    model(images).square().sum().backward()
    kept = [torch.empty(count) for count in (16, 64, 144, 1000)]
"""


def test_backward_passes_keep_to_their_memory() -> None:
    """With `nn.Conv2d` for the projection, torch 2.15 aborts here (oneDNN, CPUs of AVX2 alone)."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        # glibc checks the heap's blocks as they are freed; where this is missing it only warns.
        "LD_PRELOAD": "libc_malloc_debug.so.0",
        "MALLOC_CHECK_": "3",
    }
    done = subprocess.run(
        [sys.executable, "-c", BACKWARD],
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, (done.returncode, done.stderr[-2000:])
