"""The photometric half of a view, for the whole batch at once, on the device.

crops (uint8) --flip, jitter, grayscale, blur, normalize--> views (training dtype, channels_last)

Every image draws its own parameters, also its own order of the four jitter operations, and yet all
shapes are fixed: what an image does not draw gets a neutral value (factor 1, shift 0, sigma 0), so
nothing is read back to the host and ``torch.compile`` captures one graph. The price: every image
pays for operations that only some draw (blur at p = 0.5 costs as much as at p = 1).

Color is computed on three separate planes by own operations that equal Kornia's to 1e-5.
RATIOS
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from kornia.filters import filter2d_separable, get_gaussian_kernel1d
from torch import Tensor

from fastmoco.pipelines.draws import Draw, uniform
from fastmoco.pipelines.policies import Policy

Planes = tuple[Tensor, Tensor, Tensor]
"""Red, green and blue, each ``(N, H, W)`` float32 in 0..1."""


class Jitter(NamedTuple):
    """ColorJitter of N images, each field ``(N,)``; neutral for an image that is not jittered."""

    brightness: Tensor
    """Factor, neutral 1; likewise the next two."""
    contrast: Tensor
    saturation: Tensor
    hue: Tensor
    """Shift in turns, -0.5..0.5, neutral 0."""
    order: Tensor
    """int64 in 0..23, which permutation of the four: see `jitter_places`."""


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
        draw_key: ``(N,)`` int64, from `draws.draw_keys`.
        policy: What to draw; a static value under ``torch.compile``.
        mean: ``(3,)`` float32 of the 0..1 range, on the device.
        std: ``(3,)`` float32, likewise.
        dtype: Of the views; all color work is float32, also under autocast.

    Returns:
        V tensors ``(N, 3, H, W)``, channels_last, normalized.
    """
    parameters = draw_parameters(draw_key, range(crops.shape[1]), policy)
    with torch.autocast(crops.device.type, enabled=False):
        planes = _augmented(_planes(crops), parameters)
        views = _normalized(planes, mean, std, dtype)
    return torch.split(views, len(crops))


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
    return _normalized(_planes(crops), mean, std, dtype)


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


def _normalized(planes: Planes, mean: Tensor, std: Tensor, dtype: torch.dtype) -> Tensor:
    """Planes to ``(N, 3, H, W)`` channels_last: in memory, NHWC."""
    scaled = [(plane - mean[c]) / std[c] for c, plane in enumerate(planes)]
    return torch.stack(scaled, -1).to(dtype).permute(0, 3, 1, 2)


def _augmented(planes: Planes, parameters: ViewParameters) -> Planes:
    """Order as in the official code, but flip first: it commutes with all the others."""
    flip, jitter, grayscale, grayscale_first, sigma, radius = parameters
    if flip is not None:
        planes = _each(planes, lambda plane: torch.where(_per_image(flip), plane.flip(-1), plane))
    if grayscale is not None and grayscale_first:
        planes = _grayscale(planes, grayscale)
    if jitter is not None:
        planes = _color_jitter(planes, jitter)
    if grayscale is not None and not grayscale_first:
        planes = _grayscale(planes, grayscale)
    if sigma is not None:
        planes = _blur(planes, sigma, radius)
    return planes


def _per_image(values: Tensor) -> Tensor:
    """``(N,)`` to ``(N, 1, 1)``."""
    return values[:, None, None]


def _each(planes: Planes, operation: Callable[[Tensor], Tensor]) -> Planes:
    red, green, blue = planes
    return operation(red), operation(green), operation(blue)


def _gray(planes: Planes) -> Tensor:
    """Luma of ITU-R BT.601, as Kornia and PIL; torchvision has 0.2989 for red."""
    red, green, blue = planes
    return 0.299 * red + 0.587 * green + 0.114 * blue


def _grayscale(planes: Planes, chosen: Tensor) -> Planes:
    gray = _gray(planes)
    return _each(planes, lambda plane: torch.where(_per_image(chosen), gray, plane))


