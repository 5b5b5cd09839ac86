"""Whether weights, statistics and states are numbers that can be worked with."""

from collections.abc import Mapping

from torch import Tensor

LARGEST = 1e30
"""Larger values count as infinite: their squares overflow float32, and no encoder has them."""


def first_not_finite(tensors: Mapping[str, Tensor]) -> str | None:
    """Name of the first floating tensor with a NaN, an infinity or a value above `LARGEST`."""
    for name, tensor in tensors.items():
        # A NaN is the greatest for `aminmax`, and no comparison with it holds.
        if tensor.is_floating_point() and tensor.numel():
            least, most = tensor.detach().aminmax()
            if not (-LARGEST < least.item() and most.item() < LARGEST):
                return name
    return None
