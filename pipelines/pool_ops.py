"""Operations of a pool policy: pure batch functions, each image with its own parameters.

Albumentations' formulas (2.0.8, the tests compare) on float images. An image's result has the same
bits in any batch, which rules out convolutions and matrix products: blurs are sums of shifted
copies, about four times slower than a convolution, on the few images that drew them.

All take and return ``images``: ``(M, 3, H, W)`` float32 in 0..1, RGB; none changes them in place.
"""

import math

import torch
from kornia.color import hsv_to_rgb, rgb_to_hsv
from torch import Tensor
from torch.nn.functional import pad

from fastmoco.pipelines.color import Jitter
from fastmoco.pipelines.color import color_jitter as jitter_planes

PERMUTATIONS = ((0, 1, 2), (0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0))
RAIN_COLOR, RAIN_DARKENING = 200 / 255, 0.7


def per_pixel(values: Tensor) -> Tensor:
    """Reshape ``(M,)`` to ``(M, 1, 1, 1)``."""
    return values[:, None, None, None]


# ---------------------------------------------------------------- blurs


def box_weights(radius: Tensor, largest: int) -> Tensor:
    """Compute the weights of a box of ``2 radius + 1`` pixels.

    Args:
        radius: ``(M,)`` int64, at most ``largest``.
        largest: Radius of the kernel, static.

    Returns:
        ``(M, 2 largest + 1)`` float32, sum 1.
    """
    distance = torch.arange(-largest, largest + 1, device=radius.device).abs()
    return (distance <= radius[:, None]) / (2 * radius[:, None] + 1)


def gaussian_weights(sigma: Tensor, radius: int) -> Tensor:
    """Compute a Gaussian of ``sigma`` pixels, ``(M,)``, cut at ``radius``; float32, sum 1."""
    offset = torch.arange(-radius, radius + 1, device=sigma.device, dtype=torch.float64)
    weights = torch.exp(-0.5 * (offset / sigma.double()[:, None]) ** 2)
    return (weights / weights.sum(1, keepdim=True)).float()


def blur(images: Tensor, weights: Tensor) -> Tensor:
    """Apply weights ``(M, 2 r + 1)`` along both axes; borders reflect without the last pixel.

    A view smaller than r + 1 pixels uses only the inner weights, scaled to the sum 1.
    """
    radius = weights.shape[1] // 2
    fits = min(radius, images.shape[-2] - 1, images.shape[-1] - 1)
    if fits < radius:
        weights = weights[:, radius - fits : radius + fits + 1]
        weights = weights / weights.sum(1, keepdim=True)
    padded = pad(images, (0, 0, fits, fits), mode="reflect")
    images = _weighted(padded, weights, images.shape[-2], dim=2)
    padded = pad(images, (fits, fits, 0, 0), mode="reflect")
    return _weighted(padded, weights, images.shape[-1], dim=3)


def _weighted(padded: Tensor, weights: Tensor, length: int, dim: int) -> Tensor:
    total = per_pixel(weights[:, 0]) * padded.narrow(dim, 0, length)
    for tap in range(1, weights.shape[1]):
        total = total + per_pixel(weights[:, tap]) * padded.narrow(dim, tap, length)
    return total


def sharpen(images: Tensor, alpha: Tensor, lightness: Tensor) -> Tensor:
    """``(1 - alpha) x + alpha ((8 + lightness) x - the 8 neighbors)``; parameters ``(M,)``."""
    ones = torch.ones(len(images), 3, device=images.device)
    nine = blur(images, ones)  # the 3 x 3 sum, including the center
    center = 1 - alpha + alpha * (9 + lightness)
    return (per_pixel(center) * images - per_pixel(alpha) * nine).clamp(0, 1)


# ---------------------------------------------------------------- color


def shuffle_channels(images: Tensor, order: Tensor) -> Tensor:
    """Replace channel c by ``PERMUTATIONS[order][c]``; order ``(M,)`` int64 in 0..5."""
    source = torch.tensor(PERMUTATIONS, device=images.device)[order]
    return images[torch.arange(len(images), device=images.device)[:, None], source]


def shift_hsv(images: Tensor, turns: Tensor, saturation: Tensor, value: Tensor) -> Tensor:
    """Add to hue (in turns), saturation and value, each ``(M,)``; gray stays gray."""
    hsv: Tensor = rgb_to_hsv(images)
    hue, sat, val = hsv[:, 0:1], hsv[:, 1:2], hsv[:, 2:3]
    hue = torch.remainder(hue + per_pixel(2 * math.pi * turns), 2 * math.pi)
    sat = torch.where(sat > 0, (sat + per_pixel(saturation)).clamp(0, 1), 0.0)
    val = (val + per_pixel(value)).clamp(0, 1)
    return hsv_to_rgb(torch.cat([hue, sat, val], 1))


def color_jitter(images: Tensor, jitter: Jitter) -> Tensor:
    """Apply `color.color_jitter` to images.

    A single image is doubled: torch would split its mean among threads, and so add in another
    order.
    """
    if len(images) == 1:
        twice = Jitter(*(field.repeat(2) for field in jitter))
        return color_jitter(images.repeat(2, 1, 1, 1), twice)[:1]
    return torch.stack(jitter_planes((images[:, 0], images[:, 1], images[:, 2]), jitter), 1)


