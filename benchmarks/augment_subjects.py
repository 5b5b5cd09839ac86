"""Ways to make views of crops: ours, and the same recipe by those whom our users would take else.

Each takes crops, ``(N, 2, H, W, 3)`` uint8 on the device, and gives both views of all images,
normalized. Parameters are drawn anew for each image and view in all of them.
"""

from collections.abc import Callable

import kornia.augmentation as K
import torch
from torch import Tensor
from torchvision.transforms import v2

from fastmoco.pipelines.augment import augment_views, plain_views
from fastmoco.pipelines.policies import Policy

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
KERNEL = 13  # pixels: 3 of the largest sigma on either side
Views = Callable[[Tensor, Tensor], object]
"""Takes crops and ``draw_key``."""


def ours(policy: Policy, device: torch.device, *, compiled: bool) -> Views:
    """`augment_views`, as training calls it."""
    mean, std = torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)
    views = torch.compile(augment_views, dynamic=False) if compiled else augment_views
    return lambda crops, key: views(crops, key, policy, mean, std, torch.float32)


def by_planes(policy: Policy, device: torch.device, *, compiled: bool) -> Views:
    """``pipeline.augmentation=planes`` on a GPU; on a CPU the twin of what runs there."""
    return _plain(policy, device, compiled=compiled, by_kornia=False)


def by_kornia(policy: Policy, device: torch.device, *, compiled: bool) -> Views:
    """``pipeline.augmentation=kornia``: our draws, applied by Kornia's functions."""
    return _plain(policy, device, compiled=compiled, by_kornia=True)


def _plain(policy: Policy, device: torch.device, *, compiled: bool, by_kornia: bool) -> Views:
    mean, std = torch.tensor(MEAN, device=device), torch.tensor(STD, device=device)
    views = torch.compile(plain_views, dynamic=False) if compiled else plain_views
    return lambda crops, key: views(crops, key, policy, mean, std, by_kornia=by_kornia)


def kornia_classes(policy: Policy) -> Views:
    """Kornia's `AugmentationSequential`, as its documentation has it."""
    jitter = policy.brightness, policy.contrast, policy.saturation, policy.hue
    gray = K.RandomGrayscale(p=policy.grayscale_probability)
    steps = [
        K.RandomHorizontalFlip(p=policy.flip_probability),
        K.ColorJitter(*jitter, p=policy.jitter_probability),
    ]
    steps.insert(1 if policy.grayscale_first else 2, gray)
    if policy.blur_probability:
        size, sigma = (KERNEL, KERNEL), policy.blur_sigma
        steps.append(K.RandomGaussianBlur(size, sigma, p=policy.blur_probability))
    steps.append(K.Normalize(torch.tensor(MEAN), torch.tensor(STD)))
    augment = K.AugmentationSequential(*steps, same_on_batch=False)
    return lambda crops, _: augment(crops.permute(1, 0, 4, 2, 3).flatten(0, 1) / 255)


def torchvision_v2(policy: Policy) -> Views:
    """Torchvision's transforms, image by image: on a batch they would draw once for all images."""
    jitter = v2.ColorJitter(policy.brightness, policy.contrast, policy.saturation, policy.hue)
    gray = v2.RandomGrayscale(p=policy.grayscale_probability)
    steps: list[v2.Transform] = [
        v2.RandomHorizontalFlip(p=policy.flip_probability),
        v2.RandomApply([jitter], p=policy.jitter_probability),
    ]
    steps.insert(1 if policy.grayscale_first else 2, gray)
    if policy.blur_probability:
        blur = v2.GaussianBlur(KERNEL, policy.blur_sigma)
        steps.append(v2.RandomApply([blur], p=policy.blur_probability))
    steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(list(MEAN), list(STD))]
    transform = v2.Compose(steps)

    def views(crops: Tensor, _: Tensor) -> Tensor:
        images = crops.permute(1, 0, 4, 2, 3).flatten(0, 1)
        return torch.stack([transform(image) for image in images])

    return views
