"""Images of a report: a map of their features, nearest neighbors, the hardest ones, classes."""

import io
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from fastmoco.data.beton_format import printable
from fastmoco.data.dataset import Dataset, open_dataset
from fastmoco.device import resolve_device
from fastmoco.draws.streams import INT64, hashed_order
from fastmoco.errors import UsageError, one_line
from fastmoco.evaluate.classes import ClassTable
from fastmoco.evaluate.features import FeatureRequest, FeatureSet, extract_features
from fastmoco.evaluate.frozen_encoder import encoder_of
from fastmoco.evaluate.knn import knn_votes
from fastmoco.evaluate.nearest import nearest
from fastmoco.labeling.pretext_scores import build_scorer, rank_by_scores
from fastmoco.labeling.settings import RankBy, RequestConfig
from fastmoco.runs.checkpoint import Checkpoint

SIDE = 48
"""Side of a thumbnail, pixels."""
BATCH = 64
QUERIES, NEIGHBORS, HARDEST = 8, 8, 16
KNN_K, KNN_TEMPERATURE = 20, 0.1


@dataclass(slots=True)
class Gallery:
    """Images of a dataset as an encoder sees them; index i is the i-th thumbnail."""

    source: str
    """The dataset."""
    num_images: int
    """Images of the dataset; the gallery has some of them."""
    sprite: bytes
    """JPEG with all thumbnails, `columns` in a row."""
    columns: int
    captions: list[str]
    """Name and class of each image."""
    labels: list[int]
    class_names: list[str]
    positions: list[tuple[float, float]]
    """Place on the map, 0 to 1: the first two principal components of the features."""
    explained: float
    """Percent of the features' variance that the map shows."""
    neighbors: list[tuple[int, list[tuple[int, float]]]]
    """Some images, each with its nearest ones and their cosine similarities."""
    hardest: list[tuple[int, float]] = field(default_factory=list)
    """Images with the highest contrastive loss, and that loss in nats."""
    hardest_missing: str = ""
    """Why there are none."""
    classes: list[dict[str, Any]] = field(default_factory=list)
    """Name, images and top-1 of each class; none without labels."""


def make_gallery(checkpoint: Checkpoint, data: Path, *, count: int, device_name: str) -> Gallery:
    """Compute a gallery.

    Args:
        checkpoint: Checkpoint of a run.
        data: Dataset of the images.
        count: Number of images, chosen by a hash of their numbers.
        device_name: auto, cpu, cuda or cuda:N.

    Raises:
        UsageError: If the dataset or the checkpoint cannot be used.
        ValueError: If one is damaged.
        OSError: If one cannot be read.
    """
    encoder = encoder_of(checkpoint).to(resolve_device(device_name))
    with open_dataset(data) as dataset:
        if len(dataset) < 3:
            raise UsageError(f"{data} has {len(dataset)} images; a map needs 3 or more")
        ids = np.sort(hashed_order(len(dataset))[:count])
        request = FeatureRequest(
            features="backbone", batch_size=min(BATCH, len(ids)), sample_ids=ids
        )
        found = extract_features(encoder, dataset, request)
        found = FeatureSet(found.vectors.cpu(), found.labels.cpu())
        positions, explained = principal_components(found.vectors)
        sprite, columns = _sprite(dataset, ids)
        gallery = Gallery(
            source=str(data),
            num_images=len(dataset),
            sprite=sprite,
            columns=columns,
            captions=[_caption(dataset, int(sample)) for sample in ids],
            labels=found.labels.tolist(),
            class_names=[one_line(name) for name in dataset.classes],
            positions=positions,
            explained=explained,
            neighbors=_neighbors(found.vectors),
            classes=_classes(dataset, found),
        )
        try:
            gallery.hardest = _hardest(checkpoint, dataset, ids, device_name)
        except UsageError:  # another mechanism or pretext task, or an imported encoder
            gallery.hardest_missing = "the checkpoint has no key encoder and queue of images"
    return gallery


