"""MoCo's own CIFAR-10 notebook, reimplemented from what it describes: a whole run with its kNN.

``moco_cifar10_demo.ipynb`` of the official code: PIL images through torchvision's transforms,
batch norm in groups (``SplitBatchNorm``), shuffled keys, a queue ``(C, K)``, SGD whose cosine
counts epochs from 1. Float32, NCHW, eager, all logits of the loss at once, a momentum update
parameter by parameter: what makes it slow is kept.
Left out: the symmetric loss, its resuming, and the reading of CIFAR-10's own files: it takes
decoded images, as that gives them.
"""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms
from torchvision.datasets import ImageFolder

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """What the notebook's arguments set; the defaults are its own."""

    batch: int = 512
    learning_rate: float = 0.06
    weight_decay: float = 5e-4
    epochs: int = 200
    dim: int = 128
    queue_size: int = 4096
    momentum: float = 0.99
    temperature: float = 0.1
    groups: int = 8
    """Groups of a batch that batch norm treats apart (``bn_splits``)."""


class SplitBatchNorm(nn.BatchNorm2d):
    """Batch norm in training over each of several groups: image i is in group i mod groups."""

    groups = 8

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``(N, C, H, W)``; the running statistics become the groups' mean."""
        if not self.training:
            return super().forward(input)
        images, channels, height, width = input.shape
        assert self.running_mean is not None
        assert self.running_var is not None
        mean, variance = (x.repeat(self.groups) for x in (self.running_mean, self.running_var))
        output = F.batch_norm(
            input.view(-1, channels * self.groups, height, width),
            mean,
            variance,
            self.weight.repeat(self.groups),
            self.bias.repeat(self.groups),
            True,
            self.momentum or 0.0,
            self.eps,
        )
        self.running_mean.copy_(mean.view(self.groups, channels).mean(dim=0))
        self.running_var.copy_(variance.view(self.groups, channels).mean(dim=0))
        return output.view(images, channels, height, width)


def use_split_batch_norm(encoder: nn.Module, groups: int) -> None:
    """Replace each batch norm of an encoder that has just been built."""
    for module in list(encoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, nn.BatchNorm2d):
                own = SplitBatchNorm(child.num_features)
                own.groups = groups
                setattr(module, name, own)


class NotebookMoCo:
    """Both encoders and the queue.

    Args:
        encoder: Backbone and a linear head, ``(N, 3, H, W)`` to ``(N, C)``; trained in place.
        recipe: Its settings.
    """

    def __init__(self, encoder: nn.Module, recipe: Recipe) -> None:
        self.encoder_q = encoder
        self.encoder_k = copy.deepcopy(encoder).requires_grad_(False)
        self.recipe = recipe
        parameter = next(encoder.parameters())
        size = (recipe.dim, recipe.queue_size)
        queue = torch.randn(size, dtype=parameter.dtype, device=parameter.device)
        self.queue = F.normalize(queue, dim=0)
        self.pointer = 0

    def loss(self, query_view: Tensor, key_view: Tensor, order: Tensor) -> Tensor:
        """Momentum update, loss, enqueue.

        Args:
            query_view: ``(N, 3, H, W)``.
            key_view: The other view of the same images.
            order: A permutation ``(N,)`` by which the keys are shuffled for batch norm.
        """
        self.update_key_encoder()
        query = F.normalize(self.encoder_q(query_view), dim=1)
        with torch.no_grad():
            shuffled = F.normalize(self.encoder_k(key_view[order]), dim=1)
            key = shuffled[torch.argsort(order)]
        positive = torch.einsum("nc,nc->n", [query, key]).unsqueeze(-1)
        negative = torch.einsum("nc,ck->nk", [query, self.queue.clone().detach()])
        logits = torch.cat([positive, negative], dim=1) / self.recipe.temperature
        labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        result = F.cross_entropy(logits, labels)
        self.enqueue(key)
        return result

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """At the start of a step, parameter by parameter; running statistics stay their own."""
        m = self.recipe.momentum
        pairs = zip(self.encoder_k.parameters(), self.encoder_q.parameters(), strict=True)
        for ours, theirs in pairs:
            ours.data = ours.data * m + theirs.data * (1.0 - m)

    @torch.no_grad()
    def enqueue(self, key: Tensor) -> None:
        """Overwrite the oldest; K is a multiple of N."""
        assert self.recipe.queue_size % len(key) == 0
        self.queue[:, self.pointer : self.pointer + len(key)] = key.T
        self.pointer = (self.pointer + len(key)) % self.recipe.queue_size