def jitter_places(order: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Decode ``order = 12 s + 4 c + h`` into a permutation of the four jitter operations.

    c is contrast's place and h is hue's; s = 1 puts saturation before brightness.

    Args:
        order: ``(N,)`` int64 in 0..23.

    Returns:
        Places ``(N,)`` int64: of brightness, contrast and saturation among these three, 0..2; and
        how many of the three come before hue, 0..3.
    """
    saturation_first, contrast, before_hue = order // 12, order // 4 % 3, order % 4
    early, late = (contrast == 0).to(torch.int64), 2 - (contrast == 2).to(torch.int64)
    brightness = torch.where(saturation_first == 1, late, early)
    return brightness, contrast, 3 - contrast - brightness, before_hue


def _color_jitter(planes: Planes, jitter: Jitter) -> Planes:
    """ColorJitter of torchvision, its four operations in each image's own order.

    Hue and the mean that contrast needs are dear, blends are cheap. So hue has one slot, contrast
    one before and one after it, and around each contrast are two slots where brightness or
    saturation may stand: an image's operations take the slots that fit its order, and all other
    slots are neutral.
    """
    before_hue, after_hue = _slots(jitter)
    planes = _shift_hue(_shade(planes, before_hue), jitter.hue)
    return _shade(planes, after_hue)


def _slots(jitter: Jitter) -> Tensor:
    """What to multiply x and its gray with in the five slots before and the five after hue.

    Returns:
        ``(2, 5, 2, N)`` float32: one tensor, so that it is not computed again in every pixel.
    """
    brightness, contrast, saturation, num_before_hue = jitter_places(jitter.order)

    def shade(place: int, active: Tensor) -> list[Tensor]:
        gain = torch.where(active & (brightness == place), jitter.brightness, 1.0)
        factor = torch.where(active & (saturation == place), jitter.saturation, 1.0)
        return [gain * factor, 1 - factor]

    rows = []
    for half in (0, 1):
        in_half = [(place >= num_before_hue) == half for place in (0, 1, 2, contrast)]
        rows += shade(0, in_half[0] & (contrast > 0)) + shade(1, in_half[1] & (contrast > 1))
        factor = torch.where(in_half[3], jitter.contrast, 1.0)
        rows += [factor, 1 - factor]
        rows += shade(1, in_half[1] & (contrast < 1)) + shade(2, in_half[2] & (contrast < 2))
    return torch.stack(rows).view(2, 5, 2, -1)


def _shade(planes: Planes, slots: Tensor) -> Planes:
    """``x <- clamp(factor x + share gray(x), 0, 1)`` five times; contrast takes gray's mean."""
    for slot, (factor, share) in enumerate(slots[:, :, :, None, None]):
        gray = _gray(planes)
        if slot == 2:
            gray = gray.mean((1, 2), keepdim=True)
        planes = _blend(planes, factor, share * gray)
    return planes


def _blend(planes: Planes, factor: Tensor, other: Tensor) -> Planes:
    """``clamp(factor x + other, 0, 1)``: exactly x where factor is 1 and other is 0."""
    return _each(planes, lambda plane: torch.addcmul(other, factor, plane).clamp(0, 1))


def _shift_hue(planes: Planes, turns: Tensor) -> Planes:
    """Turn the hue, value and saturation kept: to HSV and back, without the HSV image.

    With v the largest and v - d the smallest of a pixel's channels, and h its hue in sixths of a
    turn, channel n is v - d clamp(2 - |k - 2|, 0, 1), where k = (h + n) mod 6 and n = 5, 3, 1.
    """
    red, green, blue = planes
    value = torch.maximum(torch.maximum(red, green), blue)
    spread = value - torch.minimum(torch.minimum(red, green), blue)
    scale = 1 / torch.where(spread == 0, 1.0, spread)
    not_red = torch.where(green >= blue, (blue - red) * scale + 2, (red - green) * scale + 4)
    is_red = (red >= green) & (red >= blue)
    sixths = torch.where(is_red, (green - blue) * scale, not_red) + _per_image(6 * turns)

    def channel(n: int) -> Tensor:
        k = sixths + n
        k = k - 6 * torch.floor(k / 6)  # compiled for a CPU, 3 times as fast as remainder()
        return value - spread * (2 - (k - 2).abs()).clamp(0, 1)

    return channel(5), channel(3), channel(1)


def _blur(planes: Planes, sigma: Tensor, radius: int) -> Planes:
    """Gaussian blur with reflected borders; images of sigma 0 pass unchanged, bit for bit.

    BLURRATIOS.
    """
    images = torch.stack(planes, 1)
    radius = min(radius, images.shape[-2] - 1, images.shape[-1] - 1)  # reflection allows no more
    kernel = get_gaussian_kernel1d(2 * radius + 1, sigma[:, None])
    blurred = filter2d_separable(images, kernel, kernel)
    red, green, blue = torch.where(sigma[:, None, None, None] > 0, blurred, images).unbind(1)
    return red, green, blue
