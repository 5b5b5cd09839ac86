"""Photometric augmentation of a batch of crops on the device.

crops (uint8) --flip, jitter, grayscale, blur, normalize--> views (training dtype, channels_last)

Every image draws its own parameters, also its own order of the four jitter operations, and yet all
shapes are fixed: an operation that an image does not draw gets a neutral value (factor 1, shift 0,
sigma 0). So nothing is read back to the host and ``torch.compile`` captures one graph. The price:
every image pays for operations that only some draw (blur at p = 0.5 costs as much as at p = 1). A
policy's pool is the exception: `pool`, which runs eagerly.

On a CPU, where branches are cheap and memory is slow, `cpu_views` does the same image by image, for
the parameters that it implements. Colors are computed on three separate planes, for speed: `color`.

A new augmentation needs a field of `Policy`, a member of `Draw`, and here a field of
`ViewParameters`, its draw in `draw_parameters` and its operation in `_augmented`. A CPU then runs
policies that draw it by `plain_views`, until `cpu_views` implements it too.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from kornia.filters import filter2d_separable, get_gaussian_kernel1d
from torch import Tensor

from fastmoco.draws.device import uniform
from fastmoco.draws.streams import Draw
from fastmoco.pipelines.color import (
    Jitter,
    Planes,
    color_jitter,
    each,
    grayscale,
    jitter_places,
    per_image,
)
from fastmoco.pipelines.cpu_views import cpu_views
from fastmoco.pipelines.policies import Policy
from fastmoco.pipelines.pool import apply_pool


class ViewParameters(NamedTuple):
    """Parameters drawn for N images, tensors ``(N,)``; None where the policy never draws one."""

    flip: Tensor | None
    """bool."""
    jitter: Jitter | None
    grayscale: Tensor | None
    """bool."""
    grayscale_first: bool
    """Grayscale comes before the jitter, not after it."""
    blur_sigma: Tensor | None
    """float32, pixels; 0 where not blurred."""
    blur_radius: int
    """Radius of the kernel, pixels: 3 times the policy's largest sigma; 0.1% is beyond it."""


