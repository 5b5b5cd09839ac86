"""The photometric half of a view, for the whole batch at once, on the device.

crops (uint8) --flip, jitter, grayscale, blur, normalize--> views (training dtype, channels_last)

Every image draws its own parameters, also its own order of the four jitter operations, and yet all
shapes are fixed: what an image does not draw gets a neutral value (factor 1, shift 0, sigma 0), so
nothing is read back to the host and ``torch.compile`` captures one graph. The price: every image
pays for operations that only some draw (blur at p = 0.5 costs as much as at p = 1).

Jitter is computed on separate color planes by own operations that equal Kornia's to 1e-5: hue needs
no HSV image, and brightness, saturation and contrast are one blend. ColorJitter against the same
schedule of Kornia's four functions, on one core of an AMD EPYC, torch 2.15 and Kornia 0.9, medians
of 7 alternating rounds: RATIOS.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from kornia.filters import filter2d_separable, get_gaussian_kernel1d
from torch import Tensor

from fastmoco.pipelines.draws import Draw, uniform
from fastmoco.pipelines.policies import Policy

Planes = tuple[Tensor, Tensor, Tensor]
"""Red, green and blue, each ``(N, H, W)`` float32 in 0..1."""


class Jitter(NamedTuple):
    """ColorJitter of N images, each tensor ``(N,)``; an image that is not jittered has factors 1, hue 0."""

    brightness: Tensor
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    """Shift in turns, -0.5..0.5."""
    order: Tensor
    """int64 in 0..23, which permutation of the four: `jitter_places`."""


class ViewParameters(NamedTuple):
    """All that was drawn for one view of N images; None where the policy never applies the operation."""

    flip: Tensor | None
    """bool ``(N,)``."""
    jitter: Jitter | None
    grayscale: Tensor | None
    """bool ``(N,)``."""
    grayscale_first: bool
    """Before the jitter, not after it."""
    blur_sigma: Tensor | None
    """float32 ``(N,)``, pixels; 0 where not blurred."""
    blur_radius: int
    """Of the kernel, pixels: 3 sigma at the policy's largest sigma leave out 0.1% of its weight."""


def augment_views(
    crops: Tensor, draw_key: Tensor, policy: Policy, mean: Tensor, std: Tensor, dtype: torch.dtype
) -> tuple[Tensor, ...]:
    """Draw and apply the policy to every view of every image.

    Args:
        crops: ``(N, V, H, W, 3)`` uint8, RGB.
        draw_key: ``(N,)`` int64, from `draws.draw_keys`.
        policy: What to draw; a static value under ``torch.compile``.
        mean: ``(3,)`` float32 of the 0..1 range, on the device.
        std: ``(3,)`` float32, likewise.
        dtype: Of the views; all color work is float32, also under autocast.

    Returns:
        V tensors ``(N, 3, H, W)``, channels_last, normalized.
    """
    views = []
    with torch.autocast(crops.device.type, enabled=False):
        for view in range(crops.shape[1]):
            parameters = draw_parameters(draw_key, view, policy)
            planes = _augmented(_planes(crops[:, view]), parameters)
            views.append(_normalized(planes, mean, std, dtype))
    return tuple(views)


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
    return _normalized(_planes(crops[:, 0]), mean, std, dtype)


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


def draw_parameters(draw_key: Tensor, view: int, policy: Policy) -> ViewParameters:
    """Draw one view's parameters: a pure function, so that any view can be drawn again later.

    Args:
        draw_key: ``(N,)`` int64, from `draws.draw_keys`; the parameters live on its device.
        view: 0 for the query's, 1 for the key's.
        policy: What to draw.
    """
    blurred = _chance(draw_key, Draw.BLUR_APPLY, view, policy.blur_probability)
    sigma = _between(draw_key, Draw.BLUR_SIGMA, view, *policy.blur_sigma)
    return ViewParameters(
        flip=_chance(draw_key, Draw.FLIP, view, policy.flip_probability),
        jitter=_draw_jitter(draw_key, view, policy),
        grayscale=_chance(draw_key, Draw.GRAYSCALE, view, policy.grayscale_probability),
        grayscale_first=policy.grayscale_first,
        blur_sigma=None if blurred is None else torch.where(blurred, sigma, 0.0),
        blur_radius=math.ceil(3 * policy.blur_sigma[1]),
    )


