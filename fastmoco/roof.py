"""What a device's arithmetic would allow, were nothing else to do."""

import time

import torch
from torch.utils.flop_counter import FlopCounterMode

from fastmoco.moco.contrastive import ContrastiveModel

RATE_SECONDS = 0.3  # how long the device's matrix products are timed


def step_flops_per_image(model: ContrastiveModel, view_size: int, count: int) -> float:
    """Operations of one training step for an image with its two views.

    Counted by torch on noise: convolutions and matrix products of the query forward and backward
    and of the key forward.

    Args:
        model: On its device; as before afterwards.
        view_size: Side of the views, pixels.
        count: Images in the batch of noise, a multiple of batch norm's groups.
    """
    device = next(model.query_encoder.parameters()).device
    views = torch.randn(2, count, 3, view_size, view_size, device=device)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    with FlopCounterMode(display=False) as counter:
        ids = torch.arange(count, device=device)
        model(views[0], views[1], ids, ids, ids).loss.backward()
    model.zero_grad(set_to_none=True)
    model.load_state_dict(state)
    total: int = counter.get_total_flops()
    return total / count


def matrix_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product of random numbers."""
    size = 8192 if device.type == "cuda" else 1024
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    torch.mm(left, right)
    _synchronize(device)
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < RATE_SECONDS:
        torch.mm(left, right)
        _synchronize(device)
        products += 1
    return 2 * size**3 * products / (time.perf_counter() - start)


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
