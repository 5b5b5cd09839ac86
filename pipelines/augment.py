"""The photometric half of a view, for the whole batch at once, on the device.

crops (uint8) --flip, jitter, grayscale, blur, normalize--> views (training dtype, channels_last)

Every image draws its own parameters, also its own order of the four jitter operations, and yet all
shapes are fixed: what an image does not draw gets a neutral value (factor 1, shift 0, sigma 0), so
nothing is read back to the host and ``torch.compile`` captures one graph. The price: every image
pays for operations that only some draw (blur at p = 0.5 costs as much as at p = 1). A policy's
pool is the exception: `pool`, which runs eagerly.

On a CPU, where branches are cheap and memory is dear, `host_views` does the same image by image.
Colors are computed on three separate planes, for speed: `color`.
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
from fastmoco.pipelines.cpu_views import host_views
from fastmoco.pipelines.policies import Policy
from fastmoco.pipelines.pool import apply_pool


class ViewParameters(NamedTuple):
    """What was drawn for N images, each tensor ``(N,)``; None where the policy never does it."""

    flip: Tensor | None
    """bool."""
    jitter: Jitter | None
    grayscale: Tensor | None
    """bool."""
    grayscale_first: bool
    """Before the jitter, not after it."""
    blur_sigma: Tensor | None
    """float32, pixels; 0 where not blurred."""
    blur_radius: int
    """Of the kernel, pixels: 3 of the policy's largest sigma, beyond which lies 0.1% of it."""


def augment_views(
    crops: Tensor, draw_key: Tensor, policy: Policy, mean: Tensor, std: Tensor, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Draw and apply the policy to every view of every image.

    Args:
        crops: ``(N, V, H, W, 3)`` uint8, RGB.
        draw_key: ``(N,)`` int64, from `draws.draw_keys`; ``(N, V)`` where each view is of an image
            of its own.
        policy: What to draw; a static value under ``torch.compile``, which a pool forbids.
        mean: ``(3,)`` float32 of the 0..1 range, on the device.
        std: ``(3,)`` float32, likewise.
        dtype: Of the views; all color work is float32, also under autocast.

    Returns:
        V tensors ``(N, 3, H, W)``, channels_last, normalized.
    """
    views = plain_views
    if crops.device.type == "cpu" and not policy.pool:
        views = _views_on_host
    return torch.split(views(crops, draw_key, policy, mean, std).to(dtype), len(crops))


def plain_views(
    crops: Tensor, draw_key: Tensor, policy: Policy, mean: Tensor, std: Tensor
) -> Tensor:
    """The views by torch's and Kornia's operations; arguments as of `augment_views`.

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


def _views_on_host(
    crops: Tensor, draw_key: Tensor, policy: Policy, mean: Tensor, std: Tensor
) -> Tensor:
    """As `plain_views`, by `host_views`."""
    parameters = draw_parameters(draw_key, range(crops.shape[1]), policy)
    sequence, drawn = _packed(parameters, crops.shape[1] * len(draw_key))
    radius = min(parameters.blur_radius, crops.shape[2] - 1, crops.shape[3] - 1)
    first = parameters.grayscale_first
    views: Tensor = host_views(crops, sequence, drawn, first, radius, mean, std)
    return views.permute(0, 3, 1, 2)


def _packed(parameters: ViewParameters, count: int) -> tuple[Tensor, Tensor]:
    """The jitter's order, ``(count, 4)``, and all else that was drawn, for `host_views`."""
    flip, jitter, gray, _, sigma, _ = parameters
    none, one = torch.zeros(count), torch.ones(count)
    jitter = jitter or Jitter(one, one, one, none, none.to(torch.int64))
    *places, before_hue = jitter_places(jitter.order)
    # Hue comes before those of the other three whose place is not below `before_hue`.
    ranks = [2 * place for place in places] + [2 * before_hue - 1]
    sequence = torch.argsort(torch.stack(ranks, 1), dim=1)
    rest = (none if value is None else value.to(torch.float32) for value in (flip, gray, sigma))
    return sequence, torch.stack([*jitter[:4], *rest], 1)


def normalized(crops: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """``(crops / 255 - mean) / std``: the view that evaluation sees.

    Args:
        crops: ``(N, 1, H, W, 3)`` uint8, RGB.
        mean: ``(3,)`` float32 of the 0..1 range, on the device.
        std: ``(3,)`` float32, likewise.
        dtype: Of the result.

    Returns:
        ``(N, 3, H, W)``, channels_last.
    """
    return _normalized(_planes(crops), mean, std).to(dtype)


def apply_view(images: Tensor, parameters: ViewParameters) -> Tensor:
    """One view with given parameters, not normalized.

    Args:
        images: ``(N, 3, H, W)`` float32 in 0..1, RGB.
        parameters: Of these N images.

    Returns:
        ``(N, 3, H, W)`` float32 in 0..1.
    """
    red, green, blue = images.unbind(1)
    return torch.stack(_augmented((red, green, blue), parameters), 1)


# ---------------------------------------------------------------- draws


def draw_parameters(draw_key: Tensor, views: Sequence[int], policy: Policy) -> ViewParameters:
    """Draw parameters: a pure function, so that any view can be drawn again later.

    Args:
        draw_key: ``(N,)`` int64, from `draws.draw_keys`; the parameters live on its device.
        views: Which views: 0 is the query's, 1 the key's.
        policy: What to draw.

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
    """``(N, V, H, W, 3)`` uint8 to planes ``(V * N, H, W)``, one view after the other."""
    red, green, blue = crops.permute(4, 1, 0, 2, 3).flatten(1, 2).to(torch.float32) / 255
    return red, green, blue


def _normalized(planes: Planes, mean: Tensor, std: Tensor) -> Tensor:
    """Planes to ``(N, 3, H, W)`` channels_last: in memory, NHWC."""
    scaled = [(plane - mean[c]) / std[c] for c, plane in enumerate(planes)]
    return torch.stack(scaled, -1).permute(0, 3, 1, 2)


def _augmented(planes: Planes, parameters: ViewParameters) -> Planes:
    """Order as in the official code, but flip first: it commutes with all the others."""
    flip, jitter, gray, gray_first, sigma, radius = parameters
    if flip is not None:
        planes = each(planes, lambda plane: torch.where(per_image(flip), plane.flip(-1), plane))
    if gray is not None and gray_first:
        planes = grayscale(planes, gray)
    if jitter is not None:
        planes = color_jitter(planes, jitter)
    if gray is not None and not gray_first:
        planes = grayscale(planes, gray)
    return planes if sigma is None else _blur(planes, sigma, radius)


def _blur(planes: Planes, sigma: Tensor, radius: int) -> Planes:
    """Gaussian blur with reflected borders; images of sigma 0 pass unchanged, also under TF32.

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
