"""Photometric augmentation of a batch of crops on the device.

crops (uint8) --flip, jitter, grayscale, blur, solarize, normalize--> views (training dtype,
channels_last)

Three ways make the same views, from the same parameters (`view_parameters`) and equal within 1e-5
in 0..1: Kornia's functions (`kornia_views`), our operations on three color planes (`color`), and
on a CPU, where branches are cheap and memory is slow, loops over the images (`cpu_views`), for the
parameters that they implement. Shapes are fixed and nothing is read back to the host, so that
``torch.compile`` captures one graph. The price: every image pays for operations that only some draw
(blur at p = 0.5 costs as much as at p = 1). A policy's pool is the exception: `pool`, which runs
eagerly.

A new augmentation needs a field of `Policy`, a member of `Draw`, a field of `ViewParameters` with
its draw, and its operation in `_planes_augmented` and in `kornia_views`. A CPU then runs policies
that draw it by `plain_views`, until `cpu_views` implements it too.
"""

import torch
from torch import Tensor

from fastmoco.pipelines.color import (
    Jitter,
    Planes,
    color_jitter,
    each,
    grayscale,
    jitter_places,
    per_image,
    solarize,
)
from fastmoco.pipelines.cpu_views import cpu_views
from fastmoco.pipelines.kornia_views import blur, kornia_views
from fastmoco.pipelines.policies import Policy
from fastmoco.pipelines.pool import apply_pool
from fastmoco.pipelines.settings import Augmentation
from fastmoco.pipelines.view_parameters import NEVER, ViewParameters, draw_parameters


def choose_augmentation(device: torch.device) -> tuple[Augmentation, str]:
    """What `Augmentation.auto` is on a device, and why; a rule, nothing is timed."""
    if device.type == "cuda":
        return Augmentation.kornia, "no measurement on a GPU shows that planes are faster"
    return Augmentation.planes, "on a CPU, loops over the images are faster"


def uses_kornia(augmentation: Augmentation, device: torch.device) -> bool:
    """Whether Kornia's functions make the views on a device."""
    if augmentation is Augmentation.auto:
        augmentation, _ = choose_augmentation(device)
    return augmentation is Augmentation.kornia


def augment_views(
    crops: Tensor,
    draw_key: Tensor,
    policy: Policy,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype,
    *,
    by_kornia: bool | None = None,
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
        by_kornia: Whether Kornia's functions make them; None: as `choose_augmentation` has it.

    Returns:
        V tensors ``(N, 3, H, W)``, channels_last, normalized.
    """
    if by_kornia is None:
        by_kornia = uses_kornia(Augmentation.auto, crops.device)
    if crops.device.type == "cpu" and not policy.pool and not by_kornia:
        parameters = draw_parameters(draw_key, range(crops.shape[1]), policy)
        if _loops_implement(parameters):
            return torch.split(_loop_views(crops, parameters, mean, std).to(dtype), len(crops))
    views = plain_views(crops, draw_key, policy, mean, std, by_kornia=by_kornia)
    return torch.split(views.to(dtype), len(crops))


def plain_views(
    crops: Tensor,
    draw_key: Tensor,
    policy: Policy,
    mean: Tensor,
    std: Tensor,
    *,
    by_kornia: bool = False,
) -> Tensor:
    """Make the views by operations on the batch; arguments as in `augment_views`.

    Returns:
        ``(V * N, 3, H, W)`` float32, channels_last, one view after the other.
    """
    parameters = draw_parameters(draw_key, range(crops.shape[1]), policy)
    with torch.autocast(crops.device.type, enabled=False):
        if by_kornia:
            planes = _unbound(kornia_views(_images(crops), parameters))
        else:
            planes = _planes_augmented(_planes(crops), parameters)
        if policy.pool:
            pooled = apply_pool(torch.stack(planes, 1), draw_key, range(crops.shape[1]), policy)
            planes = _unbound(pooled)
        return _normalized(planes, mean, std)


LOOP_PARAMETERS = (
    "flip",
    "jitter",
    "grayscale",
    "grayscale_first",
    "blur_sigma",
    "blur_radius",
    "solarize",
)
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
    columns.append(one * NEVER if parameters.solarize is None else parameters.solarize)
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


def apply_view(images: Tensor, parameters: ViewParameters, *, by_kornia: bool = False) -> Tensor:
    """Make one view with given parameters, not normalized.

    Args:
        images: ``(N, 3, H, W)`` float32 in 0..1, RGB.
        parameters: Parameters of these N images.
        by_kornia: Whether Kornia's functions make it.

    Returns:
        ``(N, 3, H, W)`` float32 in 0..1.
    """
    if by_kornia:
        return kornia_views(images, parameters)
    return torch.stack(_planes_augmented(_unbound(images), parameters), 1)


def _images(crops: Tensor) -> Tensor:
    """Convert ``(N, V, H, W, 3)`` uint8 to images ``(V * N, 3, H, W)``, view after view."""
    return crops.permute(1, 0, 4, 2, 3).flatten(0, 1).to(torch.float32) / 255


def _unbound(images: Tensor) -> Planes:
    red, green, blue = images.unbind(1)
    return red, green, blue


def _planes(crops: Tensor) -> Planes:
    """Convert ``(N, V, H, W, 3)`` uint8 to planes ``(V * N, H, W)``, view after view."""
    red, green, blue = crops.permute(4, 1, 0, 2, 3).flatten(1, 2).to(torch.float32) / 255
    return red, green, blue


def _normalized(planes: Planes, mean: Tensor, std: Tensor) -> Tensor:
    """Normalize planes to ``(N, 3, H, W)`` channels_last: in memory, NHWC."""
    scaled = [(plane - mean[c]) / std[c] for c, plane in enumerate(planes)]
    return torch.stack(scaled, -1).permute(0, 3, 1, 2)


def _planes_augmented(planes: Planes, parameters: ViewParameters) -> Planes:
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
    if sigma is not None:
        planes = _unbound(blur(torch.stack(planes, 1), sigma, parameters.blur_radius))
    return planes if parameters.solarize is None else solarize(planes, parameters.solarize)