def principal_components(vectors: Tensor) -> tuple[list[tuple[float, float]], float]:
    """Project unit-norm features on their first two principal components.

    Args:
        vectors: ``(n, D)`` float32, n > 2.

    Returns:
        Two coordinates of each row, scaled to 0..1, and the percentage of the variance they hold.
    """
    rows = F.normalize(vectors.double(), dim=1)
    rows = rows - rows.mean(0)
    left, values, _ = torch.linalg.svd(rows, full_matrices=False)
    places = left[:, :2] * values[:2]
    low, high = places.amin(0), places.amax(0)
    scaled = (places - low) / (high - low).clamp_min(1e-12)
    variance = values.square()
    explained = 100 * (variance[:2].sum() / variance.sum().clamp_min(1e-30)).item()
    return [(x, y) for x, y in scaled.tolist()], explained


def _sprite(dataset: Dataset, ids: INT64) -> tuple[bytes, int]:
    columns = int(np.ceil(np.sqrt(len(ids))))
    rows = -(-len(ids) // columns)
    sheet = Image.new("RGB", (columns * SIDE, rows * SIDE))
    for place, sample in enumerate(ids.tolist()):
        pixels: NDArray[np.uint8] = dataset.decode(sample)
        thumbnail = ImageOps.fit(Image.fromarray(pixels), (SIDE, SIDE))
        sheet.paste(thumbnail, (place % columns * SIDE, place // columns * SIDE))
    packed = io.BytesIO()
    sheet.save(packed, format="JPEG", quality=85)
    return packed.getvalue(), columns


def _caption(dataset: Dataset, sample: int) -> str:
    name, label = printable(dataset.name(sample)) or f"image {sample}", int(dataset.labels[sample])
    known = dataset.classes[label] if 0 <= label < len(dataset.classes) else label
    return one_line(name if label < 0 else f"{name} ({known})")


def _neighbors(vectors: Tensor) -> list[tuple[int, list[tuple[int, float]]]]:
    k = min(NEIGHBORS, len(vectors) - 1)
    parts = list(nearest(vectors, vectors, k, leave_one_out=True))
    similarity, rows = (torch.cat(found) for found in zip(*parts, strict=True))
    queries = hashed_order(len(vectors))[:QUERIES].tolist()
    return [
        (query, list(zip(rows[query].tolist(), similarity[query].tolist(), strict=True)))
        for query in queries
    ]


def _classes(dataset: Dataset, found: FeatureSet) -> list[dict[str, Any]]:
    """Accuracy of each class by kNN, each image classified by the others of the gallery."""
    labels = found.labels
    if labels.min() < 0 or labels.min() == labels.max():
        return []
    votes = knn_votes(
        found,
        found.vectors,
        k=min(KNN_K, len(labels) - 1),
        temperature=KNN_TEMPERATURE,
        leave_one_out=True,
    )
    count = int(labels.max()) + 1
    names = [*dataset.classes, *map(str, range(len(dataset.classes), count))][:count]
    table = ClassTable.count([one_line(name) for name in names], labels, votes.argmax(1))
    rows: list[dict[str, Any]] = [row for row in table.to_json()["classes"] if row["images"]]
    return sorted(rows, key=lambda row: row["top1"])


def _hardest(
    checkpoint: Checkpoint, dataset: Dataset, ids: INT64, device_name: str
) -> list[tuple[int, float]]:
    """Places of the images with the highest loss against the checkpoint's queue.

    Raises:
        UsageError: If the checkpoint has no key encoder and no queue.
    """
    cfg = RequestConfig(
        views=1,
        rank_by=RankBy.loss,
        device=device_name,
        global_batch_size=min(BATCH, len(ids)),
    )
    scorer = build_scorer(checkpoint, cfg)
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / "scores.npz"
        ranking = rank_by_scores(scorer, dataset, ids, state=state, recipe="report")
    places = np.searchsorted(ids, ranking.ids[:HARDEST]).tolist()
    return list(zip(places, ranking.columns["loss"][:HARDEST].tolist(), strict=True))
