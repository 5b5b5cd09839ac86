"""Features of a frozen encoder over a dataset, from center crops.

They are computed once: `dataset_features` keeps them in the run folder (`feature_cache`).
"""

import hashlib
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor, nn

from fastmoco.data.dataset import Dataset
from fastmoco.data.progress import show_progress
from fastmoco.device import resolve_device
from fastmoco.draws.streams import INT64
from fastmoco.errors import UsageError
from fastmoco.evaluate.feature_cache import CachedRows, cached_rows, folder_of_run
from fastmoco.evaluate.settings import Features, FeaturesConfig
from fastmoco.moco.build import build_query_encoder
from fastmoco.moco.encoder import Encoder
from fastmoco.moco.settings import EncoderConfig, Precision
from fastmoco.optim.precision import autocast, dtype_of, resolve_precision
from fastmoco.out_of_memory import explained
from fastmoco.pipelines.augment import normalized
from fastmoco.pipelines.build import AUTO, build_loader
from fastmoco.pipelines.contract import EpochPlan, LoaderSpec
from fastmoco.pipelines.settings import PipelineConfig
from fastmoco.runs.checkpoint import (
    Checkpoint,
    check_module,
    load_checkpoint,
    under_prefix,
)
from fastmoco.runs.encoder_facts import encoder_facts, saved_config
from fastmoco.weights.settings import RANDOM
from fastmoco.weights.start import read_start

PIXELS = "pixels"
"""Beside `Features`: the normalized crop itself, the baseline of every encoder."""
MAX_PIXEL_SIDE, SMALL_PIXEL_SIDE = 64, 32
"""Baselines of crops above 64 pixels use 32: 224 x 224 crops have 150,528 numbers an image."""


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
    torch.manual_seed(cfg.seed)
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


@dataclass(slots=True)
class FeatureSet:
    """Features of a dataset, in file order: row i is sample i."""

    vectors: Tensor
    """``(n, D)`` float32, not normalized; on the device, or a memory-mapped file on the host."""
    labels: Tensor
    """``(n,)`` int64; -1 where unlabeled. On the device of the vectors."""
    reused: bool = False
    """Whether they were found on disk."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FeatureRequest:
    """Which vectors of which images to compute, and how."""

    features: str
    """``backbone``, ``embedding`` or ``pixels``."""
    batch_size: int
    """Images per forward pass."""
    precision: Precision = Precision.float32
    """Number format of the encoder, by autocast."""
    loader: str = AUTO
    """A name that `build_loader` takes."""
    num_threads: int = 0
    """Threads that decode; 0: one per core."""
    sample_ids: INT64 | None = None
    """Only these images, in this order; None: all, in file order."""


def request_of(cfg: FeaturesConfig, features: str | None = None) -> FeatureRequest:
    """The request of a configuration; `features`, if given, replaces its kind of vectors."""
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
    """Encode every image of a request, none dropped, by an encoder in evaluation mode.

    Yields:
        ``(N, D)`` float32 on the encoder's device, in order; the last batch may be smaller.
    """
    size = encoder.eval_size
    if request.features == PIXELS and size > MAX_PIXEL_SIDE:
        size = SMALL_PIXEL_SIDE
    spec = LoaderSpec(
        policy=None,
        view_size=size,
        center_crop=encoder.center_crop,
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
    loader = build_loader(
        dataset, plan, spec=spec, stop_epoch=1, device=device, name=request.loader
    )
    with closing(loader):
        for batch in loader:
            with (
                autocast(device, dtype_of(request.precision, device)),
                explained(lambda: _explain_batch(request.batch_size, size, device)),
            ):
                vectors = encoder.encode_crops(batch.crops, request.features)
            yield vectors.float()


def _explain_batch(count: int, size: int, device: torch.device) -> str:
    return (
        f"features of {count} images of {size} pixels at once on {device}; set device=cpu, or for "
        f"knn and embed global_batch_size={max(1, count // 4)}; the features stay the same"
    )


def extract_features(
    encoder: FrozenEncoder, dataset: Dataset, request: FeatureRequest
) -> FeatureSet:
    """Collect the vectors of `feature_batches` in one tensor on the device, with their labels."""
    labels = torch.tensor(dataset.labels)
    if request.sample_ids is not None:
        labels = labels[torch.from_numpy(request.sample_ids)]
    return _gathered(feature_batches(encoder, dataset, request), labels)


def _gathered(batches: Iterator[Tensor], labels: Tensor) -> FeatureSet:
    """Copy all rows into one tensor: a list of batches would need the memory twice."""
    first, done = next(batches), 0
    vectors = first.new_empty(len(labels), first.shape[1])
    for batch in chain([first], batches):
        vectors[done : done + len(batch)] = batch
        done += len(batch)
    assert done == len(labels)
    return FeatureSet(vectors, labels.to(vectors.device))


def _all_batches(
    encoder: FrozenEncoder, dataset: Dataset, request: FeatureRequest
) -> Iterator[Tensor]:
    """Yield the batches of all images, with a progress bar."""
    done = 0
    with show_progress(len(dataset)) as advance:
        for batch in feature_batches(encoder, dataset, request):
            stop = done + len(batch)
            advance(len(batch), int(dataset.sizes[done:stop].sum()))
            done = stop
            yield batch


def features_folder(run: Path) -> Path:
    """Folder for the features of a run, of one of its checkpoint files, or of a file of weights."""
    return folder_of_run(run) / "features"


def dataset_features(
    encoder: FrozenEncoder, dataset: Dataset, request: FeatureRequest, folder: Path | None
) -> FeatureSet:
    """Compute the features of a dataset once: keep them in a folder and read them from there.

    They are reused if encoder, dataset, crop, precision and kind of device are equal. Raw pixels
    are made again each time: that is as quick as reading them, and they are large.

    Args:
        encoder: The encoder on its device.
        dataset: An open dataset.
        request: Which vectors; of all images.
        folder: `features_folder` of the run; None: keep nothing, all vectors stay on the device.

    Returns:
        Vectors that are memory-mapped if they are kept: 1.28 million rows of 2,048 (10.5 GB) take
        only as much memory as the system has free.
    """
    labels = torch.tensor(dataset.labels)
    if rows := _cached(encoder, dataset, request, folder):
        return FeatureSet(rows.vectors, labels, rows.reused)
    return _gathered(_all_batches(encoder, dataset, request), labels)


def feature_rows(
    encoder: FrozenEncoder, dataset: Dataset, request: FeatureRequest, folder: Path | None
) -> Iterator[Tensor]:
    """Yield the rows of `dataset_features`, with its arguments: never all in memory.

    Yields:
        ``(N, D)`` float32 on the host, in file order; the last batch may be smaller.
    """
    if rows := _cached(encoder, dataset, request, folder):
        yield from torch.split(rows.vectors, request.batch_size)
    else:
        for batch in _all_batches(encoder, dataset, request):
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
        "precision": resolve_precision(request.precision, encoder.mean.device).value,
        "device": encoder.mean.device.type,
    }
    batches = partial(_all_batches, encoder, dataset, request)
    return cached_rows(folder, facts, len(dataset), batches)
