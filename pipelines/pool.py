"""Pool of operations: each view draws some, and each is applied with a probability.

The report "Momentum Contrast on Imagenette" (2022) draws 2 of 15 Albumentations operations, each
with probability 0.6, and says of their bounds only that extreme ones are milder. So these are
assumptions: the draws are different operations in a random order, and the bounds below are
Albumentations' own or, where marked, milder. Lengths are fractions of the view, so that a view of
32 pixels is treated alike.

Runs eagerly: each operation gets only the images that drew it (gather, apply, scatter), a fifteenth
of the work of all operations on all images. The host reads their number once per draw. A view's
bits depend only on its image and draw key, never on its batch (tested on the CPU).
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fastmoco.draws.device import fork, stream_uniforms
from fastmoco.draws.streams import Draw
from fastmoco.pipelines import pool_ops
from fastmoco.pipelines.color import Jitter
from fastmoco.pipelines.policies import Policy, PoolOp

# Bounds, (low, high).
BLUR_RADIUS = (1, 3)  # boxes of 3, 5 or 7 pixels
GAUSSIAN_SIGMA = (0.1, 2.0)  # pixels; MoCo v2's
NUM_HOLES, HOLE_SIDE = (1, 8), (1 / 16, 1 / 8)  # coarse dropout
CUTOUT_SIDE = (1 / 4, 1 / 2)  # arXiv:1708.04552 has 1/2 on CIFAR-10
RAIN_SLANT = (-0.36, 0.36)  # of a drop's length: Albumentations' 10 pixels on a view of 224
NOISE_VARIANCE = (10 / 255**2, 50 / 255**2)
HUE, SATURATION, VALUE = (-1 / 18, 1 / 18), (-20 / 255, 20 / 255), (-10 / 255, 10 / 255)
# Hue, saturation and value are milder: Albumentations has 1/9 turn (20 of 180), 30 and 20 levels.
FOG = (0.3, 0.7)  # milder: to 1
FOG_DISCS, FOG_REGIONS, FOG_ALPHA = 415, 10, 0.08  # discs at an intensity of 1; less has more
JITTER_FACTOR, JITTER_HUE = (0.8, 1.2), (-0.1, 0.1)  # hue milder: 0.2
SHARPEN_ALPHA, SHARPEN_LIGHTNESS = (0.2, 0.5), (0.5, 1.0)
BRIGHTNESS, CONTRAST = (-0.2, 0.2), (0.8, 1.2)

_OPS = list(PoolOp)
_CHOICE, _APPLY, _FIRST_OP = 0, 1, 2  # parts of a view's stream

Uniforms = Callable[[int], Tensor]
"""From ``count`` to ``(M, count)`` draws in [0, 1) for M images; fewer are a prefix of more."""


def apply_pool(images: Tensor, draw_key: Tensor, views: Sequence[int], policy: Policy) -> Tensor:
    """Draw from the pool for every image, and apply.

    Args:
        images: ``(len(views) * N, 3, H, W)`` float32 in 0..1, RGB, one view after the other.
        draw_key: ``(N,)`` int64, from `draws.draw_keys`.
        views: Indices of the views: 0 for the query, 1 for the key.
        policy: A policy with a pool.

    Returns:
        New images of the same shape.
    """
    drawn = draw_ops(draw_key, views, policy)
    stream = torch.cat([fork(draw_key, Draw.POOL, view) for view in views])
    images = images.clone(memory_format=torch.contiguous_format)
    for ops in drawn.unbind(1):
        counts = torch.bincount(ops, minlength=len(_OPS)).tolist()
        chosen = torch.split(torch.argsort(ops, stable=True), counts)
        for op, index in zip(_OPS, chosen, strict=True):
            if len(index) and op is not PoolOp.none:
                images[index] = apply_op(op, images[index], stream[index])
    return images


def draw_ops(draw_key: Tensor, views: Sequence[int], policy: Policy) -> Tensor:
    """Draw the operations of each image, in their order.

    Returns:
        ``(len(views) * N, policy.pool_draws)`` int64: indices in `PoolOp`, 0 (none) where the draw
        is not applied.
    """
    stream = torch.cat([fork(draw_key, Draw.POOL, view) for view in views])
    pool = torch.tensor([_OPS.index(op) for op in policy.pool], device=stream.device)
    ranks = stream_uniforms(stream, _CHOICE, len(_OPS))[:, pool]
    drawn = pool[torch.argsort(ranks, dim=1, stable=True)[:, : policy.pool_draws]]
    applied = stream_uniforms(stream, _APPLY, policy.pool_draws) < policy.pool_probability
    return torch.where(applied, drawn, _OPS.index(PoolOp.none))


def apply_op(op: PoolOp, images: Tensor, stream: Tensor) -> Tensor:
    """Draw the operation's parameters for M images, ``(M, 3, H, W)``, and apply it to them all.

    Args:
        op: An operation other than none.
        images: ``(M, 3, H, W)`` float32 in 0..1.
        stream: ``(M,)`` int64, from `draws.fork`.
    """
    part = _FIRST_OP + _OPS.index(op)
    return _APPLY_OP[op](images, lambda count: stream_uniforms(stream, part, count))


def between(u: Tensor, bounds: tuple[float, float]) -> Tensor:
    """Scale draws in [0, 1) to the bounds."""
    return bounds[0] + (bounds[1] - bounds[0]) * u


def integer(u: Tensor, low: int, high: int) -> Tensor:
    """Convert draws in [0, 1) to int64 from low to high, both included."""
    return low + (u * (high - low + 1)).to(torch.int64).clamp(max=high - low)


def _blur(images: Tensor, uniforms: Uniforms) -> Tensor:
    radius = integer(uniforms(1)[:, 0], *BLUR_RADIUS)
    return pool_ops.blur(images, pool_ops.box_weights(radius, BLUR_RADIUS[1]))


def _gaussian_blur(images: Tensor, uniforms: Uniforms) -> Tensor:
    sigma = between(uniforms(1)[:, 0], GAUSSIAN_SIGMA)
    return pool_ops.blur(images, pool_ops.gaussian_weights(sigma, round(3 * GAUSSIAN_SIGMA[1])))


def _channel_shuffle(images: Tensor, uniforms: Uniforms) -> Tensor:
    return pool_ops.shuffle_channels(images, integer(uniforms(1)[:, 0], 0, 5))


def _coarse_dropout(images: Tensor, uniforms: Uniforms) -> Tensor:
    """Blacken some rectangles that are completely inside."""
    most = NUM_HOLES[1]
    u = uniforms(1 + 4 * most)
    size = torch.tensor(images.shape[2:], device=images.device)
    holes = u[:, 1:].view(-1, most, 4)
    sides = (between(holes[..., 2:], HOLE_SIDE) * size).round().to(torch.int64).clamp(min=1)
    corners = (holes[..., :2] * (size - sides + 1)).to(torch.int64)
    exists = torch.arange(most, device=u.device) < integer(u[:, :1], *NUM_HOLES)
    return pool_ops.fill_boxes(images, torch.cat([corners, sides * exists[..., None]], 2))


def _cutout(images: Tensor, uniforms: Uniforms) -> Tensor:
    """Blacken one square around any pixel, clipped at the border."""
    u = uniforms(3)
    size = torch.tensor(images.shape[2:], device=images.device)
    side = (between(u[:, :1], CUTOUT_SIDE) * size.min()).round().to(torch.int64).clamp(min=1)
    corner = (u[:, 1:] * size).to(torch.int64) - side // 2
    return pool_ops.fill_boxes(images, torch.cat([corner, side, side], 1)[:, None])


def _rain(images: Tensor, uniforms: Uniforms) -> Tensor:
    """Draw a drop for every three rows, an eighth of the height long."""
    height, width = images.shape[2:]
    drops, length = max(1, height // 3), max(1, height // 8)
    u = uniforms(1 + 2 * drops)
    slant = (between(u[:, 0], RAIN_SLANT) * length).round().to(torch.int64)
    limits = torch.tensor([width, max(1, height - length)], device=u.device)
    starts = (u[:, 1:].view(-1, drops, 2) * limits).to(torch.int64)
    return pool_ops.rain(images, starts, slant, length, max(3, height // 32) | 1)


def _gaussian_noise(images: Tensor, uniforms: Uniforms) -> Tensor:
    """Draw normal noise by the inverse distribution function, which is elementwise in torch."""
    u = uniforms(1 + images[0].numel())
    normal: Tensor = torch.special.ndtri(u[:, 1:].double() + 2.0**-25).float().view(images.shape)
    deviation = between(u[:, 0], NOISE_VARIANCE).sqrt()
    return (images + pool_ops.per_pixel(deviation) * normal).clamp(0, 1)


def _hue_saturation(images: Tensor, uniforms: Uniforms) -> Tensor:
    turns, saturation, value = uniforms(3).unbind(1)
    shifts = between(turns, HUE), between(saturation, SATURATION), between(value, VALUE)
    return pool_ops.shift_hsv(images, *shifts)


def _fog(images: Tensor, uniforms: Uniforms) -> Tensor:
    """Draw discs in shrinking regions around the center, each 0.9 of the previous one."""
    height, width = images.shape[2:]
    most = math.ceil(FOG_DISCS / FOG[0])
    u = uniforms(1 + 4 * most)
    intensity, discs = between(u[:, 0], FOG), u[:, 1:].view(-1, most, 4)
    ends = (0.81 ** torch.arange(FOG_REGIONS, dtype=torch.float64)).cumsum(0).to(u.device)
    region = torch.bucketize(discs[..., 3].double() * ends[-1], ends, right=True)
    shrink = 0.9 ** region.clamp(max=FOG_REGIONS - 1)[..., None].double()
    size = torch.tensor([width, height], device=u.device)
    centers = (size / 2 + (discs[..., :2] - 0.5) * shrink * size).floor().to(torch.int64)
    largest = (0.1 * min(height, width) * intensity).clamp(min=2)[:, None]
    radius = (largest * between(discs[..., 2], (0.5, 1.0))).to(torch.int64)
    exists = torch.arange(most, device=u.device) < FOG_DISCS / intensity[:, None]
    radius = torch.where(exists, radius, -1)
    return pool_ops.fog(images, centers, radius, FOG_ALPHA * intensity)


def _flip(images: Tensor, uniforms: Uniforms) -> Tensor:
    """Flip horizontally, vertically or both, each with probability 1/3."""
    kind = integer(uniforms(1)[:, 0], 0, 2)
    return pool_ops.flip(images, kind != 1, kind != 0)


def _color_jitter(images: Tensor, uniforms: Uniforms) -> Tensor:
    u = uniforms(5)
    brightness, contrast, saturation = between(u[:, :3], JITTER_FACTOR).unbind(1)
    hue, order = between(u[:, 3], JITTER_HUE), integer(u[:, 4], 0, 23)
    return pool_ops.color_jitter(images, Jitter(brightness, contrast, saturation, hue, order))


def _sharpen(images: Tensor, uniforms: Uniforms) -> Tensor:
    alpha, lightness = uniforms(2).unbind(1)
    return pool_ops.sharpen(
        images, between(alpha, SHARPEN_ALPHA), between(lightness, SHARPEN_LIGHTNESS)
    )


def _brightness_contrast(images: Tensor, uniforms: Uniforms) -> Tensor:
    brightness, contrast = uniforms(2).unbind(1)
    return pool_ops.brightness_contrast(
        images, between(brightness, BRIGHTNESS), between(contrast, CONTRAST)
    )


_APPLY_OP: dict[PoolOp, Callable[[Tensor, Uniforms], Tensor]] = {
    PoolOp.blur: _blur,
    PoolOp.gaussian_blur: _gaussian_blur,
    PoolOp.channel_shuffle: _channel_shuffle,
    PoolOp.coarse_dropout: _coarse_dropout,
    PoolOp.cutout: _cutout,
    PoolOp.rain: _rain,
    PoolOp.gaussian_noise: _gaussian_noise,
    PoolOp.hue_saturation: _hue_saturation,
    PoolOp.fog: _fog,
    PoolOp.flip: _flip,
    PoolOp.color_jitter: _color_jitter,
    PoolOp.vertical_flip: lambda images, _uniforms: images.flip(2),
    PoolOp.sharpen: _sharpen,
    PoolOp.brightness_contrast: _brightness_contrast,
}
