"""The pool's operations against Albumentations with the same parameters, and their spread.

Albumentations works on 8 bits: where it rounds once, 1 level of 255 is allowed; each further
rounding adds one. Circles and lines are OpenCV's, whose rims may differ by a pixel.
"""

import dataclasses
import math
import os

import kornia
import numpy as np
import pytest
import torch
from torch import Tensor

from fastmoco.draws.device import fork, stream_uniforms
from fastmoco.draws.host import draw_keys
from fastmoco.draws.streams import Draw
from fastmoco.pipelines import pool, pool_ops
from fastmoco.pipelines.augment import augment_views
from fastmoco.pipelines.color import Jitter, jitter_places
from fastmoco.pipelines.policies import POLICIES, PoolOp
from tests.optional import require
from tests.pictures import picture
from tests.statistics import assert_same_distribution

os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"  # it would ask the network for a newer version

POOL = POLICIES["imagenette_pool"]
OPS = [op for op in PoolOp if op is not PoolOp.none]
LEVEL = 1 / 255
KORNIA = 1e-5


def images(num_images: int, height: int = 64, width: int = 80) -> Tensor:
    """Pictures of whole levels, each with some rough texture."""
    pictures = np.stack([picture(seed, height, width) for seed in range(num_images)])
    texture = torch.randint(-12, 13, pictures.shape)
    levels = (torch.from_numpy(pictures) + texture).clamp(0, 255)
    return levels.permute(0, 3, 1, 2).contiguous().float() / 255


def levels(image: Tensor) -> np.ndarray:
    return np.ascontiguousarray((image * 255).round().byte().permute(1, 2, 0).numpy())


def distance(ours: Tensor, theirs: np.ndarray) -> Tensor:
    """Per value, in levels."""
    return (ours * 255 - torch.from_numpy(theirs).permute(2, 0, 1)).abs()


def streams(num_images: int, view: int = 0) -> Tensor:
    keys = torch.from_numpy(draw_keys(3, 0, np.arange(num_images, dtype=np.int64)))
    return fork(keys, Draw.POOL, view)


@pytest.fixture(scope="module")
def functional():
    require("albumentations")
    from albumentations.augmentations.pixel import functional

    return functional


# ---------------------------------------------------------------- the same parameters


@pytest.mark.usefixtures("functional")
@pytest.mark.parametrize("radius", [1, 2, 3])
def test_blur(radius: int):
    from albumentations.augmentations.blur.functional import box_blur

    source = images(1)
    ours = pool_ops.blur(source, pool_ops.box_weights(torch.tensor([radius]), 3))
    assert distance(ours[0], box_blur(levels(source[0]), 2 * radius + 1)).max() <= 1


@pytest.mark.usefixtures("functional")
@pytest.mark.parametrize("sigma", [0.3, 1.0, 2.0])
def test_gaussian_blur(sigma: float):
    import cv2

    source = images(1)
    ours = pool_ops.blur(source, pool_ops.gaussian_weights(torch.tensor([sigma]), 6))
    theirs = cv2.GaussianBlur(levels(source[0]), (13, 13), sigma)
    assert distance(ours[0], theirs).max() <= 1


@pytest.mark.parametrize("order", range(6))
def test_channel_shuffle(functional, order: int):
    source = images(1)
    ours = pool_ops.shuffle_channels(source, torch.tensor([order]))
    theirs = functional.channel_shuffle(levels(source[0]), list(pool_ops.PERMUTATIONS[order]))
    assert distance(ours[0], theirs).max() < 1e-3


@pytest.mark.usefixtures("functional")
def test_holes():
    from albumentations.augmentations.dropout.functional import cutout

    source = images(1)
    boxes = torch.tensor([[[3, 5, 8, 10], [60, 70, 4, 10], [10, 20, 0, 0]]])
    ours = pool_ops.fill_boxes(source, boxes)
    corners = np.array([[5, 3, 15, 11], [70, 60, 80, 64]])  # x_min, y_min, x_max, y_max
    theirs = cutout(levels(source[0]), corners, 0, np.random.default_rng(0))
    assert distance(ours[0], theirs).max() < 1e-3


