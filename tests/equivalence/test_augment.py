"""Each operation against Kornia and torchvision with the same parameters, and the draws' spread.

Tolerances: 1e-5 where the semantics are equal (float32, the order of sums differs). Where gray
comes in, torchvision weighs red with 0.2989, Kornia and PIL with 0.299: 1e-4 a time, times what the
factors make of it, hence 5e-4.
"""

import dataclasses
import math
from collections import namedtuple
from collections.abc import Callable
from functools import partial

import kornia
import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tvf
from kornia.enhance import (
    adjust_brightness_accumulative,
    adjust_contrast_with_mean_subtraction,
    adjust_hue,
    adjust_saturation_with_gray_subtraction,
)
from torch import Tensor
from torchvision.transforms import ColorJitter, GaussianBlur

from fastmoco.draws.host import draw_keys
from fastmoco.pipelines import augment, kornia_views, view_parameters
from fastmoco.pipelines.augment import apply_view, augment_views, normalized, plain_views
from fastmoco.pipelines.color import Jitter, jitter_places
from fastmoco.pipelines.policies import POLICIES, Policy
from fastmoco.pipelines.view_parameters import ViewParameters, draw_parameters
from tests.compiling import require_compiler
from tests.statistics import assert_same_distribution

V1, V2 = POLICIES["moco_v1"], POLICIES["moco_v2"]
MEAN, STD = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
NOTHING = ViewParameters(None, None, None, False, None, 6)
EQUAL, GRAY_WEIGHTS = 1e-5, 5e-4
COMPLETE = ("moco_v1", "moco_v3", "supervised")  # all operations in both orders, and but a flip
FLAT = [name for name, policy in POLICIES.items() if not policy.pool]
NAMES = ("brightness", "contrast", "saturation", "hue")


def keys(num_samples: int) -> Tensor:
    return torch.from_numpy(draw_keys(2, 1, np.arange(num_samples, dtype=np.int64)))


def random_crops(num_samples: int, size: int = 16, num_views: int = 2) -> Tensor:
    return torch.randint(0, 256, (num_samples, num_views, size, size, 3), dtype=torch.uint8)


def random_images(num_samples: int, size: int = 16) -> Tensor:
    """Also black, white, gray and saturated pixels, where hue has its corners."""
    images = torch.rand(num_samples, 3, size, size)
    corners = torch.cartesian_prod(*3 * [torch.tensor([0.0, 0.5, 1.0])])
    images[:, :, 0], images[:, :, 1] = corners[:16].T, corners[-16:].T
    return images


def jitter_of(num_samples: int, **values: Tensor) -> Jitter:
    neutral = dict.fromkeys(NAMES[:3], torch.ones(num_samples)) | {"hue": torch.zeros(num_samples)}
    order = torch.arange(num_samples) % 24
    return Jitter(**neutral | {"order": order} | values)


def assert_close(a: Tensor, b: Tensor, tolerance: float = EQUAL) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=tolerance)


def per_image(operation: Callable[[Tensor, float], Tensor], images: Tensor, by: Tensor) -> Tensor:
    return torch.stack(
        [operation(image, value) for image, value in zip(images, by.tolist(), strict=True)]
    )


def names_in_order(order: int) -> list[str]:
    """The permutation as a list, by the definition in `jitter_places`."""
    *places, before_hue = (int(place) for place in jitter_places(torch.tensor([order])))
    names = sorted(NAMES[:3], key=dict(zip(NAMES, places, strict=False)).__getitem__)
    return [*names[:before_hue], "hue", *names[before_hue:]]


# ---------------------------------------------------------------- one operation at a time


@pytest.mark.parametrize(
    ("name", "kornia_op", "torchvision_op", "tolerance"),
    [
        ("brightness", adjust_brightness_accumulative, tvf.adjust_brightness, EQUAL),
        ("contrast", adjust_contrast_with_mean_subtraction, tvf.adjust_contrast, GRAY_WEIGHTS),
        (
            "saturation",
            adjust_saturation_with_gray_subtraction,
            tvf.adjust_saturation,
            GRAY_WEIGHTS,
        ),
        ("hue", lambda x, turns: adjust_hue(x, 2 * math.pi * turns), tvf.adjust_hue, EQUAL),
    ],
)
def test_jitter_operation(
    name: str, kornia_op: Callable, torchvision_op: Callable, tolerance: float
):
    images = random_images(48)
    strength = torch.linspace(-0.5, 0.5, 48) if name == "hue" else torch.linspace(0, 2, 48)
    ours = apply_view(images, NOTHING._replace(jitter=jitter_of(48, **{name: strength})))
    assert_close(ours, kornia_op(images, strength))
    assert_close(ours, per_image(torchvision_op, images, strength), tolerance)


