"""lightly: its MoCo on CIFAR-10 as its example and its CIFAR-10 benchmark have it.

https://docs.lightly.ai, "MoCo" and "Tutorial 2": a LightlyDataset with `MoCoV2Transform` (for
CIFAR half the jitter and no blur) in a DataLoader, `MoCoProjectionHead`, `NTXentLoss` with a memory
bank, `update_momentum` for backbone and head, SGD.
"""

import copy
import os
from collections.abc import Iterator

import torch
from lightly.data import LightlyDataset
from lightly.loss import NTXentLoss
from lightly.models.modules import MoCoProjectionHead
from lightly.models.utils import deactivate_requires_grad, update_momentum
from lightly.transforms import MoCoV2Transform
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler

from benchmarks.rates import EPOCH_IMAGES

BATCH = 64
MOMENTUM, TEMPERATURE = 0.99, 0.1


def views(source: str, view_size: int) -> Iterator[int]:
    """Two whole views of each image: a stream.

    Args:
        source: Class folders of JPEGs.
        view_size: Side of the views; at 32 pixels CIFAR's settings.
    """
    torch.set_num_threads(1)
    small = {"cj_strength": 0.5, "gaussian_blur": 0.0} if view_size == 32 else {}
    images = LightlyDataset(source, transform=MoCoV2Transform(input_size=view_size, **small))
    loader = DataLoader(
        images,
        batch_size=BATCH,
        sampler=RandomSampler(images, num_samples=EPOCH_IMAGES),
        drop_last=True,
        num_workers=len(os.sched_getaffinity(0)),
        persistent_workers=True,
    )
    while True:
        for (query, _), *_ in loader:
            yield len(query)


class LightlyStep:
    """One training step on one device, float32.

    Args:
        backbone: ``(N, 3, H, W)`` to ``(N, feature_dim)``; trained in place.
        feature_dim: Of the backbone.
        queue_size: Keys in the memory bank.
        learning_rate: Of SGD with momentum 0.9 and weight decay 5e-4.
    """

    def __init__(
        self, backbone: nn.Module, feature_dim: int, queue_size: int, learning_rate: float
    ) -> None:
        device = next(backbone.parameters()).device
        self.backbone = backbone
        self.head = MoCoProjectionHead(feature_dim, feature_dim, 128).to(device)
        self.backbone_momentum = copy.deepcopy(self.backbone)
        self.head_momentum = copy.deepcopy(self.head)
        deactivate_requires_grad(self.backbone_momentum)
        deactivate_requires_grad(self.head_momentum)
        bank = (queue_size, 128)
        self.criterion = NTXentLoss(temperature=TEMPERATURE, memory_bank_size=bank).to(device)
        parameters = [*self.backbone.parameters(), *self.head.parameters()]
        self.optimizer = torch.optim.SGD(parameters, learning_rate, momentum=0.9, weight_decay=5e-4)

    def __call__(self, query_view: Tensor, key_view: Tensor) -> Tensor:
        """Momentum update, loss, enqueue, optimizer; gives the loss."""
        update_momentum(self.backbone, self.backbone_momentum, m=MOMENTUM)
        update_momentum(self.head, self.head_momentum, m=MOMENTUM)
        query = self.head(self.backbone(query_view).flatten(start_dim=1))
        key = self.head_momentum(self.backbone_momentum(key_view).flatten(start_dim=1)).detach()
        loss: Tensor = self.criterion(query, key)
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        self.optimizer.zero_grad()
        return loss.detach()