def _draw_jitter(draw_key: Tensor, view: int, policy: Policy) -> Jitter | None:
    applied = _chance(draw_key, Draw.JITTER_APPLY, view, policy.jitter_probability)
    if applied is None:
        return None

    def factor(what: Draw, strength: float) -> Tensor:
        drawn = _between(draw_key, what, view, max(0.0, 1 - strength), 1 + strength)
        return torch.where(applied, drawn, 1.0)

    shift = _between(draw_key, Draw.HUE, view, -policy.hue, policy.hue)
    return Jitter(
        brightness=factor(Draw.BRIGHTNESS, policy.brightness),
        contrast=factor(Draw.CONTRAST, policy.contrast),
        saturation=factor(Draw.SATURATION, policy.saturation),
        hue=torch.where(applied, shift, 0.0),
        order=(24 * uniform(draw_key, Draw.JITTER_ORDER, view)).to(torch.int64),
    )


def _between(draw_key: Tensor, what: Draw, view: int, low: float, high: float) -> Tensor:
    return low + (high - low) * uniform(draw_key, what, view)


def _chance(draw_key: Tensor, what: Draw, view: int, probability: float) -> Tensor | None:
    return uniform(draw_key, what, view) < probability if probability else None


# ---------------------------------------------------------------- operations


def _planes(crops: Tensor) -> Planes:
    """``(N, H, W, 3)`` uint8 to planes."""
    red, green, blue = (crops.to(torch.float32) / 255).unbind(-1)
    return red, green, blue


