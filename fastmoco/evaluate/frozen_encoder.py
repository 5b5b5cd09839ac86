"""A pretrained encoder, frozen, with its normalization and crop."""

import hashlib
from pathlib import Path

import torch
from torch import Tensor, nn

from fastmoco.device import resolve_device
from fastmoco.errors import UsageError
from fastmoco.evaluate.settings import Features, FeaturesConfig
from fastmoco.moco.build import build_query_encoder
from fastmoco.moco.encoder import Encoder
from fastmoco.moco.settings import EncoderConfig
from fastmoco.pipelines.augment import normalized
from fastmoco.pipelines.settings import PipelineConfig
from fastmoco.runs.checkpoint import Checkpoint, check_module, load_checkpoint, under_prefix
from fastmoco.runs.encoder_facts import encoder_facts, saved_config
from fastmoco.weights.settings import RANDOM
from fastmoco.weights.start import read_start

PIXELS = "pixels"
"""Beside `Features`: the normalized crop itself, the baseline of every encoder."""


class FrozenEncoder(nn.Module):
    """A pretrained query encoder with the normalization and the crop that it was trained for.

    Attributes:
        backbone: The ResNet; `backbone.feature_dim` is the length of its feature.
        head: The projection head.
        mean: Buffer ``(3,)``, channel mean in 0..1.
        std: Buffer ``(3,)``, channel standard deviation in 0..1.
        view_size: Side of the views that it was trained on, pixels.
        eval_size: Side of the crops that evaluation gives it, pixels.
        center_crop: Side of the central crop, as a fraction of the image's short side.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self, encoder: Encoder, pipeline: PipelineConfig, *, mean: list[float], std: list[float]
    ) -> None:
        """Put a trained encoder, in place, into evaluation mode without gradients.

        Copy it first if it trains further. `pipeline` has the sizes for training and evaluation.
        """
        super().__init__()
        self.backbone, self.head = encoder.backbone, encoder.head
        self.register_buffer("mean", torch.tensor(mean))
        self.register_buffer("std", torch.tensor(std))
        self.view_size = pipeline.view_size
        self.eval_size = pipeline.eval_size or pipeline.view_size
        self.center_crop = pipeline.center_crop
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Backbone features ``(N, D)`` of RGB images ``(N, 3, H, W)``, uint8 or float in 0..1."""
        scaled = images / 255 if images.dtype == torch.uint8 else images
        normal = (scaled - self.mean[:, None, None]) / self.std[:, None, None]
        features: Tensor = self.backbone(normal)
        return features

    def encode_crops(self, crops: Tensor, features: str) -> Tensor:
        """Encode evaluation crops ``(N, 1, H, W, 3)``, uint8 RGB, into vectors ``(N, D)``.

        `features` is ``backbone``, ``embedding`` (after the projection head) or ``pixels``.
        """
        return self.encode(normalized(crops, self.mean, self.std, torch.float32), features)

    def encode(self, images: Tensor, features: str) -> Tensor:
        """Encode normalized images ``(N, 3, H, W)``; otherwise as `encode_crops`."""
        if features == PIXELS:
            return images.flatten(1)
        vectors: Tensor = self.backbone(images)
        return self.head(vectors) if features == Features.embedding else vectors

    def fingerprint(self) -> str:
        """Hex SHA-256 of all that decides the features: layers, weights, statistics, crop."""
        digest = hashlib.sha256(f"{self}{self.eval_size} {self.center_crop!r}".encode())
        for name, tensor in self.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()


class NoHead(nn.Module):
    """Placeholder for the projection head of an encoder that has none."""

    def forward(self, _: Tensor) -> Tensor:
        """Raise UsageError, always."""
        raise UsageError("this encoder has no projection head; set features=backbone")


def load_encoder(
    path: str | Path, *, untrained: bool = False, weights: Path | None = None
) -> FrozenEncoder:
    """Load the query encoder of a run, or one that was exported or imported.

    Args:
        path: A run folder, one of its checkpoint files, a folder of `fastmoco import`, or a file of
            `fastmoco export to=safetensors`.
        untrained: Return the encoder with the random weights of its seed.
        weights: Other weights for its backbone, with their normalization (`read_start`); random is
            `untrained`.

    Raises:
        CheckpointError: If there is no checkpoint, or it is damaged.
        UsageError: If other weights do not fit; and other errors of `read_start`.
    """
    return encoder_of(load_checkpoint(Path(path)), untrained=untrained, weights=weights)


def encoder_of(
    checkpoint: Checkpoint, *, untrained: bool = False, weights: Path | None = None
) -> FrozenEncoder:
    """As `load_encoder`, of a checkpoint that was read."""
    cfg = saved_config(checkpoint, EncoderConfig)
    state = under_prefix("model.query_encoder", checkpoint.tensors)
    with torch.device("meta"):  # a file may name an encoder that no memory holds
        check_module(_built(cfg, checkpoint), state, checkpoint)
    with torch.random.fork_rng(devices=[]):  # a program's own draws do not change
        torch.default_generator.manual_seed(cfg.seed)
        encoder = _built(cfg, checkpoint)
    _, mean, std = encoder_facts(checkpoint)
    if weights is not None and weights != RANDOM:
        start = read_start(weights, encoder, cfg, settable=False)
        encoder.load_state_dict(start.state)
        mean, std = start.mean, start.std
    elif weights is None and not untrained:
        encoder.load_state_dict(state)
    return FrozenEncoder(encoder, cfg.pipeline, mean=mean, std=std)


def _built(cfg: EncoderConfig, checkpoint: Checkpoint) -> Encoder:
    try:
        encoder = build_query_encoder(cfg.model, cfg.moco, view_size=cfg.pipeline.view_size)
    except UsageError as error:
        raise UsageError(f"{checkpoint.path}: {error}") from error
    if not checkpoint.facts.get("has_head", True):
        encoder.head = NoHead()
    return encoder


def open_encoder(
    run: Path | Checkpoint,
    cfg: FeaturesConfig,
    *,
    untrained: bool = False,
    weights: Path | None = None,
) -> FrozenEncoder:
    """Load an encoder (`load_encoder`) onto its device, with the crops of the options.

    Raises:
        CheckpointError: If there is no checkpoint, or it is damaged.
    """
    checkpoint = run if isinstance(run, Checkpoint) else load_checkpoint(run)
    encoder = encoder_of(checkpoint, untrained=untrained, weights=weights)
    encoder = encoder.to(resolve_device(cfg.device))
    encoder.eval_size = cfg.pipeline.eval_size or encoder.eval_size
    if cfg.pipeline.center_crop is not None:
        encoder.center_crop = cfg.pipeline.center_crop
    return encoder