@pytest.mark.parametrize(("alpha", "lightness"), [(0.2, 0.5), (0.35, 1.0), (0.5, 0.7)])
def test_sharpen(functional, alpha: float, lightness: float):
    effect = np.full((3, 3), -1.0, np.float32)
    effect[1, 1] = 8 + lightness
    unchanged = np.zeros((3, 3), np.float32)
    unchanged[1, 1] = 1
    source = images(1)
    ours = pool_ops.sharpen(source, torch.tensor([alpha]), torch.tensor([lightness]))
    matrix = (1 - alpha) * unchanged + alpha * effect
    assert distance(ours[0], functional.convolve(levels(source[0]), matrix)).max() <= 1


@pytest.mark.usefixtures("functional")
@pytest.mark.parametrize(("brightness", "contrast"), [(0.2, 0.8), (-0.2, 1.2), (0.1, 1.1)])
def test_brightness_contrast(brightness: float, contrast: float):
    from albucore import multiply_add

    source = images(1)
    ours = pool_ops.brightness_contrast(
        source, torch.tensor([brightness]), torch.tensor([contrast])
    )
    theirs = multiply_add(levels(source[0]), contrast, 255 * brightness, inplace=False)
    assert distance(ours[0], theirs).max() <= 1


@pytest.mark.parametrize(("hue", "saturation", "value"), [(10, 20, 10), (-10, -20, -10), (0, 9, 0)])
def test_hue_saturation(functional, hue: int, saturation: int, value: int):
    """OpenCV's 8-bit hue has steps of 2 degrees, an error of 4 levels where colors are strong."""
    source = images(1)
    ours = pool_ops.shift_hsv(
        source,
        torch.tensor([hue / 180]),
        torch.tensor([saturation * LEVEL]),
        torch.tensor([value * LEVEL]),
    )
    theirs = functional.shift_hsv(levels(source[0]), hue, saturation, value)
    assert distance(ours[0], theirs).mean() <= 1
    assert distance(ours[0], theirs).max() <= 7


def test_gray_stays_gray_when_saturation_grows():
    gray = images(1)[:, :1].expand(-1, 3, -1, -1)
    amount = torch.tensor([0.05])
    shifted = pool_ops.shift_hsv(gray, amount, amount, 0 * amount)
    assert (shifted - gray).abs().max() < 1e-6


def test_color_jitter_is_that_of_the_policies():
    ones = torch.ones(1)
    jitter = Jitter(1.1 * ones, 0.9 * ones, 1.2 * ones, 0.05 * ones, torch.tensor([7]))
    source = images(1)
    alone = pool_ops.color_jitter(source, jitter)
    both = pool_ops.color_jitter(source.repeat(2, 1, 1, 1), Jitter(*(f.repeat(2) for f in jitter)))
    assert torch.equal(alone[0], both[0])
    assert torch.equal(both[0], both[1])
    assert (alone - source).abs().max() > 0.01


@pytest.mark.parametrize("slant", [-10, -3, 0, 4, 10])
def test_rain(functional, slant: int):
    """Lines that the border does not cut: OpenCV cuts first and may then step elsewhere."""
    source = images(1, 224, 224)
    starts = torch.randint(12, 196, (1, 74, 2))
    ours = pool_ops.rain(source, starts, torch.tensor([slant]), 28, 7)
    theirs = functional.add_rain(
        levels(source[0]), slant, 28, 1, (200,) * 3, 7, 0.7, starts[0].numpy().astype(np.int32)
    )
    assert distance(ours[0], theirs).max() <= 1