def _normalized(planes: Planes, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """Planes to ``(N, 3, H, W)`` channels_last: in memory, NHWC."""
    scaled = [(plane - mean[c]) / std[c] for c, plane in enumerate(planes)]
    return torch.stack(scaled, -1).to(dtype).permute(0, 3, 1, 2)


def _augmented(planes: Planes, parameters: ViewParameters) -> Planes:
    """Order as in the official code, but flip first: it commutes with all the others."""
    if parameters.flip is not None:
        planes = _select(parameters.flip, lambda plane: plane.flip(-1), planes)
    if parameters.grayscale is not None and parameters.grayscale_first:
        planes = _grayscale(planes, parameters.grayscale)
    if parameters.jitter is not None:
        planes = _color_jitter(planes, parameters.jitter)
    if parameters.grayscale is not None and not parameters.grayscale_first:
        planes = _grayscale(planes, parameters.grayscale)
    if parameters.blur_sigma is not None:
        planes = _blur(planes, parameters.blur_sigma, parameters.blur_radius)
    return planes


def _per_image(values: Tensor) -> Tensor:
    """``(N,)`` to ``(N, 1, 1)``."""
    return values[:, None, None]


def _each(planes: Planes, op: Callable[[Tensor], Tensor]) -> Planes:
    red, green, blue = planes
    return op(red), op(green), op(blue)


def _gray(planes: Planes) -> Tensor:
    """Luma of ITU-R BT.601, as Kornia and PIL; torchvision has 0.2989 for red."""
    red, green, blue = planes
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _grayscale(planes: Planes, chosen: Tensor) -> Planes:
    gray = _gray(planes)
    return _each(planes, lambda plane: torch.where(_per_image(chosen), gray, plane))


def _blend(planes: Planes, factor: Tensor, other: Tensor) -> Planes:
    """``clamp(factor x + other, 0, 1)``; exactly x where factor is 1 and other 0."""
    scale = _per_image(factor)
    return _each(planes, lambda plane: torch.addcmul(other, scale, plane).clamp(0, 1))


def jitter_places(order: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Decode ``order = 12 s + 4 c + h`` into the permutation of the four jitter operations.

    Args:
        order: ``(N,)`` int64 in 0..23.

    Returns:
        The places, each ``(N,)`` int64, of brightness, contrast and saturation among these three
        (0..2), and of hue among all four (0..3). c is contrast's, h is hue's, and s = 1 puts
        saturation before brightness.
    """
    saturation_first, contrast, hue = order // 12, order // 4 % 3, order % 4
    early, late = (contrast == 0).to(torch.int64), 2 - (contrast == 2).to(torch.int64)
    brightness = torch.where(saturation_first == 1, late, early)
    return brightness, contrast, 3 - contrast - brightness, hue


def _color_jitter(planes: Planes, jitter: Jitter) -> Planes:
    """ColorJitter of torchvision, its four operations in each image's own order.

    Hue and the mean that contrast needs are dear, blends are cheap. So hue has one slot, contrast
    has one before and one after it, and around each contrast are two slots where brightness or
    saturation may stand: an image's operations take the slots that fit its order, and the others
    are neutral.
    """
    *_, hue_place = jitter_places(jitter.order)
    planes = _shade(planes, jitter, lambda place: place < hue_place)
    planes = _shift_hue(planes, jitter.hue)
    return _shade(planes, jitter, lambda place: place >= hue_place)


def _shade(planes: Planes, jitter: Jitter, active: Callable[[Tensor | int], Tensor]) -> Planes:
    """Brightness, contrast and saturation in their order, those whose place is active."""
    brightness, contrast, saturation, _ = jitter_places(jitter.order)

    def slot(planes: Planes, place: int, here: Tensor) -> Planes:
        gain = torch.where(here & (brightness == place), jitter.brightness, 1.0)
        factor = torch.where(here & (saturation == place), jitter.saturation, 1.0)
        return _blend(planes, gain * factor, _per_image(1 - factor) * _gray(planes))

    for place in (0, 1):
        planes = slot(planes, place, active(place) & (place < contrast))
    factor = torch.where(active(contrast), jitter.contrast, 1.0)
    mean = _gray(planes).mean((1, 2), keepdim=True)
    planes = _blend(planes, factor, _per_image(1 - factor) * mean)
    for place in (1, 2):
        planes = slot(planes, place, active(place) & (place > contrast))
    return planes


def _shift_hue(planes: Planes, turns: Tensor) -> Planes:
    """Turn the hue, with value and saturation kept: HSV and back, without the HSV image.

    With v the largest and v - d the smallest of a pixel's channels, its hue h in sixths of a turn
    gives channel n as v - d clamp(2 - |k - 2|, 0, 1), where k = (h + n) mod 6 and n = 5, 3, 1.
    """
    red, green, blue = planes
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    scale = 1 / torch.where(spread == 0, 1.0, spread)
    from_green = torch.where(green >= blue, (blue - red) * scale + 2, (red - green) * scale + 4)
    is_red = (red >= green) & (red >= blue)
    sixths = torch.where(is_red, (green - blue) * scale, from_green) + _per_image(6 * turns)

    def channel(n: int) -> Tensor:
        k = sixths + n
        k = k - 6 * torch.floor(k / 6)  # remainder() takes a slow path on the CPU
        return value - spread * (2 - (k - 2).abs()).clamp(0, 1)

    return channel(5), channel(3), channel(1)


def _blur(planes: Planes, sigma: Tensor, radius: int) -> Planes:
    """Gaussian blur with reflected borders; images of sigma 0 pass unchanged, bit for bit.

    Kornia's two group convolutions: BLURRATIOS.
    """
    images = torch.stack(planes, 1)
    radius = min(radius, images.shape[-2] - 1, images.shape[-1] - 1)  # reflecting allows no more
    kernel = get_gaussian_kernel1d(2 * radius + 1, sigma[:, None])
    blurred = filter2d_separable(images, kernel, kernel)
    red, green, blue = torch.where(sigma[:, None, None, None] > 0, blurred, images).unbind(1)
    return red, green, blue


def _select(chosen: Tensor, op: Callable[[Tensor], Tensor], planes: Planes) -> Planes:
    return _each(planes, lambda plane: torch.where(_per_image(chosen), op(plane), plane))
