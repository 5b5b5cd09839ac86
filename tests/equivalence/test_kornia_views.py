"""Kornia's functions, our planes and the loops of a CPU: the same views from the same draws.

Tolerance 1e-5 in 0..1, before normalization: float32, where the order of sums differs. A pixel
within 1e-5 of a threshold of solarization may be on either side of it; such pixels are counted.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as tvf
from PIL import Image, ImageOps
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastmoco.draws.host import draw_keys
from fastmoco.pipelines import color, kornia_views
from fastmoco.pipelines.augment import apply_view, augment_views, plain_views
from fastmoco.pipelines.policies import POLICIES, VIEW_RANGES, Policy, SecondView
from fastmoco.pipelines.view_parameters import NEVER, ViewParameters, draw_parameters
from tests.equivalence.test_augment import (
    NAMES,
    NOTHING,
    jitter_of,
    names_in_order,
    random_images,
)

V3 = POLICIES["moco_v3"]
STRONG = replace(
    V3,
    brightness=0.9,
    contrast=0.9,
    saturation=0.9,
    hue=0.5,
    solarize_probability=0.7,
    solarize_threshold=0.3,
    second_view=SecondView(grayscale_probability=0.0, solarize_threshold=0.8, hue=0.0),
)
PLAIN = {"mean": torch.zeros(3), "std": torch.ones(3)}
EQUAL = 1e-5


def keys(count: int) -> Tensor:
    return torch.from_numpy(draw_keys(2, 1, np.arange(count, dtype=np.int64)))


def differing(policy: Policy, height: int, width: int, count: int = 30) -> int:
    """Values of Kornia's views, and of `augment_views`, that differ from those of the planes."""
    crops = torch.randint(0, 256, (count, 2, height, width, 3), dtype=torch.uint8)
    planes = plain_views(crops, keys(count), policy, **PLAIN)
    never = replace(policy, solarize_probability=0.0, second_view=SecondView())
    without = replace(never, second_view=replace(policy.second_view, solarize_probability=0.0))
    before = plain_views(crops, keys(count), without, **PLAIN)
    drawn = draw_parameters(keys(count), [0, 1], policy).solarize
    threshold = torch.full((2 * count,), NEVER) if drawn is None else drawn
    near = (before - threshold[:, None, None, None]).abs() < EQUAL
    assert near.float().mean() < 1e-3
    others = plain_views(crops, keys(count), policy, **PLAIN, by_kornia=True)
    loops = torch.cat(augment_views(crops, keys(count), policy, **PLAIN, dtype=torch.float32))
    return sum(int((((views - planes).abs() > EQUAL) & ~near).sum()) for views in (others, loops))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (5, 9), (1, 3), (70, 33)])
def test_all_ways_make_the_same_views(height: int, width: int):
    flat = {name: policy for name, policy in POLICIES.items() if not policy.pool}
    for name, policy in {**flat, "strong": STRONG}.items():
        assert differing(policy, height, width) == 0, name


def swapped(monkeypatch: pytest.MonkeyPatch) -> None:
    operations = kornia_views._OPERATIONS
    changed = {"contrast": operations["saturation"], "saturation": operations["contrast"]}
    monkeypatch.setattr(kornia_views, "_OPERATIONS", operations | changed)


def a_call_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kornia_views, "_CALLS", (*kornia_views._CALLS[:-1], "saturation"))