def test_fog(functional):
    """Albumentations rounds after each of the discs, mostly to where it came from."""
    source = images(1, 224, 224)
    centers, radius = torch.randint(0, 224, (1, 100, 2)), torch.randint(5, 20, (1, 100))
    ours = pool_ops.fog(source, centers, radius, torch.tensor([0.06]))
    points, sizes = [tuple(c) for c in centers[0].tolist()], radius[0].tolist()
    theirs = functional.add_fog(levels(source[0]), 1.0, 0.06, points, sizes)
    assert distance(ours[0], theirs).max() <= 2


# ---------------------------------------------------------------- what Kornia defines alike


@pytest.mark.parametrize("radius", [1, 2, 3])
def test_blur_is_kornias(radius: int):
    source, side = images(3), 2 * radius + 1
    ours = pool_ops.blur(source, pool_ops.box_weights(torch.full((3,), radius), 3))
    assert (ours - kornia.filters.box_blur(source, side)).abs().max() < KORNIA


def test_gaussian_blur_is_kornias():
    source, sigma = images(3), torch.tensor([0.3, 1.0, 2.0])
    ours = pool_ops.blur(source, pool_ops.gaussian_weights(sigma, 6))
    theirs = kornia.filters.gaussian_blur2d(source, (13, 13), sigma[:, None].expand(-1, 2))
    assert (ours - theirs).abs().max() < KORNIA


def test_flips_are_kornias():
    source, yes, no = images(4), torch.ones(4, dtype=torch.bool), torch.zeros(4, dtype=torch.bool)
    flip = kornia.geometry.transform
    assert torch.equal(pool_ops.flip(source, yes, no), flip.hflip(source))
    assert torch.equal(pool_ops.flip(source, no, yes), flip.vflip(source))
    assert torch.equal(pool_ops.flip(source, yes, yes), flip.rot180(source))
    assert torch.equal(applied(PoolOp.vertical_flip, source), flip.vflip(source))


def test_brightness_contrast_is_kornias():
    source = images(3)
    brightness, contrast = torch.tensor([0.2, -0.2, 0.1]), torch.tensor([0.8, 1.2, 1.1])
    scaled = kornia.enhance.adjust_contrast(source, contrast, clip_output=False)
    theirs = kornia.enhance.adjust_brightness(scaled, brightness)
    ours = pool_ops.brightness_contrast(source, brightness, contrast)
    assert (ours - theirs).abs().max() < KORNIA


def test_color_jitter_is_kornias():
    """In the order 0, where hue comes before all others: see `color.jitter_places`."""
    source = images(3)
    by = dict(zip(("b", "c", "s", "h"), torch.rand(4, 3) * 0.4 + 0.8, strict=True))
    by["h"] -= 1
    order = torch.zeros(3, dtype=torch.int64)
    *places, before_hue = (int(place[0]) for place in jitter_places(order))
    operations = {
        0: lambda x: kornia.enhance.adjust_brightness_accumulative(x, by["b"]),
        1: lambda x: kornia.enhance.adjust_contrast_with_mean_subtraction(x, by["c"]),
        2: lambda x: kornia.enhance.adjust_saturation_with_gray_subtraction(x, by["s"]),
    }
    assert before_hue == 0
    theirs = kornia.enhance.adjust_hue(source, 2 * math.pi * by["h"])
    for operation in sorted(range(3), key=places.__getitem__):
        theirs = operations[operation](theirs)
    jitter = Jitter(by["b"], by["c"], by["s"], by["h"], order)
    assert (pool_ops.color_jitter(source, jitter) - theirs).abs().max() < KORNIA


# ---------------------------------------------------------------- what is drawn


def applied(op: PoolOp, source: Tensor) -> Tensor:
    return pool.apply_op(op, source, streams(len(source)))


def flat(num_images: int, value: float, size: int = 64) -> Tensor:
    return torch.full((num_images, 3, size, size), value)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("size", [8, 33])
