"""Weights in the number format of the forward pass, cast by one call for all of them.

Autocast casts each weight where a layer uses it, and each gradient back: 48 and 22 launches in a
compiled step of ResNet-18. The numbers are the same where an encoder runs once in a step; the
gradients of two passes are added in the narrow format.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fastmoco.moco.resnet import SlicedProjection

CAST_LAYERS = (nn.Conv2d, nn.Linear, SlicedProjection)
"""Layers whose weights autocast casts as they are; their subclasses may compute with them first."""


class _CastAll(torch.autograd.Function):
    """Tensors in another dtype; gradients in their own."""

    @staticmethod
    def forward(ctx: Any, dtype: torch.dtype, *weights: Tensor) -> tuple[Tensor, ...]:
        ctx.dtype = weights[0].dtype
        return _cast(weights, dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        return None, *_cast(gradients, ctx.dtype)


def _cast(tensors: Sequence[Tensor], dtype: torch.dtype) -> tuple[Tensor, ...]:
    cast = [torch.empty_like(tensor, dtype=dtype) for tensor in tensors]
    torch._foreach_copy_(cast, list(tensors))
    return tuple(cast)


def cast_weights(model: nn.Module, dtype: torch.dtype) -> dict[str, Tensor]:
    """Cast the weights of convolutions and matrix products, for `torch.func.functional_call`.

    Args:
        model: A model whose weights have one dtype.
        dtype: Number format of the forward pass.

    Returns:
        Cast weights by name; gradients flow to those that require one.
    """
    uses = Counter(id(weight) for _, weight in model.named_parameters(remove_duplicate=False))
    weights = {
        f"{name}.{kind}": weight
        for name, layer in model.named_modules()
        if type(layer) in CAST_LAYERS
        for kind, weight in layer.named_parameters(recurse=False)
        if uses[id(weight)] == 1  # `functional_call` takes one value for a shared weight
    }
    learned = {name: weight for name, weight in weights.items() if weight.requires_grad}
    followed = {name: weight for name, weight in weights.items() if not weight.requires_grad}
    cast = dict(zip(learned, _CastAll.apply(dtype, *learned.values()), strict=True))
    if followed:
        cast |= dict(zip(followed, _cast([*followed.values()], dtype), strict=True))
    return cast
