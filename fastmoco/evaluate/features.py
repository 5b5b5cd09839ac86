"""Features of a frozen encoder over a dataset, from center crops."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastmoco.config import config_from_dict
from fastmoco.data.beton_set import Dataset
from fastmoco.moco.build import build_query_encoder
from fastmoco.moco.contrastive import Encoder
from fastmoco.pipelines.augment import normalized
from fastmoco.pipelines.build import LoaderSpec, build_loader
from fastmoco.pipelines.contract import EpochPlan
from fastmoco.schema import Features, PipelineConfig, TrainConfig
from fastmoco.train.checkpoint import load_checkpoint, restore_module, under_prefix


class FrozenEncoder(nn.Module):
    """A pretrained query encoder with the normalization and the crop that it was trained for.

    Attributes:
        backbone: The ResNet; `backbone.feature_dim` is the length of its feature.
        head: The projection head.
        mean: Buffer ``(3,)``, channel mean in 0..1.
        std: Buffer ``(3,)``, channel standard deviation in 0..1.
        eval_size: Side of the crops that evaluation gives it, pixels.
        center_crop: Central share of an image that evaluation looks at.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, encoder: Encoder, pipeline: PipelineConfig, *, mean: list[float], std: list[float]
    ) -> None:
        """Take a trained encoder's parts; puts them into evaluation mode without gradients.

        Args:
            encoder: Changed in place: copy it first where it goes on training.
            pipeline: Of the run; its sizes for evaluation.
            mean: Channel mean in 0..1.
            std: Channel standard deviation in 0..1.
        """
        super().__init__()
        self.backbone, self.head = encoder.backbone, encoder.head
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        self.eval_size = pipeline.eval_size or pipeline.view_size
        self.center_crop = pipeline.center_crop
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Backbone features ``(N, D)`` of RGB images ``(N, 3, H, W)``, uint8 or float in 0..1."""
        scaled = images / 255 if images.dtype == torch.uint8 else images
        normal = (scaled - self.mean[:, None, None]) / self.std[:, None, None]
        features: Tensor = self.backbone(normal)
        return features

    def encode_crops(self, crops: Tensor, features: Features) -> Tensor:
        """Backbone features or embeddings of evaluation crops, ``(N, 1, H, W, 3)`` uint8."""
        vectors: Tensor = self.backbone(normalized(crops, self.mean, self.std, torch.float32))
        return self.head(vectors) if features is Features.embedding else vectors


def load_encoder(path: str | Path, *, untrained: bool = False) -> FrozenEncoder:
    """Load the query encoder of a run.

    Args:
        path: A run folder, or one of its checkpoint files.
        untrained: The same encoder as it was before the first step.

    Raises:
        CheckpointError: If there is no checkpoint, or it is damaged.
    """
    checkpoint = load_checkpoint(Path(path))
    cfg = config_from_dict(TrainConfig, checkpoint.facts["config"])
    torch.manual_seed(cfg.seed)
    encoder = build_query_encoder(cfg.model, cfg.moco, view_size=cfg.pipeline.view_size)
    if not untrained:
        restore_module(encoder, under_prefix("model.query_encoder", checkpoint.tensors), checkpoint)
    facts = checkpoint.facts
    return FrozenEncoder(
        encoder, cfg.pipeline, mean=facts["channel_mean"], std=facts["channel_std"]
    )


@dataclass(slots=True)
class FeatureSet:
    """Features of a whole dataset, in file order."""

    vectors: Tensor
    """``(n, D)`` float32, on the device, not normalized."""
    labels: Tensor
    """``(n,)`` int64, on the device; -1 where unlabeled."""


@torch.no_grad()
def extract_features(
    encode: Callable[[Tensor], Tensor],
    dataset: Dataset,
    *,
    spec: LoaderSpec,
    batch_size: int,
    device: torch.device,
) -> FeatureSet:
    """Run `encode` over every image of a dataset; no sample is dropped.

    Args:
        encode: Crops ``(N, 1, H, W, 3)`` uint8 to vectors ``(N, D)``.
        dataset: An open dataset file.
        spec: Of the crops, with ``policy=None``.
        batch_size: Images per call.
        device: Where crops and vectors lie.
    """
    plan = EpochPlan(
        seed=0, epoch=0, num_samples=len(dataset), global_batch_size=batch_size, training=False
    )
    loader = build_loader(dataset, plan, spec=spec, stop_epoch=1, device=device)
    vectors, labels = [], []
    with closing(loader):
        for batch in loader:
            vectors.append(encode(batch.crops).float())
            labels.append(batch.label.clone())
    return FeatureSet(torch.cat(vectors), torch.cat(labels))