def test_grayscale():
    images, chosen = random_images(8), torch.arange(8) % 3 == 0
    ours = apply_view(images, NOTHING._replace(grayscale=chosen))
    gray = kornia.color.rgb_to_grayscale(images).expand_as(images)
    assert_close(ours[chosen], gray[chosen])
    assert_close(ours[chosen], tvf.rgb_to_grayscale(images, 3)[chosen], GRAY_WEIGHTS)
    assert torch.equal(ours[~chosen], images[~chosen])


def test_flip():
    images, chosen = random_images(8), torch.arange(8) % 3 == 0
    ours = apply_view(images, NOTHING._replace(flip=chosen))
    assert torch.equal(ours[chosen], kornia.geometry.transform.hflip(images)[chosen])
    assert torch.equal(ours[chosen], tvf.hflip(images)[chosen])
    assert torch.equal(ours[~chosen], images[~chosen])


@pytest.mark.parametrize("size", [32, 5])
def test_blur(size: int):
    """Views of 5 pixels: reflection allows a radius of 4, not 6."""
    images, sigma = random_images(16, 16)[..., :size], torch.linspace(0, 2, 16)
    images = images.repeat(1, 1, 2, 2)[..., :size, :size]
    ours = apply_view(images, NOTHING._replace(blur_sigma=sigma))
    width = 2 * min(6, size - 1) + 1
    both = sigma[1:, None].expand(-1, 2)
    assert_close(ours[1:], kornia.filters.gaussian_blur2d(images[1:], (width, width), both))
    blur = partial(tvf.gaussian_blur, kernel_size=[width, width])
    theirs = per_image(lambda image, s: blur(image, sigma=[s, s]), images[1:], sigma[1:])
    assert_close(ours[1:], theirs)
    assert torch.equal(ours[0], images[0])


def test_what_is_not_blurred_never_meets_the_convolution(monkeypatch: pytest.MonkeyPatch):
    """A GPU may round it to TF32."""
    monkeypatch.setattr(kornia_views, "filter2d_separable", lambda images, *_: images + 1)
    images, sigma = random_images(2), torch.tensor([0.0, 1.0])
    ours = apply_view(images, NOTHING._replace(blur_sigma=sigma))
    assert torch.equal(ours, images + sigma[:, None, None, None])


def test_blur_kernel_reaches_far_enough():
    """What 3 sigma leave out is under half a level of 255 even at an edge of black and white."""
    edge = (torch.arange(33) > 16).float().expand(1, 3, 33, 33)
    parameters = NOTHING._replace(blur_sigma=torch.tensor([2.0]))
    assert parameters.blur_radius == draw_parameters(keys(1), [0], V2).blur_radius
    wide = kornia.filters.gaussian_blur2d(edge, (31, 31), (2.0, 2.0))
    assert_close(apply_view(edge, parameters), wide, 0.5 / 255)


# ---------------------------------------------------------------- the whole chain


def test_orders_are_the_24_permutations():
    assert len({tuple(names_in_order(order)) for order in range(24)}) == 24


@pytest.mark.parametrize("order", range(24))
def test_every_order_equals_a_plain_loop(order: int):
    images = random_images(3)
    drawn = draw_parameters(keys(3), [0], V1).jitter
    assert drawn is not None
    jitter = drawn._replace(order=torch.full((3,), order))
    ours = apply_view(images, NOTHING._replace(jitter=jitter))
    expected = []
    for i, image in enumerate(images):
        for name in names_in_order(order):
            operation = getattr(tvf, f"adjust_{name}")
            image = operation(image, getattr(jitter, name)[i].item())
        expected.append(image)
    assert_close(ours, torch.stack(expected), 3 * GRAY_WEIGHTS)


@pytest.mark.parametrize(
    ("policy", "gray_first"), [(V1, True), (V2, False)], ids=["moco_v1", "moco_v2"]
)
def test_views_equal_the_official_chain(policy: Policy, gray_first: bool):
    """Image by image, by Kornia's functions, in the order of the official code; normalized."""
    crops, num_samples = random_crops(24), 24
    views = augment_views(crops, keys(num_samples), policy, MEAN, STD, torch.float32)
    for view, ours in enumerate(views):
        parameters = draw_parameters(keys(num_samples), [view], policy)
        images = [official(crops[i, view], parameters, i, gray_first) for i in range(num_samples)]
        expected = tvf.normalize(torch.cat(images), MEAN.tolist(), STD.tolist())
        assert_close(ours, expected, EQUAL / STD.min().item())


