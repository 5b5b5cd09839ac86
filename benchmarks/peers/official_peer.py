"""The official MoCo data path, reimplemented from its published recipe: PIL, torchvision, workers.

Two random crops of each image, each decoded once (``TwoCropsTransform`` works on one PIL image),
by a DataLoader with as many workers as there are CPUs; the v2 augmentation of
arXiv:2003.04297, section 3, with SimCLR's blur.
"""

import os
import random
from collections.abc import Iterator

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torch.utils.data import DataLoader, RandomSampler
from torchvision.datasets import ImageFolder
from torchvision.transforms import v2

from benchmarks.rates import EPOCH_IMAGES

BATCH = 64


class TwoCrops:
    """Both views of an image."""

    def __init__(self, transform: v2.Transform) -> None:
        self._transform = transform

    def __call__(self, image: Image.Image) -> list[Tensor]:
        """Draws twice."""
        return [self._transform(image), self._transform(image)]


class GaussianBlur:
    """SimCLR's blur as the official code has it."""

    def __call__(self, image: Image.Image) -> Image.Image:
        """Sigma is uniform in 0.1 to 2 pixels."""
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))


def crops(source: str, view_size: int) -> Iterator[int]:
    """Decode and two crops, as uint8 tensors: a stream."""
    crop = v2.RandomResizedCrop(view_size, scale=(0.2, 1.0))
    return _sizes(two_crop_loader(source, v2.Compose([crop, v2.PILToTensor()])))


def views(source: str, view_size: int) -> Iterator[int]:
    """Two whole views: a stream."""
    steps = [
        v2.RandomResizedCrop(view_size, scale=(0.2, 1.0)),
        v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        v2.RandomGrayscale(p=0.2),
        v2.RandomApply([GaussianBlur()], p=0.5),
        v2.RandomHorizontalFlip(),
        v2.Compose([v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)]),
        v2.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ]
    return _sizes(two_crop_loader(source, v2.Compose(steps)))


def two_crop_loader(source: str, transform: v2.Transform) -> DataLoader[list[Tensor]]:
    """Its DataLoader of both views, with a worker for each CPU; an epoch has `EPOCH_IMAGES`."""
    images = ImageFolder(source, TwoCrops(transform))
    return DataLoader(
        images,
        batch_size=BATCH,
        sampler=RandomSampler(images, num_samples=EPOCH_IMAGES),
        num_workers=len(os.sched_getaffinity(0)),
        drop_last=True,
        persistent_workers=True,
    )


def _sizes(loader: DataLoader[list[Tensor]]) -> Iterator[int]:
    torch.set_num_threads(1)
    while True:
        for (query, _), _ in loader:
            yield len(query)