TRAIN = transforms.Compose(
    [
        transforms.RandomResizedCrop(32),
        transforms.RandomHorizontalFlip(p=0.5),
        transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
        transforms.RandomGrayscale(p=0.2),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)
TEST = transforms.Compose(
    [
        transforms.Resize(32),  # nothing for CIFAR-10's images
        transforms.CenterCrop(32),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
)


class Views(Dataset[tuple[Tensor, ...]]):
    """So many transforms of each image."""

    def __init__(
        self, images: Sequence[Image.Image], transform: Callable[[Image.Image], Tensor], count: int
    ) -> None:
        self._images, self._transform, self._count = images, transform, count

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, index: int) -> tuple[Tensor, ...]:
        return tuple(self._transform(self._images[index]) for _ in range(self._count))


def read_folder(folder: Path) -> tuple[list[Image.Image], list[int]]:
    """Images of class folders, decoded, and their labels."""
    found = ImageFolder(str(folder))
    return [image.copy() for image, _ in found], list(found.targets)


def learning_rate(recipe: Recipe, epoch: int) -> float:
    """Of an epoch, counted from 1 as in the notebook: the last one's is 0."""
    return recipe.learning_rate * 0.5 * (1.0 + math.cos(math.pi * epoch / recipe.epochs))


def train(
    encoder: nn.Module,
    images: Sequence[Image.Image],
    recipe: Recipe,
    seed: int,
    num_workers: int = 0,
) -> Iterator[float]:
    """Train an encoder in place, on its device; yields the mean loss of each epoch.

    Args:
        encoder: As `NotebookMoCo` takes it.
        images: Of 32 pixels.
        recipe: Its settings.
        seed: Of the order, the views, the shuffling and the first negatives.
        num_workers: Processes of the DataLoader; the notebook has 16.
    """
    torch.manual_seed(seed)
    model, device = NotebookMoCo(encoder, recipe), next(encoder.parameters()).device
    loader = DataLoader(
        Views(images, TRAIN, 2),
        batch_size=recipe.batch,
        shuffle=True,
        drop_last=True,
        num_workers=num_workers,
        pin_memory=device.type == "cuda",
        persistent_workers=num_workers > 0,
    )
    optimizer = torch.optim.SGD(
        encoder.parameters(),
        lr=recipe.learning_rate,
        weight_decay=recipe.weight_decay,
        momentum=0.9,
    )
    model.encoder_k.train()
    for epoch in range(1, recipe.epochs + 1):
        encoder.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(recipe, epoch)
        total = 0.0
        for batch in loader:
            query_view, key_view = (view.to(device, non_blocking=True) for view in batch)
            order = torch.randperm(len(query_view), device=device)
            loss = model.loss(query_view, key_view, order)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            total += loss.item()
        yield total / len(loader)


@torch.no_grad()
def features(encoder: nn.Module, images: Sequence[Image.Image]) -> Tensor:
    """Features ``(n, C)`` of whole images, not normalized, on the device; sets eval mode."""
    encoder.eval()
    device = next(encoder.parameters()).device
    loader = DataLoader(Views(images, TEST, 1), batch_size=512)
    return torch.cat([encoder(batch.to(device)) for (batch,) in loader])