def official(crop: Tensor, parameters: ViewParameters, i: int, gray_first: bool) -> Tensor:
    image = crop.permute(2, 0, 1)[None] / 255
    jitter, sigma = parameters.jitter, parameters.blur_sigma
    assert jitter is not None
    assert parameters.flip is not None
    assert parameters.grayscale is not None
    operations = {
        "brightness": lambda x: adjust_brightness_accumulative(x, jitter.brightness[i]),
        "contrast": lambda x: adjust_contrast_with_mean_subtraction(x, jitter.contrast[i]),
        "saturation": lambda x: adjust_saturation_with_gray_subtraction(x, jitter.saturation[i]),
        "hue": lambda x: adjust_hue(x, 2 * math.pi * jitter.hue[i]),
        "grayscale": lambda x: kornia.color.rgb_to_grayscale(x).expand_as(x),
    }
    names = names_in_order(int(jitter.order[i]))
    if parameters.grayscale[i]:
        names = ["grayscale", *names] if gray_first else [*names, "grayscale"]
    for name in names:
        image = operations[name](image)
    if sigma is not None and sigma[i] > 0:
        image = kornia.filters.gaussian_blur2d(image, (13, 13), (sigma[i].item(),) * 2)
    return image.flip(-1) if parameters.flip[i] else image


@pytest.mark.full
def test_compiled_views_equal_eager_ones():
    require_compiler()
    crops = random_crops(6)
    arguments = (crops, keys(6), POLICIES["moco_v3"], MEAN, STD)
    compiled = torch.compile(augment_views, fullgraph=True, dynamic=False)
    for ours, eager in zip(
        compiled(*arguments, torch.float32), augment_views(*arguments, torch.float32), strict=True
    ):
        assert_close(ours * STD.min(), eager * STD.min())
        assert ours.is_contiguous(memory_format=torch.channels_last)
    plain = torch.compile(plain_views, fullgraph=True, dynamic=False)
    for by_kornia in (False, True):
        ours, eager = (views(*arguments, by_kornia=by_kornia) for views in (plain, plain_views))
        assert_close(ours * STD.min(), eager * STD.min())


@pytest.mark.parametrize("policy", COMPLETE)
@pytest.mark.parametrize("way", [pytest.param("loops", marks=pytest.mark.full), "planes", "kornia"])
def test_all_operations_are_one_graph(policy: str, way: str):
    """`fullgraph` refuses breaks, and with them all that reads a value back to the host.

    Other policies draw some of these operations, so their graphs are parts of these.
    """
    torch._dynamo.reset()
    views = augment_views if way == "loops" else plain_views
    captured = torch.compile(views, backend="eager", fullgraph=True, dynamic=False)
    arguments = [random_crops(4), keys(4), POLICIES[policy], MEAN, STD]
    arguments += [torch.float32] if way == "loops" else []
    options = {"by_kornia": way == "kornia"}
    for ours, expected in zip(
        captured(*arguments, **options), views(*arguments, **options), strict=True
    ):
        assert torch.equal(ours, expected)


# ---------------------------------------------------------------- the twin on a CPU


@pytest.mark.parametrize("policy", FLAT)
@pytest.mark.parametrize(("height", "width"), [(32, 32), (5, 9), (1, 3), (70, 33)])
def test_cpu_views_equal_plain_ones(policy: str, height: int, width: int):
    crops = torch.randint(0, 256, (30, 2, height, width, 3), dtype=torch.uint8)
    arguments = crops, keys(30), POLICIES[policy], MEAN, STD
    ours = torch.cat(augment_views(*arguments, torch.float32))
    assert_close(ours, plain_views(*arguments), EQUAL / STD.min().item())


@pytest.mark.parametrize("order", range(24))
def test_cpu_views_keep_every_order(order: int, monkeypatch: pytest.MonkeyPatch):
    drawn = view_parameters._draw_jitter

    def in_order(*arguments) -> Jitter:
        jitter = drawn(*arguments)
        return jitter._replace(order=torch.full_like(jitter.order, order))

    monkeypatch.setattr(view_parameters, "_draw_jitter", in_order)
    arguments = random_crops(8), keys(8), POLICIES["simclr"], MEAN, STD
    ours = torch.cat(augment_views(*arguments, torch.float32))
    assert_close(ours, plain_views(*arguments), EQUAL / STD.min().item())


