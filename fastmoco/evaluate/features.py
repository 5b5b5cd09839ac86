"""Features of a frozen encoder over a dataset, from center crops.

They are computed once: `dataset_features` keeps them in the run folder (`feature_cache`).
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastmoco.data.dataset import Dataset
from fastmoco.data.progress import show_progress
from fastmoco.draws.streams import INT64
from fastmoco.evaluate.feature_cache import CachedRows, cached_rows, folder_of_run
from fastmoco.evaluate.frozen_encoder import PIXELS, FrozenEncoder
from fastmoco.evaluate.settings import FeaturesConfig
from fastmoco.moco.collectives import gather_on_first
from fastmoco.moco.settings import Precision
from fastmoco.optim.precision import autocast, dtype_of, resolve_precision
from fastmoco.out_of_memory import explained
from fastmoco.pipelines.build import AUTO, build_loader
from fastmoco.pipelines.contract import EpochPlan, LoaderSpec
from fastmoco.ranks import Ranks

MAX_PIXEL_SIDE, SMALL_PIXEL_SIDE = 64, 32
"""Baselines of crops above 64 pixels use 32: 224 x 224 crops have 150,528 numbers an image."""


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


def shared_features(
    encoder: FrozenEncoder, dataset: Dataset, request: FeatureRequest, ranks: Ranks
) -> FeatureSet | None:
    """`extract_features` by all ranks, each a contiguous part of the images.

    Returns:
        All features on the first rank, None on the others.
    """
    ids = np.arange(len(dataset)) if request.sample_ids is None else request.sample_ids
    if len(ids) < ranks.world_size:  # too few for each to have one
        return extract_features(encoder, dataset, request) if ranks.is_first else None
    if not ranks.several:
        return extract_features(encoder, dataset, request)
    parts = np.array_split(ids, ranks.world_size)  # the first ones may have one more
    own = extract_features(encoder, dataset, replace(request, sample_ids=parts[ranks.rank]))
    padded = own.vectors.new_zeros(len(parts[0]), own.vectors.shape[1])
    padded[: len(own.vectors)] = own.vectors
    gathered = gather_on_first(padded, ranks)
    if gathered is None:
        return None
    rows = [vectors[: len(part)] for vectors, part in zip(gathered, parts, strict=True)]
    labels = torch.from_numpy(dataset.labels[ids]).to(padded.device)
    return FeatureSet(torch.cat(rows), labels)


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