def augment_views(
    crops: Tensor, draw_key: Tensor, policy: Policy, mean: Tensor, std: Tensor, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Draw and apply the policy to every view of every image.

    Args:
        crops: ``(N, V, H, W, 3)`` uint8, RGB.
        draw_key: ``(N,)`` int64, from `draws.draw_keys`; ``(N, V)`` if each view is of a different
            image.
        policy: Augmentations to draw; static under ``torch.compile``, which a pool forbids.
        mean: Channel means in 0..1, ``(3,)`` float32, on the device.
        std: Channel standard deviations in 0..1, ``(3,)`` float32, on the device.
        dtype: Type of the views; all color work is float32, also under autocast.

    Returns:
        V tensors ``(N, 3, H, W)``, channels_last, normalized.
    """
    if crops.device.type == "cpu" and not policy.pool:
        parameters = draw_parameters(draw_key, range(crops.shape[1]), policy)
        if _loops_implement(parameters):
            return torch.split(_loop_views(crops, parameters, mean, std).to(dtype), len(crops))
    return torch.split(plain_views(crops, draw_key, policy, mean, std).to(dtype), len(crops))


def plain_views(
    crops: Tensor, draw_key: Tensor, policy: Policy, mean: Tensor, std: Tensor
) -> Tensor:
    """Make the views by torch's and Kornia's operations; arguments as in `augment_views`.

    Returns:
        ``(V * N, 3, H, W)`` float32, channels_last, one view after the other.
    """
    parameters = draw_parameters(draw_key, range(crops.shape[1]), policy)
    with torch.autocast(crops.device.type, enabled=False):
        planes = _augmented(_planes(crops), parameters)
        if policy.pool:
            pooled = apply_pool(torch.stack(planes, 1), draw_key, range(crops.shape[1]), policy)
            planes = pooled[:, 0], pooled[:, 1], pooled[:, 2]
        return _normalized(planes, mean, std)


LOOP_PARAMETERS = ("flip", "jitter", "grayscale", "grayscale_first", "blur_sigma", "blur_radius")
"""Fields of `ViewParameters` that the loops of `cpu_views` implement and `_packed` passes."""


def _loops_implement(parameters: ViewParameters) -> bool:
    """Whether the loops implement all that was drawn; static, as it depends only on the policy."""
    pairs = zip(parameters._fields, parameters, strict=True)
    return all(value is None or name in LOOP_PARAMETERS for name, value in pairs)


def _loop_views(crops: Tensor, parameters: ViewParameters, mean: Tensor, std: Tensor) -> Tensor:
    """Make the views by `cpu_views`; the result is that of `plain_views`."""
    sequence, drawn = _packed(parameters, crops.shape[0] * crops.shape[1])
    radius = min(parameters.blur_radius, crops.shape[2] - 1, crops.shape[3] - 1)
    first = parameters.grayscale_first
    views: Tensor = cpu_views(crops, sequence, drawn, first, radius, mean, std)
    return views.permute(0, 3, 1, 2)


def _packed(parameters: ViewParameters, count: int) -> tuple[Tensor, Tensor]:
    """Pack the jitter's order, ``(count, 4)``, and the other drawn values for `cpu_views`."""
    none, one = torch.zeros(count), torch.ones(count)
    jitter = parameters.jitter or Jitter(one, one, one, none, none.to(torch.int64))
    brightness, contrast, saturation, hue, order = jitter
    *positions, before_hue = jitter_places(order)
    # Hue comes before those of the other three whose position is not below `before_hue`.
    ranks = [2 * position for position in positions] + [2 * before_hue - 1]
    sequence = torch.argsort(torch.stack(ranks, 1), dim=1)
    rest = parameters.flip, parameters.grayscale, parameters.blur_sigma
    columns = [none if value is None else value.to(torch.float32) for value in rest]
    return sequence, torch.stack([brightness, contrast, saturation, hue, *columns], 1)


def normalized(crops: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """``(crops / 255 - mean) / std``: the views of evaluation.

    Args:
        crops: ``(N, 1, H, W, 3)`` uint8, RGB.
        mean: Channel means in 0..1, ``(3,)`` float32, on the device.
        std: Channel standard deviations in 0..1, ``(3,)`` float32, on the device.
        dtype: Type of the result.

    Returns:
        ``(N, 3, H, W)``, channels_last.
    """
    return _normalized(_planes(crops), mean, std).to(dtype)


def apply_view(images: Tensor, parameters: ViewParameters) -> Tensor:
    """Make one view with given parameters, not normalized.

    Args:
        images: ``(N, 3, H, W)`` float32 in 0..1, RGB.
        parameters: Parameters of these N images.

    Returns:
        ``(N, 3, H, W)`` float32 in 0..1.
    """
    red, green, blue = images.unbind(1)
    return torch.stack(_augmented((red, green, blue), parameters), 1)


# ---------------------------------------------------------------- draws


def draw_parameters(draw_key: Tensor, views: Sequence[int], policy: Policy) -> ViewParameters:
    """Draw parameters: a pure function, so that any view can be drawn again later.

    Args:
        draw_key: ``(N,)`` int64, from `draws.draw_keys`; the parameters are on its device.
        views: Indices of the views: 0 for the query, 1 for the key.
        policy: Augmentations to draw.

    Returns:
        Tensors ``(len(views) * N,)``, one view after the other.
    """

    def drawn(what: Draw, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.cat([uniform(draw_key, what, view) for view in views])

    def chance(what: Draw, probability: float) -> Tensor | None:
        return drawn(what) < probability if probability else None

    jittered = chance(Draw.JITTER_APPLY, policy.jitter_probability)
    blurred = chance(Draw.BLUR_APPLY, policy.blur_probability)
    sigma = drawn(Draw.BLUR_SIGMA, *policy.blur_sigma)
    return ViewParameters(
        flip=chance(Draw.FLIP, policy.flip_probability),
        jitter=None if jittered is None else _draw_jitter(drawn, jittered, policy),
        grayscale=chance(Draw.GRAYSCALE, policy.grayscale_probability),
        grayscale_first=policy.grayscale_first,
        blur_sigma=None if blurred is None else torch.where(blurred, sigma, 0.0),
        blur_radius=math.ceil(3 * policy.blur_sigma[1]),
    )


def _draw_jitter(drawn: Callable[..., Tensor], jittered: Tensor, policy: Policy) -> Jitter:
    def factor(what: Draw, strength: float) -> Tensor:
        return torch.where(jittered, drawn(what, max(0.0, 1 - strength), 1 + strength), 1.0)

    return Jitter(
        brightness=factor(Draw.BRIGHTNESS, policy.brightness),
        contrast=factor(Draw.CONTRAST, policy.contrast),
        saturation=factor(Draw.SATURATION, policy.saturation),
        hue=torch.where(jittered, drawn(Draw.HUE, -policy.hue, policy.hue), 0.0),
        order=drawn(Draw.JITTER_ORDER, 0, 24).to(torch.int64),  # below 24 also when rounded
    )


# ---------------------------------------------------------------- operations


def _planes(crops: Tensor) -> Planes:
    """Convert ``(N, V, H, W, 3)`` uint8 to planes ``(V * N, H, W)``, view after view."""
    red, green, blue = crops.permute(4, 1, 0, 2, 3).flatten(1, 2).to(torch.float32) / 255
    return red, green, blue


def _normalized(planes: Planes, mean: Tensor, std: Tensor) -> Tensor:
    """Normalize planes to ``(N, 3, H, W)`` channels_last: in memory, NHWC."""
    scaled = [(plane - mean[c]) / std[c] for c, plane in enumerate(planes)]
    return torch.stack(scaled, -1).permute(0, 3, 1, 2)


def _augmented(planes: Planes, parameters: ViewParameters) -> Planes:
    """Apply in the official code's order, but flip first: it commutes with all the others."""
    flip, gray, sigma = parameters.flip, parameters.grayscale, parameters.blur_sigma
    if flip is not None:
        planes = each(planes, lambda plane: torch.where(per_image(flip), plane.flip(-1), plane))
    if gray is not None and parameters.grayscale_first:
        planes = grayscale(planes, gray)
    if parameters.jitter is not None:
        planes = color_jitter(planes, parameters.jitter)
    if gray is not None and not parameters.grayscale_first:
        planes = grayscale(planes, gray)
    return planes if sigma is None else _blur(planes, sigma, parameters.blur_radius)


def _blur(planes: Planes, sigma: Tensor, radius: int) -> Planes:
    """Blur with reflected borders; images of sigma 0 pass unchanged, also under TF32.

    Kornia's group convolutions were the fastest of three forms on a CPU (one core of an AMD EPYC,
    torch 2.15, eager / compiled CPU time, 16 images of 224 x 224): 15 / 22 ms, 13 shifted and
    weighted copies 61 / 25 ms, banded matrix products 67 / 59 ms. CUDA: not measured.
    """
    images = torch.stack(planes, 1)
    radius = min(radius, images.shape[-2] - 1, images.shape[-1] - 1)  # reflection allows no more
    kernel = get_gaussian_kernel1d(2 * radius + 1, sigma[:, None])
    blurred = filter2d_separable(images, kernel, kernel)
    red, green, blue = torch.where(sigma[:, None, None, None] > 0, blurred, images).unbind(1)
    return red, green, blue
