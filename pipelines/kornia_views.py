"""Photometric operations of a batch of views by Kornia's functions, on ``(N, 3, H, W)`` images.

Equal to the operations on planes (`color`) within 1e-5 in 0..1, for the same parameters. Kornia's
functions take a factor for each image but apply one order to a batch. Here each image keeps its own
order: hue, the most expensive operation, is called once, and the other three so often on both sides
of it that every order of the four is among the 15 calls. An image's factor is neutral in those that
it does not take. For the time beside that of the planes see `color`. On CUDA no time is measured;
compiled for sm_90 (torch 2.15) the views of MoCo v2 are 20 Triton kernels and 2 convolutions, those
by planes 7 and 2: three color channels in one tensor are fused less far.

Not used: Kornia's classes, which draw on the host and cut a compiled step into several graphs, and
`gaussian_blur2d`, which reads sigma back to the host where it is not compiled.
"""

from collections.abc import Callable

import torch
from kornia.color import rgb_to_grayscale
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_hue,
    adjust_saturation_with_gray_subtraction,
    solarize,
)
from kornia.filters import filter2d_separable, get_gaussian_kernel1d
from torch import Tensor

from fastmoco.pipelines.color import Jitter, jitter_places
from fastmoco.pipelines.view_parameters import ViewParameters

_OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "brightness": adjust_brightness_accumulative,
    "contrast": adjust_contrast_with_mean_subtraction,
    "saturation": adjust_saturation_with_gray_subtraction,
}
_CALLS = tuple("brightness saturation brightness contrast brightness saturation brightness".split())
"""All six orders of the three operations are subsequences of this list; no shorter one has all."""


def kornia_views(images: Tensor, parameters: ViewParameters) -> Tensor:
    """Apply in the official code's order, but flip first: it commutes with all the others.

    Args:
        images: ``(N, 3, H, W)`` float32 in 0..1, RGB.
        parameters: Parameters of these N images.

    Returns:
        ``(N, 3, H, W)`` float32 in 0..1.
    """
    flip, gray, sigma = parameters.flip, parameters.grayscale, parameters.blur_sigma
    if flip is not None:
        images = torch.where(_per_image(flip), images.flip(-1), images)
    if gray is not None and parameters.grayscale_first:
        images = _grayscale(images, gray)
    if parameters.jitter is not None:
        images = _color_jitter(images, parameters.jitter)
    if gray is not None and not parameters.grayscale_first:
        images = _grayscale(images, gray)
    if sigma is not None:
        images = blur(images, sigma, parameters.blur_radius)
    return images if parameters.solarize is None else solarize(images, parameters.solarize)


def blur(images: Tensor, sigma: Tensor, radius: int) -> Tensor:
    """Blur with reflected borders; images of sigma 0 pass unchanged, also under TF32.

    Kornia's group convolutions were the fastest of three forms on a CPU (one core of an AMD EPYC,
    torch 2.15, eager / compiled CPU time, 16 images of 224 x 224): 15 / 22 ms, 13 shifted and
    weighted copies 61 / 25 ms, banded matrix products 67 / 59 ms. CUDA: not measured.

    Args:
        images: ``(N, 3, H, W)`` float32 in 0..1.
        sigma: ``(N,)`` float32, pixels.
        radius: Radius of the kernel, pixels; at most what reflection allows is used.
    """
    radius = min(radius, images.shape[-2] - 1, images.shape[-1] - 1)
    kernel = get_gaussian_kernel1d(2 * radius + 1, sigma[:, None])
    blurred = filter2d_separable(images, kernel, kernel)
    return torch.where(_per_image(sigma) > 0, blurred, images)


def _per_image(values: Tensor) -> Tensor:
    """Reshape ``(N,)`` to ``(N, 1, 1, 1)``."""
    return values[:, None, None, None]


def _grayscale(images: Tensor, chosen: Tensor) -> Tensor:
    return torch.where(_per_image(chosen), rgb_to_grayscale(images), images)


def _color_jitter(images: Tensor, jitter: Jitter) -> Tensor:
    """Apply torchvision's ColorJitter, its four operations in each image's own order."""
    before_hue, after_hue = _factors(jitter)
    images = _called(images, before_hue)
    images = adjust_hue(images, 2 * torch.pi * jitter.hue)
    return _called(images, after_hue)


def _called(images: Tensor, factors: Tensor) -> Tensor:
    """Call the seven operations with their factors, ``(7, N)``."""
    for name, factor in zip(_CALLS, factors.unbind(0), strict=True):
        images = _OPERATIONS[name](images, factor)
    return images


def _factors(jitter: Jitter) -> Tensor:
    """Compute the factors of the calls before and after hue, 1 where an image does not take one.

    Returns:
        ``(2, 7, N)`` float32: one tensor, so that it is not computed again in every pixel.
    """
    brightness, contrast, saturation, num_before_hue = jitter_places(jitter.order)
    places = {"brightness": brightness, "contrast": contrast, "saturation": saturation}
    taken = {
        "brightness": 4 * (brightness > contrast) + 2 * (brightness > saturation),
        "contrast": torch.full_like(contrast, 3),
        "saturation": 4 * (saturation > contrast) + 1,
    }
    rows = []
    for first in (True, False):
        for call, name in enumerate(_CALLS):
            takes = ((places[name] < num_before_hue) == first) & (taken[name] == call)
            rows.append(torch.where(takes, getattr(jitter, name), 1.0))
    return torch.stack(rows).view(2, len(_CALLS), -1)
