"""Parameters of the views of N images, drawn on the device: the same for all ways to make views.

Every image draws its own, also its own order of the four jitter operations, and yet all shapes are
fixed: an operation that an image does not draw gets a neutral value (factor 1, shift 0, sigma 0,
threshold 2). What the policy draws in none of the views is None, and costs nothing.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmoco.draws.device import uniform
from fastmoco.draws.streams import Draw
from fastmoco.pipelines.color import Jitter
from fastmoco.pipelines.policies import Policy

NEVER = 2.0
"""Threshold of an image that is not solarized: no channel reaches it."""


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
    solarize: Tensor | None = None
    """Threshold, float32 in 0..1; `NEVER` where not solarized."""


def draw_parameters(draw_key: Tensor, views: Sequence[int], policy: Policy) -> ViewParameters:
    """Draw parameters: a pure function, so that any view can be drawn again later.

    Args:
        draw_key: ``(N,)`` int64, from `draws.draw_keys`; the parameters are on its device.
        views: Indices of the views: 0 for the query, 1 for the key.
        policy: Augmentations to draw.

    Returns:
        Tensors ``(len(views) * N,)``, one view after the other.
    """

    def of_views(name: str) -> list[Any]:
        return [policy.of_view(name, view) for view in views]

    def drawn(what: Draw, bounds: Sequence[tuple[float, float]]) -> Tensor:
        parts = zip(views, bounds, strict=True)
        return torch.cat(
            [low + (high - low) * uniform(draw_key, what, view) for view, (low, high) in parts]
        )

    def chance(what: Draw, name: str) -> Tensor | None:
        shares = of_views(name)
        if not any(shares):
            return None
        pairs = zip(views, shares, strict=True)
        return torch.cat([uniform(draw_key, what, view) < share for view, share in pairs])

    def value(what: Draw, chosen: Tensor | None, bounds: Any, neutral: float) -> Tensor | None:
        return None if chosen is None else torch.where(chosen, drawn(what, bounds), neutral)

    jittered = chance(Draw.JITTER_APPLY, "jitter_probability")
    blurred = chance(Draw.BLUR_APPLY, "blur_probability")
    solarized = chance(Draw.SOLARIZE_APPLY, "solarize_probability")
    thresholds = [(threshold, threshold) for threshold in of_views("solarize_threshold")]
    return ViewParameters(
        flip=chance(Draw.FLIP, "flip_probability"),
        jitter=None if jittered is None else _draw_jitter(drawn, jittered, of_views),
        grayscale=chance(Draw.GRAYSCALE, "grayscale_probability"),
        grayscale_first=policy.grayscale_first,
        blur_sigma=value(Draw.BLUR_SIGMA, blurred, of_views("blur_sigma"), 0.0),
        blur_radius=max(math.ceil(3 * policy.of_view("blur_sigma", view)[1]) for view in (0, 1)),
        solarize=value(Draw.SOLARIZE_APPLY, solarized, thresholds, NEVER),
    )


def _draw_jitter(
    drawn: Callable[[Draw, Any], Tensor], jittered: Tensor, of_views: Callable[[str], list[float]]
) -> Jitter:
    def factor(what: Draw, name: str) -> Tensor:
        bounds = [(max(0.0, 1 - strength), 1 + strength) for strength in of_views(name)]
        return torch.where(jittered, drawn(what, bounds), 1.0)

    hues, orders = of_views("hue"), [(0, 24)] * len(of_views("hue"))
    return Jitter(
        brightness=factor(Draw.BRIGHTNESS, "brightness"),
        contrast=factor(Draw.CONTRAST, "contrast"),
        saturation=factor(Draw.SATURATION, "saturation"),
        hue=torch.where(jittered, drawn(Draw.HUE, [(-hue, hue) for hue in hues]), 0.0),
        order=drawn(Draw.JITTER_ORDER, orders).to(torch.int64),  # below 24 also when rounded
    )