def a_level_off(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = color.solarize
    monkeypatch.setattr(
        "fastmoco.pipelines.augment.solarize", lambda planes, t: plain(planes, t + 1 / 255)
    )


def blurred_by_more(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = kornia_views.blur
    monkeypatch.setattr(
        kornia_views, "blur", lambda x, sigma, radius: plain(x, 1.01 * sigma, radius)
    )


@pytest.mark.parametrize("mutant", [swapped, a_call_left_out, a_level_off, blurred_by_more])
def test_what_is_slightly_wrong_is_noticed(mutant: Callable, monkeypatch: pytest.MonkeyPatch):
    mutant(monkeypatch)
    assert differing(STRONG, 32, 32) > 100


def test_every_order_equals_a_plain_loop_of_torchvision():
    """Two images of each order; torchvision has another weight of red, see `test_augment`."""
    images = random_images(48)
    factors = torch.linspace(0.6, 1.4, 48)
    jitter = jitter_of(
        48, brightness=factors, contrast=factors.flip(0), saturation=factors, hue=(factors - 1) / 4
    )
    ours = apply_view(images, NOTHING._replace(jitter=jitter), by_kornia=True)
    for index, image in enumerate(images):
        for name in names_in_order(index % 24):
            image = getattr(tvf, f"adjust_{name}")(image, getattr(jitter, name)[index].item())
        torch.testing.assert_close(ours[index], image, rtol=0, atol=1.5e-3)


@pytest.mark.parametrize("name", NAMES)
def test_an_image_that_does_not_draw_an_operation_keeps_its_pixels(name: str):
    images = random_images(48)
    neutral = apply_view(images, NOTHING._replace(jitter=jitter_of(48)), by_kornia=True)
    torch.testing.assert_close(neutral, images, rtol=0, atol=1e-6)
    one = torch.where(torch.arange(48) == 7, 0.3, 0.0 if name == "hue" else 1.0)
    changed = apply_view(
        images, NOTHING._replace(jitter=jitter_of(48, **{name: one})), by_kornia=True
    )
    apart = (changed - images).abs().amax((1, 2, 3)) > 1e-6
    assert apart.nonzero().flatten().tolist() == [7]


# ---------------------------------------------------------------- solarization


def all_levels() -> Tensor:
    """Every level of every channel, ``(1, 3, 16, 16)`` uint8."""
    level = torch.arange(256, dtype=torch.uint8).view(16, 16)
    return torch.stack([level, level.flip(0), level.T])[None]


def solarized(levels: Tensor, threshold: float, way: str) -> Tensor:
    if way == "loops":
        policy = Policy(flip_probability=0, solarize_probability=1, solarize_threshold=threshold)
        crops = levels.permute(0, 2, 3, 1)[:, None]
        (view,) = augment_views(crops, keys(1), policy, **PLAIN, dtype=torch.float32)
    else:
        parameters = NOTHING._replace(solarize=torch.tensor([threshold]))
        view = apply_view(levels / 255, parameters, by_kornia=way == "kornia")
    return (255 * view).round().to(torch.uint8)


@pytest.mark.parametrize("way", ["loops", "planes", "kornia"])
def test_solarize_is_pils_and_torchvisions(way: str):
    levels = all_levels()
    theirs = ImageOps.solarize(Image.fromarray(levels[0].permute(1, 2, 0).numpy()))
    expected = torch.from_numpy(np.array(theirs)).permute(2, 0, 1)[None]
    default = POLICIES["moco_v3"].solarize_threshold
    assert torch.equal(solarized(levels, default, way), expected)
    for off in (-1 / 255, 1 / 255):
        assert not torch.equal(solarized(levels, default + off, way), expected)
    for level in (1, 77, 200, 255):
        ours = solarized(levels, (level - 0.5) / 255, way)
        assert torch.equal(ours, tvf.solarize(levels, level))


# ---------------------------------------------------------------- nothing is read to the host


@pytest.mark.parametrize("by_kornia", [False, True])
def test_nothing_is_read_to_the_host_where_it_is_not_compiled(by_kornia: bool):
    with FakeTensorMode() as mode:
        crops = torch.zeros(4, 2, 8, 8, 3, dtype=torch.uint8)
        key, mean, std = torch.zeros(4, dtype=torch.int64), torch.zeros(3), torch.ones(3)
        views = plain_views(crops, key, STRONG, mean, std, by_kornia=by_kornia)
    assert views.fake_mode is mode
    assert views.shape == (8, 3, 8, 8)


# ---------------------------------------------------------------- unlike views


def test_the_views_of_moco_v3_are_unlike():
    first, second = (draw_parameters(keys(20_000), [view], V3) for view in (0, 1))
    assert first.blur_sigma is not None
    assert second.blur_sigma is not None
    assert second.solarize is not None
    assert bool((first.blur_sigma >= 0.1).all())
    assert first.solarize is None
    assert (second.blur_sigma > 0).float().mean().item() == pytest.approx(0.1, abs=0.011)
    assert (second.solarize == 0.5).float().mean().item() == pytest.approx(0.2, abs=0.015)
    assert ((second.solarize == 0.5) | (second.solarize == NEVER)).all()


def test_what_a_second_view_does_not_name_is_that_of_the_first():
    policy = Policy(hue=0.3, blur_probability=0.4, second_view=SecondView(blur_probability=0.0))
    assert [policy.of_view("hue", view) for view in range(4)] == [0.3] * 4
    assert [policy.of_view("blur_probability", view) for view in range(4)] == [0.4, 0.0] * 2


@pytest.mark.parametrize("name", VIEW_RANGES)
def test_each_value_of_a_second_view_changes_that_view_alone(name: str):
    alike = replace(V3, solarize_probability=0.2, second_view=SecondView())
    value = {"blur_sigma": (0.9, 0.95), "hue": 0.4}.get(name, 0.9)
    policy = replace(alike, second_view=replace(SecondView(), **{name: value}))
    before, drawn = (draw_parameters(keys(50), [0, 1], each) for each in (alike, policy))
    assert flat(drawn, 0) == flat(before, 0)
    assert flat(drawn, 1) != flat(before, 1)
    assert flat(drawn, 1) == flat(draw_parameters(keys(50), [1], policy), 0)


def flat(parameters: ViewParameters, view: int, count: int = 50) -> list[list[float]]:
    """The values of one view's tensors."""
    assert parameters.jitter is not None
    tensors = [*parameters.jitter, parameters.flip, parameters.grayscale]
    tensors += [parameters.blur_sigma, parameters.solarize]
    assert all(tensor is not None for tensor in tensors)
    return [tensor[count * view : count * (view + 1)].tolist() for tensor in tensors]


@pytest.mark.parametrize("by_kornia", [False, True])
def test_the_recipe_goes_with_the_view_where_keys_are_of_other_images(by_kornia: bool):
    """Over several ranks the second crop is of another image: its key, the second view's recipe."""
    crops = torch.randint(0, 256, (6, 2, 12, 12, 3), dtype=torch.uint8)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    exchanged = torch.stack([crops[:, 0], crops[order, 1]], dim=1)
    both = torch.stack([keys(6), keys(6)[order]], dim=1)
    options = {**PLAIN, "dtype": torch.float32, "by_kornia": by_kornia}
    own = augment_views(crops, keys(6), STRONG, **options)
    views = augment_views(exchanged, both, STRONG, **options)
    assert torch.equal(views[0], own[0])
    torch.testing.assert_close(views[1], own[1][order], rtol=0, atol=1e-6)