def test_every_operation_changes_images_and_stays_in_range(op: PoolOp, size: int):
    source = torch.rand(60, 3, size, size)
    before = source.clone()
    result = applied(op, source)
    assert torch.equal(source, before)
    assert result.dtype == torch.float32
    assert result.shape == source.shape
    assert result.isfinite().all()
    assert result.min() >= -1e-6
    assert result.max() <= 1 + 1e-6
    changed = (result != source).flatten(1).any(1).float().mean()
    # One order of channels is their own; a blur of sigma below 0.2 is less than float32's steps.
    least = {PoolOp.channel_shuffle: 0.7, PoolOp.gaussian_blur: 0.9}.get(op, 1.0)
    assert least <= changed


@pytest.mark.parametrize("op", [op for op in OPS if op is not PoolOp.rain and op is not PoolOp.fog])
def test_views_of_one_pixel(op: PoolOp):
    assert applied(op, torch.rand(5, 3, 1, 1)).isfinite().all()


def test_noise_is_normal_with_a_variance_of_10_to_50_levels():
    noise = (applied(PoolOp.gaussian_noise, flat(300, 0.5, 32)) - 0.5) * 255
    variance = noise.flatten(1).var(1)
    assert_same_distribution(variance.numpy(), 10 + 40 * np.linspace(0, 1, 2000), "variance")
    standard = (noise / noise.std((1, 2, 3), keepdim=True)).flatten().numpy()
    assert_same_distribution(standard, np.random.default_rng(0).normal(size=500_000), "noise")
    channels = noise.transpose(0, 1).flatten(1)
    assert (torch.corrcoef(channels) - torch.eye(3)).abs().max() < 0.01


def test_cutout_is_one_square_of_a_quarter_to_half_the_side():
    black = (applied(PoolOp.cutout, flat(4000, 1.0)) == 0).all(1)
    height, width = black.any(2).sum(1), black.any(1).sum(1)
    assert torch.equal(black.sum((1, 2)), height * width)
    inner = (height == width) & (height >= 16)
    assert 0.4 < inner.float().mean() < 0.7  # the others are clipped
    assert max(height.max(), width.max()) == 32
    middle = black[:, 32, 32].float().mean()
    assert abs(middle - 1 / 64**2 * (np.linspace(16, 32, 500) ** 2).mean()) < 0.03


def test_coarse_dropout_is_1_to_8_small_holes():
    black = (applied(PoolOp.coarse_dropout, flat(4000, 1.0)) == 0).all(1)
    expected = 4.5 * (6 / 64) ** 2
    assert abs(black.float().mean() - expected) < 0.1 * expected
    smallest = black.sum((1, 2)).min()
    assert 16 <= smallest <= 30
    spread = black.float().mean(0)
    assert spread[8:-8, 8:-8].std() < 0.2 * expected  # everywhere alike


def test_rain_and_fog_leave_a_bounded_share():
    rain = applied(PoolOp.rain, flat(200, 0.5, 96))
    wet = (rain[:, 0] > 0.5 * 0.7 + 1e-4).float().mean((1, 2))
    assert 0.1 < wet.min() < wet.max() < 0.4
    assert torch.equal(rain[:, 0], rain[:, 2])
    fog = applied(PoolOp.fog, flat(200, 0.5, 96))
    assert (fog >= 0.5 - 1e-6).all()
    middle, rim = fog[:, 0, 32:64, 32:64].mean((1, 2)), fog[:, 0, :8].mean((1, 2))
    assert (middle > rim).all()
    assert 0.52 < middle.min() < middle.max() < 0.75


@pytest.mark.usefixtures("functional")
@pytest.mark.parametrize("op", [PoolOp.rain, PoolOp.fog])
def test_weather_is_as_bright_as_albumentations(op: PoolOp):
    """Mean over 40 gray images of 224 pixels, as they draw and as we draw: 0.015 apart, of 1."""
    import albumentations

    transforms = {
        PoolOp.rain: albumentations.RandomRain(p=1),
        PoolOp.fog: albumentations.RandomFog(fog_coef_range=pool.FOG, p=1),
    }
    gray = np.full((224, 224, 3), 127, np.uint8)
    theirs = np.mean([transforms[op](image=gray)["image"].mean() / 255 for _ in range(40)])
    assert abs(applied(op, flat(40, 127 / 255, 224)).mean().item() - theirs) < 0.015


