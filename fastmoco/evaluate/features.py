"""Features of a frozen encoder over a dataset, from center crops.

Each is computed once: `dataset_features` keeps them in the run folder (`feature_cache`).
"""

import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from fastmoco.configuration import config_from_dict
from fastmoco.data.dataset import Dataset
from fastmoco.data.progress import show_progress
from fastmoco.device import resolve_device
from fastmoco.draws.streams import INT64
from fastmoco.errors import UsageError
from fastmoco.evaluate.feature_cache import CachedRows, cached_rows
from fastmoco.evaluate.settings import Features, FeaturesConfig
from fastmoco.moco.build import build_query_encoder
from fastmoco.moco.encoder import Encoder
from fastmoco.moco.settings import EncoderConfig, Precision
from fastmoco.optim.precision import AUTOCAST_DTYPES
from fastmoco.pipelines.augment import normalized
from fastmoco.pipelines.build import AUTO, build_loader
from fastmoco.pipelines.contract import EpochPlan, LoaderSpec
from fastmoco.pipelines.settings import PipelineConfig
from fastmoco.runs.checkpoint import load_checkpoint, restore_module, under_prefix

PIXELS = "pixels"
"""Beside `Features`: the normalized crop itself, the baseline of every encoder."""
MAX_PIXEL_SIDE, SMALL_PIXEL_SIDE = 64, 32
"""Raw pixels of larger crops are those of a small one: 150,528 numbers an image serve nobody."""


class FrozenEncoder(nn.Module):
    """A pretrained query encoder with the normalization and the crop that it was trained for.

    Attributes:
        backbone: The ResNet; `backbone.feature_dim` is the length of its feature.
        head: The projection head.
        mean: Buffer ``(3,)``, channel mean in 0..1.
        std: Buffer ``(3,)``, channel standard deviation in 0..1.
        view_size: Side of the views that it was trained on, pixels.
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
        """Vectors ``(N, D)`` of evaluation crops, ``(N, 1, H, W, 3)`` uint8.

        Args:
            crops: One of each image.
            features: ``backbone``, ``embedding`` (after the projection head), or ``pixels``.
        """
        return self.encode(normalized(crops, self.mean, self.std, torch.float32), features)

    def encode(self, images: Tensor, features: str) -> Tensor:
        """As `encode_crops`, of normalized images ``(N, 3, H, W)``."""
        if features == PIXELS:
            return images.flatten(1)
        vectors: Tensor = self.backbone(images)
        return self.head(vectors) if features == Features.embedding else vectors

    def fingerprint(self) -> str:
        """Hex SHA-256 of all that decides its features: layers, weights, statistics, crop."""
        digest = hashlib.sha256(f"{self}{self.eval_size} {self.center_crop!r}".encode())
        for name, tensor in self.state_dict().items():
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()


class NoHead(nn.Module):
    """Stands where a projection head would: this encoder came without one."""

    def forward(self, _: Tensor) -> Tensor:
        """Refuse.

        Raises:
            UsageError: Always.
        """
        raise UsageError("this encoder has no projection head; set features=backbone")


def load_encoder(path: str | Path, *, untrained: bool = False) -> FrozenEncoder:
    """Load the query encoder of a run, or one that was exported or imported.

    Args:
        path: A run folder, one of its checkpoint files, a folder of `fastmoco import`, or a file of
            `fastmoco export to=safetensors`.
        untrained: The same encoder as it was before the first step.

    Raises:
        CheckpointError: If there is no checkpoint, or it is damaged.
    """
    checkpoint = load_checkpoint(Path(path))
    cfg = config_from_dict(EncoderConfig, checkpoint.facts["config"])
    torch.manual_seed(cfg.seed)
    encoder = build_query_encoder(cfg.model, cfg.moco, view_size=cfg.pipeline.view_size)
    if not checkpoint.facts.get("has_head", True):
        encoder.head = NoHead()
    if not untrained:
        restore_module(encoder, under_prefix("model.query_encoder", checkpoint.tensors), checkpoint)
    facts = checkpoint.facts
    return FrozenEncoder(
        encoder, cfg.pipeline, mean=facts["channel_mean"], std=facts["channel_std"]
    )


def open_encoder(run: Path, cfg: FeaturesConfig, *, untrained: bool = False) -> FrozenEncoder:
    """As `load_encoder`, on the device, with the crops that the options ask for."""
    encoder = load_encoder(run, untrained=untrained).to(resolve_device(cfg.device))
    encoder.eval_size = cfg.pipeline.eval_size or encoder.eval_size
    if cfg.pipeline.center_crop is not None:
        encoder.center_crop = cfg.pipeline.center_crop
    return encoder


@dataclass(slots=True)
class FeatureSet:
    """Features of a whole dataset, in file order: row i is sample i."""

    vectors: Tensor
    """``(n, D)`` float32, not normalized; on the device, or a map of a file in host memory."""
    labels: Tensor
    """``(n,)`` int64, beside the vectors; -1 where unlabeled."""
    reused: bool = False
    """Whether they were found on disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureRequest:
    """Which vectors of images, and how they are made."""

    features: str
    """``backbone``, ``embedding`` or ``pixels``."""
    batch_size: int
    """Images per forward pass."""
    precision: Precision = Precision.float32
    """Of the encoder, by autocast."""
    loader: str = AUTO
    """As `build_loader` names them."""
    num_threads: int = 0
    """As in `LoaderSpec`."""
    sample_ids: INT64 | None = None
    """Only these, in this order; None: all, in file order."""