def test_cpu_views_have_the_same_bits_for_any_threads_and_batch():
    crops, draw_key = random_crops(21, 24), keys(21)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 8):
            torch.set_num_threads(threads)
            results.append(augment_views(crops, draw_key, V2, MEAN, STD, torch.float32))
    finally:
        torch.set_num_threads(before)
    alone = [
        augment_views(crops[i : i + 1], draw_key[i : i + 1], V2, MEAN, STD, torch.float32)
        for i in range(21)
    ]
    results.append(tuple(map(torch.cat, zip(*alone, strict=True))))
    for views in results[1:]:
        assert all(map(torch.equal, views, results[0]))


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Which of the two ways makes the views, in the order of calls."""
    calls: list[str] = []
    for name in ("plain_views", "cpu_views"):
        function = getattr(augment, name)

        def recorded(
            *arguments, name: str = name, function: Callable = function, **options
        ) -> Tensor:
            calls.append(name)
            return function(*arguments, **options)

        monkeypatch.setattr(augment, name, recorded)
    return calls


@pytest.mark.parametrize("policy", FLAT)
def test_the_published_policies_take_the_loops_on_a_cpu(policy: str, taken: list[str]):
    augment_views(random_crops(4), keys(4), POLICIES[policy], MEAN, STD, torch.float32)
    assert taken == ["cpu_views"]


@pytest.mark.parametrize(("draws", "views"), [(True, "plain_views"), (False, "cpu_views")])
def test_a_new_parameter_is_left_to_plain_views_where_it_is_drawn(
    draws: bool, views: str, taken: list[str], monkeypatch: pytest.MonkeyPatch
):
    drawn = augment.draw_parameters
    Extended = namedtuple("Extended", (*ViewParameters._fields, "other"))

    def draw_more(*arguments) -> Extended:
        return Extended(*drawn(*arguments), torch.ones(8) if draws else None)

    monkeypatch.setattr(augment, "draw_parameters", draw_more)
    arguments = random_crops(4), keys(4), V2, MEAN, STD
    ours = torch.cat(augment_views(*arguments, torch.float32))
    assert taken == [views]
    assert_close(ours, plain_views(*arguments), EQUAL / STD.min().item())


def test_a_parameter_that_the_loops_lose_is_left_to_plain_views(
    taken: list[str], monkeypatch: pytest.MonkeyPatch
):
    known = tuple(name for name in augment.LOOP_PARAMETERS if name != "blur_sigma")
    monkeypatch.setattr(augment, "LOOP_PARAMETERS", known)
    for policy in ("moco_v2", "cifar"):
        augment_views(random_crops(4), keys(4), POLICIES[policy], MEAN, STD, torch.float32)
    assert taken == ["plain_views", "cpu_views"]


# ---------------------------------------------------------------- properties


@pytest.mark.parametrize("policy", [V1, V2], ids=["moco_v1", "moco_v2"])
def test_a_view_does_not_depend_on_its_batch(policy: Policy):
    crops, draw_key = random_crops(12), keys(12)
    whole = augment_views(crops, draw_key, policy, MEAN, STD, torch.float32)
    chosen = torch.tensor([7, 2, 11])
    part = augment_views(crops[chosen], draw_key[chosen], policy, MEAN, STD, torch.float32)
    for a, b in zip(whole, part, strict=True):
        assert_close(a[chosen], b, 1e-6)


def test_the_two_views_of_one_crop_differ():
    crops = random_crops(12, num_views=1).expand(-1, 2, -1, -1, -1)
    query, key = augment_views(crops, keys(12), V2, MEAN, STD, torch.float32)
    assert ((query - key).abs().amax((1, 2, 3)) > 0.01).all()


def test_gray_images_stay_gray():
    """Grayscale before the jitter (v1) too: hue and saturation leave gray alone."""
    for policy in (V1, V2):
        parameters = draw_parameters(keys(40), [0], policy)
        assert parameters.grayscale is not None
        gray = apply_view(random_images(40), parameters)[parameters.grayscale]
        assert len(gray) > 2
        assert_close(gray.amax(1), gray.amin(1), 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_views_are_channels_last_finite_and_in_range(dtype: torch.dtype):
    crops = random_crops(4)
    crops[0], crops[1], crops[2] = 0, 255, 128
    with torch.autocast("cpu", torch.bfloat16):
        views = augment_views(crops, keys(4), V2, MEAN, STD, dtype)
    exact = augment_views(crops, keys(4), V2, MEAN, STD, torch.float32)
    assert len(views) == 2
    for view, expected in zip(views, exact, strict=True):
        assert (view.dtype, view.shape) == (dtype, (4, 3, 16, 16))
        assert view.stride() == (768, 1, 48, 3)
        assert torch.equal(view, expected.to(dtype))
        pixels = expected * STD[:, None, None] + MEAN[:, None, None]
        assert pixels.min() > -1e-6
        assert pixels.max() < 1 + 1e-6


def test_normalized_is_undone_by_its_inverse():
    crops = random_crops(5, num_views=1)
    ours = normalized(crops, MEAN, STD, torch.float32)
    assert ours.stride() == (768, 1, 48, 3)
    pixels = (ours * STD[:, None, None] + MEAN[:, None, None]) * 255
    assert torch.equal(pixels.round().to(torch.uint8), crops[:, 0].permute(0, 3, 1, 2))


# ---------------------------------------------------------------- draws


def test_parameters_are_distributed_as_torchvisions():
    jitter = ColorJitter(V1.brightness, V1.contrast, V1.saturation, V1.hue)
    settings = jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue
    theirs = [ColorJitter.get_params(*settings) for _ in range(100_000)]
    drawn = draw_parameters(keys(100_000), [0], V1).jitter
    assert drawn is not None
    for column, name in enumerate(NAMES, 1):
        expected = np.array([parameters[column] for parameters in theirs])
        assert_same_distribution(getattr(drawn, name).numpy(), expected, name)
    counts = torch.bincount(drawn.order, minlength=24)
    assert len(counts) == 24
    assert (counts - 100_000 / 24).abs().max() < 5 * math.sqrt(100_000 / 24)


def test_parameters_are_drawn_apart():
    drawn = draw_parameters(
        keys(20_000), [0], Policy(jitter_probability=1, **dict.fromkeys(NAMES, 0.4))
    )
    assert drawn.jitter is not None
    correlation = torch.corrcoef(torch.stack([field.double() for field in drawn.jitter]))
    assert (correlation - torch.eye(5)).abs().max() < 5 / math.sqrt(20_000)


def test_strengths_above_1_do_not_go_below_0():
    """torchvision bounds factors at 0."""
    drawn = draw_parameters(keys(4000), [0], Policy(jitter_probability=1, contrast=1.5)).jitter
    assert drawn is not None
    assert_same_distribution(drawn.contrast.numpy(), np.linspace(0, 2.5, 4000))


def test_shares_are_the_policys():
    drawn = draw_parameters(keys(100_000), [1], V2)
    assert drawn.flip is not None
    assert drawn.jitter is not None
    assert drawn.grayscale is not None
    assert drawn.blur_sigma is not None
    jittered = drawn.jitter.brightness != 1
    for name, neutral in (("contrast", 1), ("saturation", 1), ("hue", 0)):
        assert ((getattr(drawn.jitter, name) != neutral) == jittered).float().mean() > 0.9999
    shares = {0.5: drawn.flip, 0.8: jittered, 0.2: drawn.grayscale}
    for share, chosen in (*shares.items(), (0.5, drawn.blur_sigma > 0)):
        assert abs(chosen.float().mean().item() - share) < 5 * 0.5 / math.sqrt(100_000)


def test_sigmas_are_distributed_as_torchvisions():
    always = dataclasses.replace(V2, blur_probability=1.0)
    sigma = draw_parameters(keys(100_000), [1], always).blur_sigma
    assert sigma is not None
    theirs = [GaussianBlur.get_params(*V2.blur_sigma) for _ in range(100_000)]
    assert_same_distribution(sigma.numpy(), np.array(theirs), "sigma")


def test_probability_0_never_and_1_always_applies():
    never = Policy(flip_probability=0)
    drawn = draw_parameters(keys(8), [0], never)
    assert (drawn.flip, drawn.jitter, drawn.grayscale, drawn.blur_sigma) == (None,) * 4
    crops = random_crops(8)
    views = augment_views(crops, keys(8), never, MEAN, STD, torch.float32)
    for view, plain in enumerate(views):
        expected = normalized(crops[:, view, None], MEAN, STD, torch.float32)
        assert_close(plain, expected, 1e-6)
    always = Policy(flip_probability=1, grayscale_probability=1, blur_probability=1)
    drawn = draw_parameters(keys(5000), [0], always)
    assert drawn.flip is not None
    assert drawn.grayscale is not None
    assert drawn.blur_sigma is not None
    assert drawn.flip.all()
    assert drawn.grayscale.all()
    assert (drawn.blur_sigma >= 0.1).all()


def test_redrawn_views_equal_those_drawn_together():
    together = draw_parameters(keys(6), [0, 1], V2)
    assert together.jitter is not None
    for view in (0, 1):
        alone = draw_parameters(keys(6), [view], V2)
        assert alone.jitter is not None
        for a, b in zip(together.jitter, alone.jitter, strict=True):
            assert torch.equal(a[6 * view : 6 * view + 6], b)
