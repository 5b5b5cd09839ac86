"""What bounds a figure on the machine at hand: copies of memory, arithmetic, the disk.

Each rate is measured before it is used, as the best of several tries: a limit that noise lowered
would be passed. Left out: caches, which let small work run faster than main memory does.
"""

import os
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from fastmoco.moco.mechanism import ContrastiveModel
from fastmoco.roofline import count_step, matrix_flops

COPY_BYTES = 1 << 28  # beyond any cache
TRIES = 5
DISK_CHUNK_BYTES = 1 << 26
COPY = "memory copy bandwidth"


@cache
def copy_rate(device: torch.device) -> float:
    """Bytes read plus bytes written a second, by torch's copy of random numbers."""
    source = torch.randint(256, (COPY_BYTES,), dtype=torch.uint8).to(device)
    target = torch.empty_like(source)
    return (
        2 * COPY_BYTES / min(_seconds(lambda: target.copy_(source), device) for _ in range(TRIES))
    )


@cache
def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of large matrix products, or of a convolution where that is faster.

    On a GPU those of float32 run in TF32, as its convolutions do unless one asks for more.
    """
    products = max(matrix_flops(device, dtype) for _ in range(TRIES))
    return max(products, _convolution_rate(device, dtype))


def _convolution_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of 3 x 3 convolutions of 128 channels, channels_last."""
    count = 256 if device.type == "cuda" else 16
    images = torch.randn(count, 128, 32, 32, device=device).to(dtype)
    images = images.contiguous(memory_format=torch.channels_last)
    kernels = torch.randn(128, 128, 3, 3, device=device).to(dtype)
    kernels = kernels.contiguous(memory_format=torch.channels_last)
    flops = 2 * count * 32 * 32 * 128 * 128 * 9
    with torch.no_grad():
        seconds = [
            _seconds(lambda: F.conv2d(images, kernels, padding=1), device)
            for _ in range(2 * TRIES)  # the first ones choose an algorithm
        ]
    return flops / min(seconds)


def _seconds(work: Callable[[], object], device: torch.device) -> float:
    _synchronize(device)
    start = time.perf_counter()
    work()
    _synchronize(device)
    return time.perf_counter() - start


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def roof(
    model: ContrastiveModel, view_size: int, count: int, dtype: torch.dtype
) -> tuple[str, float]:
    """The images a second of a step, were every convolution and matrix product at its limit.

    Each takes the longer of its arithmetic and of its bytes, inputs and outputs once; all else
    (batch norm, activations, the optimizer) is taken to cost nothing.

    Args:
        model: On its device, as a step has it; as before afterwards.
        view_size: Side of the views, pixels.
        count: Images in the batch that is counted, a multiple of batch norm's groups.
        dtype: In which they are computed.

    Returns:
        What the limit is, for people, and the rate.
    """
    device = next(model.query_encoder.parameters()).device
    flops_rate, bytes_rate = matrix_rate(device, dtype), copy_rate(device)
    seconds = sum(
        max(one.flops / flops_rate, one.num_bytes / bytes_rate)
        for one in count_step(model, view_size, count, dtype)
    )
    name = str(dtype).removeprefix("torch.")
    what = f"the roof of {flops_rate / 1e12:.2f} TFLOP/s in {name} and {bytes_rate / 1e9:.0f} GB/s"
    return what, count / seconds


def disk_write(path: Path, num_bytes: int) -> float:
    """Seconds to write random bytes one after the other, until they are on the disk.

    Args:
        path: A file that is not there; it is removed.
        num_bytes: How many.
    """
    block = np.random.default_rng(0).bytes(min(num_bytes, DISK_CHUNK_BYTES))
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    try:
        start = time.perf_counter()
        left = num_bytes
        while left:
            left -= os.write(descriptor, memoryview(block)[:left])
        os.fsync(descriptor)
        return time.perf_counter() - start
    finally:
        os.close(descriptor)
        path.unlink()
