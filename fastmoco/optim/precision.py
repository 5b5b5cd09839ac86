"""Number formats of the forward and backward pass."""

import torch

from fastmoco.moco.settings import Precision

AUTOCAST_DTYPES = {
    Precision.float32: torch.float32,
    Precision.fp16: torch.float16,
    Precision.bf16: torch.bfloat16,
}


def autocast(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Context in which convolutions and matrix products run in `dtype`; float32: unchanged."""
    return torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)