def brightness_contrast(images: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """``contrast x + brightness`` within 0..1; parameters ``(M,)``."""
    return (per_pixel(contrast) * images + per_pixel(brightness)).clamp(0, 1)


# ---------------------------------------------------------------- geometry


def flip(images: Tensor, horizontal: Tensor, vertical: Tensor) -> Tensor:
    """Flip where chosen, bool ``(M,)`` each; both together rotate by 180 degrees."""
    images = torch.where(per_pixel(horizontal), images.flip(3), images)
    return torch.where(per_pixel(vertical), images.flip(2), images)


def fill_boxes(images: Tensor, boxes: Tensor) -> Tensor:
    """Fill boxes with black, clipped at the border.

    Args:
        images: ``(M, 3, H, W)``.
        boxes: ``(M, K, 4)`` int64: top, left, height, width in pixels; height 0 is no box.
    """
    top, left, height, width = boxes.unsqueeze(-1).unbind(2)
    row = torch.arange(images.shape[2], device=images.device)
    column = torch.arange(images.shape[3], device=images.device)
    rows = (row >= top) & (row < top + height)
    columns = (column >= left) & (column < left + width)
    inside = (rows[:, :, :, None] & columns[:, :, None, :]).any(1)
    return torch.where(inside[:, None], 0.0, images)


# ---------------------------------------------------------------- weather


def rain(images: Tensor, starts: Tensor, slant: Tensor, length: int, blur_size: int) -> Tensor:
    """Add blurred gray lines, then darken: ``0.7 min(x + layer, 1)``.

    Args:
        images: ``(M, 3, H, W)``.
        starts: x and y of each drop's upper end, ``(M, P, 2)`` int64, pixels.
        slant: Offset of the lower end to the right, ``(M,)`` int64, pixels; less than length.
        length: Offset of the lower end downwards, pixels.
        blur_size: Odd side of the box that blurs the layer, pixels.
    """
    lines = _lines(starts, slant, length, images.shape[2], images.shape[3])
    radius = torch.full((len(images),), blur_size // 2, device=images.device)
    layer = blur(RAIN_COLOR * lines[:, None], box_weights(radius, blur_size // 2))
    return RAIN_DARKENING * (images + layer).clamp(max=1)


def _lines(starts: Tensor, slant: Tensor, length: int, height: int, width: int) -> Tensor:
    """Draw lines: ``(M, H, W)`` float32, 1 on a line; each step goes one pixel down or aside.

    The pixels are those of OpenCV's LINE_4, which draws from the left end: of s steps aside among n
    in all, ceil(s (k - 1) / n) come before step k to the right, floor(s (k + 1) / n) to the left.
    """
    aside = slant.abs()[:, None]
    steps = aside + length
    step = torch.arange(length + int(aside.max()) + 1, device=starts.device)
    step = torch.minimum(step, steps)
    to_the_right = aside * (step - 1) + steps - 1
    across = torch.where(slant[:, None] > 0, to_the_right, aside * (step + 1)) // steps
    x = starts[:, :, :1] + (slant.sign()[:, None] * across)[:, None]
    y = starts[:, :, 1:] + (step - across)[:, None]
    x, y = x.flatten(1), y.flatten(1)
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    pixel = torch.where(inside, y * width + x, height * width)  # one extra pixel, cut off below
    layer = torch.zeros(len(starts), height * width + 1, device=starts.device)
    return layer.scatter_(1, pixel, 1.0)[:, :-1].view(-1, height, width)


def fog(images: Tensor, centers: Tensor, radius: Tensor, alpha: Tensor) -> Tensor:
    """Blend white discs over the image one after the other, then blur by a thirtieth of its side.

    n discs over a pixel give ``1 - (1 - alpha)^n (1 - x)``: only their number matters.

    Args:
        images: ``(M, 3, H, W)``.
        centers: x and y, ``(M, P, 2)`` int64, pixels.
        radius: ``(M, P)`` int64, pixels; negative is no disc.
        alpha: Weight of a disc in the blend, ``(M,)``, in 0..1.
    """
    height, width = images.shape[2:]
    count = _cover(centers, radius, height, width)[:, None]
    clear = torch.exp(count.double() * torch.log1p(-per_pixel(alpha.double()))).float()
    size = max(3, min(height, width) // 30) | 1
    sigma = torch.full((len(images),), 0.3 * ((size - 1) * 0.5 - 1) + 0.8, device=images.device)
    return blur(1 - clear * (1 - images), gaussian_weights(sigma, size // 2))


def _cover(centers: Tensor, radius: Tensor, height: int, width: int) -> Tensor:
    """Count the discs over each pixel, ``(M, H, W)``: +1 and -1 at each row's ends, summed."""
    largest = max(0, int(radius.max()))
    down = torch.arange(-largest, largest + 1, device=centers.device)
    square = radius[:, :, None] ** 2 - down**2
    half = torch.sqrt(square.clamp(min=0).float()).to(torch.int64)
    x, y = centers.unbind(2)
    row = y[:, :, None] + down
    inside = (square >= 0) & (radius[:, :, None] >= 0) & (row >= 0) & (row < height)
    left = (x[:, :, None] - half).clamp(0, width)
    right = (x[:, :, None] + half + 1).clamp(0, width)
    row = row.clamp(0, height - 1) * (width + 1)
    change = torch.zeros(len(centers), height * (width + 1), device=centers.device)
    ends = inside.flatten(1).float()
    change.scatter_add_(1, (row + left).flatten(1), ends)
    change.scatter_add_(1, (row + right).flatten(1), -ends)
    return change.view(-1, height, width + 1).cumsum(2)[:, :, :-1]