def request_of(cfg: FeaturesConfig, features: str | None = None) -> FeatureRequest:
    """What a configuration asks for, or another kind of vectors made likewise."""
    return FeatureRequest(
        features=features or cfg.features.value,
        batch_size=cfg.global_batch_size,
        precision=cfg.precision,
        loader=cfg.pipeline.name,
        num_threads=cfg.pipeline.num_threads,
    )


@torch.no_grad()
def feature_batches(
    encoder: FrozenEncoder, dataset: Dataset, request: FeatureRequest
) -> Iterator[Tensor]:
    """Encode every image of a dataset; no sample is dropped.

    Args:
        encoder: On its device, in evaluation mode.
        dataset: Open.
        request: Which vectors.

    Yields:
        ``(N, D)`` float32 on the encoder's device, in order; the last batch may be smaller.
    """
    size = encoder.eval_size
    if request.features == PIXELS and size > MAX_PIXEL_SIDE:
        size = SMALL_PIXEL_SIDE
    spec = LoaderSpec(
        view_size=size,
        center_crop=encoder.center_crop,
        policy=None,
        num_threads=request.num_threads,
    )
    ids, device = request.sample_ids, encoder.mean.device
    plan = EpochPlan(
        seed=0,
        epoch=0,
        num_samples=len(dataset) if ids is None else len(ids),
        global_batch_size=request.batch_size,
        training=False,
        sample_ids=ids,
    )
    dtype = AUTOCAST_DTYPES[request.precision]
    loader = build_loader(
        dataset, plan, spec=spec, stop_epoch=1, device=device, name=request.loader
    )
    with closing(loader):
        for batch in loader:
            with torch.autocast(device.type, dtype, enabled=dtype is not torch.float32):
                vectors = encoder.encode_crops(batch.crops, request.features)
            yield vectors.float()


def extract_features(
    encoder: FrozenEncoder, dataset: Dataset, request: FeatureRequest
) -> FeatureSet:
    """The vectors of `feature_batches` in one tensor on the device, with their labels."""
    labels = torch.tensor(dataset.labels)
    if request.sample_ids is not None:
        labels = labels[torch.from_numpy(request.sample_ids)]
    vectors = _gathered(feature_batches(encoder, dataset, request), len(labels))
    return FeatureSet(vectors, labels.to(vectors.device))


def _gathered(batches: Iterator[Tensor], count: int) -> Tensor:
    """All rows; allocated once, where a list of batches would need the memory twice."""
    first = next(batches)
    vectors = first.new_empty(count, first.shape[1])
    vectors[: len(first)] = first
    done = len(first)
    for batch in batches:
        vectors[done : done + len(batch)] = batch
        done += len(batch)
    assert done == count
    return vectors


def _shown(batches: Iterator[Tensor], dataset: Dataset) -> Iterator[Tensor]:
    """The batches of all images, with a progress bar."""
    done = 0
    with show_progress(len(dataset)) as advance:
        for batch in batches:
            stop = done + len(batch)
            advance(len(batch), int(dataset.sizes[done:stop].sum()))
            done = stop
            yield batch


def features_folder(run: Path) -> Path:
    """Where the features of a run, or of one of its checkpoint files, are kept."""
    if run.is_dir():
        return run / "features"
    folder = run.parent
    return (folder.parent if folder.name == "checkpoints" else folder) / "features"


def dataset_features(
    encoder: FrozenEncoder, dataset: Dataset, request: FeatureRequest, folder: Path | None
) -> FeatureSet:
    """Features of a dataset, computed once: kept in a folder, and taken from there.

    Found again are those of an equal encoder, dataset, crop, precision and kind of device. Raw
    pixels are made anew each time: that is as quick as reading them, and they are large.

    Args:
        encoder: On its device.
        dataset: Open.
        request: Which vectors; of all images.
        folder: `features_folder` of the run; None: keep nothing, everything stays on the device.

    Returns:
        A map of the file in host memory where there is one: 1.28 million rows of 2,048 (10.5 GB)
        need no more memory than the system likes to give.
    """
    labels = torch.tensor(dataset.labels)
    rows = _cached(encoder, dataset, request, folder)
    if rows is not None:
        return FeatureSet(rows.vectors, labels, rows.reused)
    batches = _shown(feature_batches(encoder, dataset, request), dataset)
    vectors = _gathered(batches, len(dataset))
    return FeatureSet(vectors, labels.to(vectors.device))


def feature_rows(
    encoder: FrozenEncoder, dataset: Dataset, request: FeatureRequest, folder: Path | None
) -> Iterator[Tensor]:
    """The rows of `dataset_features`, a batch at a time: never all in memory.

    Args:
        encoder: As of `dataset_features`; likewise the others.
        dataset: Open.
        request: Which vectors; of all images.
        folder: Of the cache, or None.

    Yields:
        ``(N, D)`` float32 on the host, in file order; the last batch may be smaller.
    """
    rows = _cached(encoder, dataset, request, folder)
    if rows is not None:
        for start in range(0, len(dataset), request.batch_size):
            yield rows.vectors[start : start + request.batch_size]
        return
    for batch in _shown(feature_batches(encoder, dataset, request), dataset):
        yield batch.cpu()


def _cached(
    encoder: FrozenEncoder, dataset: Dataset, request: FeatureRequest, folder: Path | None
) -> CachedRows | None:
    assert request.sample_ids is None
    if folder is None or request.features == PIXELS:
        return None
    facts = {
        "encoder": encoder.fingerprint(),
        "dataset": dataset.fingerprint,
        "features": request.features,
        "precision": request.precision.value,
        "device": encoder.mean.device.type,
    }

    def batches() -> Iterator[Tensor]:
        return _shown(feature_batches(encoder, dataset, request), dataset)

    return cached_rows(folder, facts, len(dataset), batches)