def test_flip_is_horizontal_vertical_or_both_in_thirds():
    source = torch.rand(1, 3, 4, 4).expand(3000, -1, -1, -1)
    result = applied(PoolOp.flip, source)
    kinds = [source[0].flip(2), source[0].flip(1), source[0].flip(1, 2)]
    shares = [(result == kind).flatten(1).all(1).float().mean() for kind in kinds]
    assert sum(shares) == pytest.approx(1)
    assert all(abs(share - 1 / 3) < 0.05 for share in shares)


def test_uniforms_of_a_stream_are_uniform_and_independent():
    u = stream_uniforms(streams(100_000), 5, 6)
    assert torch.equal(u[:, :2], stream_uniforms(streams(100_000), 5, 2))
    grid = (np.arange(100_000) + 0.5) / 100_000
    for column in u.unbind(1):
        assert_same_distribution(column.numpy(), grid)
    others = stream_uniforms(streams(100_000), 6, 3), stream_uniforms(streams(100_000, 1), 5, 3)
    correlation = torch.corrcoef(torch.cat([u, *others], 1).T.double())
    assert (correlation - torch.eye(12)).abs().max() < 5 / 100_000**0.5


# ---------------------------------------------------------------- the whole pool


def views_of(crops: Tensor, keys: Tensor, **changes) -> tuple[Tensor, ...]:
    policy = dataclasses.replace(POOL, **changes)
    return augment_views(crops, keys, policy, torch.zeros(3), torch.ones(3), torch.float32)


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("size", [31, 64])
def test_a_view_has_the_same_bits_in_any_batch(threads: int, size: int):
    crops = torch.randint(0, 256, (40, 2, size, size, 3), dtype=torch.uint8)
    keys = torch.from_numpy(draw_keys(1, 0, np.arange(40, dtype=np.int64)))
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        whole = views_of(crops, keys, pool_probability=0.9)
        for chosen in (torch.randperm(40), torch.tensor([5]), torch.tensor([31, 2, 9])):
            part = views_of(crops[chosen], keys[chosen], pool_probability=0.9)
            for a, b in zip(whole, part, strict=True):
                assert torch.equal(a[chosen], b)
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize("op", OPS)
def test_an_operation_has_the_same_bits_in_any_batch(op: PoolOp):
    source = torch.rand(12, 3, 33, 33)
    whole = applied(op, source)
    for chosen in (torch.tensor([7]), torch.tensor([11, 0, 4]), torch.randperm(12)):
        assert torch.equal(pool.apply_op(op, source[chosen], streams(12)[chosen]), whole[chosen])


def test_each_image_gets_its_two_operations_in_order():
    crops = torch.randint(0, 256, (60, 2, 24, 24, 3), dtype=torch.uint8)
    keys = torch.from_numpy(draw_keys(1, 0, np.arange(60, dtype=np.int64)))
    drawn = pool.draw_ops(keys, [0, 1], POOL).view(2, 60, 2)
    for view, result in enumerate(views_of(crops, keys)):
        stream = fork(keys, Draw.POOL, view)
        for i in range(60):
            image = crops[i, view].permute(2, 0, 1)[None].float() / 255
            for op in drawn[view, i].tolist():
                if op:
                    image = pool.apply_op(list(PoolOp)[op], image, stream[i : i + 1])
            assert torch.equal(result[i], image[0])


def test_probability_0_leaves_the_image():
    crops = torch.randint(0, 256, (9, 2, 24, 24, 3), dtype=torch.uint8)
    keys = torch.from_numpy(draw_keys(1, 0, np.arange(9, dtype=np.int64)))
    for view, result in enumerate(views_of(crops, keys, pool_probability=0.0)):
        assert torch.equal(result, crops[:, view].permute(0, 3, 1, 2).float() / 255)
