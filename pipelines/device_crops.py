"""Random crops cut from a set of images on the device, in the loader or within the training step.

Crops are resized as PIL does it: an antialiased triangle filter, first along one axis,
then along the other, rounded to 8 bits in between. Each axis is a batched matrix product. Its
weights are multiples of 1/2048, so that products and sums are integers that float32 (also TF32)
holds exactly: the same bits for any batch size, and within one level of PIL.
"""

import torch
from torch import Tensor

WEIGHT_UNIT = 2048
"""Resize weights are integers over this: 11 bits, which TF32 keeps; pixels are 8 bits, sums 19."""


def crop_and_resize(images: Tensor, boxes: Tensor, size: int) -> Tensor:
    """Cut boxes out of images and resize them, antialiased bilinear, within one level of PIL.

    Args:
        images: ``(N, H, W, 3)`` uint8.
        boxes: ``(N, V, 4)`` int32: top, left, height, width in pixels, inside the image.
        size: Side of the square results, pixels.

    Returns:
        ``(N, V, size, size, 3)`` uint8, contiguous.
    """
    count, height, width = images.shape[:3]
    views = boxes.shape[1]
    top, left, box_height, box_width = boxes.unbind(2)
    rows = _weights(top, box_height, size, height).view(count, views * size, height)
    columns = _weights(left, box_width, size, width).view(count * views, size, width)
    flat = images.to(torch.float32).view(count, height, width * 3)
    tall = _rounded(rows @ flat).view(count * views, size, width, 3)
    across = tall.transpose(1, 2).reshape(count * views, width, size * 3)
    crops = _rounded(columns @ across).view(count, views, size, size, 3).to(torch.uint8)
    return crops.transpose(2, 3).contiguous()


def _rounded(sums: Tensor) -> Tensor:
    """Round weighted sums to integer levels, in place, still float32."""
    return sums.div_(WEIGHT_UNIT).add_(0.5).floor_()


def _weights(start: Tensor, length: Tensor, size: int, extent: int) -> Tensor:
    """Compute the weight of each input pixel in each output pixel along one axis, times 2048.

    PIL's ``precompute_coeffs`` for a triangle: it is as wide as the output pixel where that covers
    more than one input pixel, and never leaves the box.

    Args:
        start: First input pixel of the box, ``(N, V)``.
        length: Input pixels in the box, ``(N, V)``.
        size: Output pixels.
        extent: Input pixels of the full axis.

    Returns:
        ``(N, V, size, extent)`` float32, integers; each row sums to 2048.
    """
    start, length = start[:, :, None, None], length[:, :, None, None]
    scale = length / size
    outputs = torch.arange(size, device=start.device)[:, None]
    inputs = torch.arange(extent, device=start.device)[None, :] - start
    distance = (inputs + 0.5 - (outputs + 0.5) * scale).abs()
    weights = (1 - distance / scale.clamp(min=1)).clamp(min=0)
    weights = torch.where((inputs >= 0) & (inputs < length), weights, 0.0)
    weights = (weights * (WEIGHT_UNIT / weights.sum(-1, keepdim=True))).round_()
    missing = WEIGHT_UNIT - weights.sum(-1, keepdim=True)
    largest = weights.argmax(-1, keepdim=True) == torch.arange(extent, device=start.device)
    return weights + torch.where(largest, missing, 0.0)
