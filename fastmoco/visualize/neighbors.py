"""`fastmoco neighbors`: the most similar images by the encoder's features, as a contact sheet."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastmoco.data.beton_format import printable
from fastmoco.data.dataset import Dataset, open_dataset
from fastmoco.draws.streams import hashed_order
from fastmoco.errors import UsageError
from fastmoco.evaluate.features import extract_features, feature_rows, features_folder, request_of
from fastmoco.evaluate.frozen_encoder import open_encoder
from fastmoco.visualize.pictures import Cell, draw_contact_sheet
from fastmoco.visualize.settings import NeighborsConfig

MAX_QUERIES, MAX_NEIGHBORS = 64, 32
"""Most rows and columns of a picture."""
_SAME, _OTHER = "tab:green", "tab:red"


@dataclass(slots=True)
class Neighbor:
    """An image and its similarity to a query."""

    sample_id: int
    path: str
    label: int
    """-1 where unlabeled."""
    similarity: float
    """Cosine similarity, -1 to 1; 1 for the query itself."""


@dataclass(slots=True)
class Neighborhoods:
    """Queries and their nearest neighbors."""

    out: str
    features: str
    num_images: int
    """Number of images searched, without the query."""
    queries: list[Neighbor]
    neighbors: list[list[Neighbor]]
    """Neighbors of each query, the most similar first."""

    def to_json(self) -> dict[str, Any]:
        """The neighborhoods as a JSON object."""
        return asdict(self)

    def to_text(self) -> str:
        """The file and its contents in one line."""
        count = len(self.neighbors[0])
        return f"{self.out}: {len(self.queries)} images with {count} neighbors each"


def write_neighbors(run: Path, cfg: NeighborsConfig) -> Neighborhoods:
    """Find the nearest images of some images of ``data.test`` among all others, and draw them.

    Args:
        run: A run folder, a checkpoint, an imported folder or an exported file.
        cfg: Options, from `load_config`.

    Raises:
        UsageError: If an option is missing or out of range.
        ValueError: If the checkpoint or the dataset is damaged.
        OSError: If a file cannot be read or written.
    """
    if cfg.data.test is None:
        raise UsageError("data.test is not set; add data.test=FILE.beton")
    if cfg.out.suffix != ".png":
        raise UsageError(f"out={cfg.out} must end in .png")
    encoder = open_encoder(run, cfg)
    with open_dataset(cfg.data.test) as dataset:
        queries = _queries(cfg, dataset)
        request = request_of(cfg)
        rows = feature_rows(encoder, dataset, request, features_folder(run) if cfg.cache else None)
        ids, size = np.array(queries, np.int64), min(request.batch_size, len(queries))
        chosen = replace(request, batch_size=size, sample_ids=ids)
        vectors = extract_features(encoder, dataset, chosen).vectors.cpu()
        similarity, nearest = nearest_others(rows, vectors, queries, min(cfg.k, len(dataset) - 1))
        found = Neighborhoods(
            out=str(cfg.out),
            features=cfg.features.value,
            num_images=len(dataset) - 1,
            queries=[_describe(dataset, query, 1.0) for query in queries],
            neighbors=[
                [_describe(dataset, *pair) for pair in zip(*row, strict=True)]
                for row in zip(nearest.tolist(), similarity.tolist(), strict=True)
            ],
        )
        headers = ["query", "nearest first", *[""] * (nearest.shape[1] - 1)]
        draw_contact_sheet(cfg.out, _cells(dataset, found), headers=headers)
    return found


def _queries(cfg: NeighborsConfig, dataset: Dataset) -> list[int]:
    """Choose the ids of the queries: ``cfg.queries``, or the first of a fixed hashed order."""
    if len(dataset) < 2:
        raise UsageError(f"{dataset.path} has 1 image, and so no neighbors; give 2 images or more")
    if cfg.k > MAX_NEIGHBORS:
        raise UsageError(f"k must be 1 to {MAX_NEIGHBORS}, got {cfg.k}")
    if wrong := [query for query in cfg.queries if not 0 <= query < len(dataset)]:
        last = len(dataset) - 1
        raise UsageError(f"queries must be ids of {dataset.path}, 0 to {last}, got {wrong[0]}")
    if len(cfg.queries) > MAX_QUERIES:
        raise UsageError(f"queries must be at most {MAX_QUERIES} ids, got {len(cfg.queries)}")
    if cfg.queries:
        return list(cfg.queries)
    if cfg.count > MAX_QUERIES:
        raise UsageError(f"count must be 1 to {MAX_QUERIES}, got {cfg.count}")
    return [int(sample) for sample in hashed_order(len(dataset))[: cfg.count]]


@torch.no_grad()
def nearest_others(
    rows: Iterator[Tensor], vectors: Tensor, queries: list[int], k: int
) -> tuple[Tensor, Tensor]:
    """Find the k rows that are most similar to each query by cosine, exactly, without itself.

    Only one batch of rows is in memory at a time.

    Args:
        rows: ``(N, D)`` float32 on the host, all samples in order; more than k in total.
        vectors: Features of the queries, ``(q, D)`` float32 on the host.
        queries: Ids of the queries.
        k: Neighbors of each query.

    Returns:
        Similarities ``(q, k)``, descending, and ids ``(q, k)`` int64.
    """
    vectors, own = F.normalize(vectors, dim=1), torch.tensor(queries)[:, None]
    best = torch.full((len(queries), k), -torch.inf)
    ids = torch.full((len(queries), k), -1)
    start = 0
    for batch in rows:
        here = torch.arange(start, start + len(batch)).expand(len(queries), -1)
        similarity = vectors @ F.normalize(batch, dim=1).T
        similarity.masked_fill_(here == own, -torch.inf)
        best, chosen = torch.cat([best, similarity], 1).topk(k, dim=1)
        ids = torch.cat([ids, here], 1).gather(1, chosen)
        start += len(batch)
    return best, ids


def _describe(dataset: Dataset, sample: int, similarity: float) -> Neighbor:
    path, label = printable(dataset.name(sample)), int(dataset.labels[sample])
    return Neighbor(sample, path, label, similarity)


def _cells(dataset: Dataset, found: Neighborhoods) -> list[list[Cell]]:
    """Make the cells: green frames around neighbors of the query's class, red around others."""
    sheet = []
    for query, row in zip(found.queries, found.neighbors, strict=True):
        line = [Cell(dataset.decode(query.sample_id), _words(dataset, query, "#"), None)]
        for one in row:
            labeled = query.label >= 0 and one.label >= 0
            color = (_SAME if one.label == query.label else _OTHER) if labeled else None
            line.append(Cell(dataset.decode(one.sample_id), _words(dataset, one, ""), color))
        sheet.append(line)
    return sheet


def _words(dataset: Dataset, one: Neighbor, mark: str) -> str:
    """The caption: ``0.930 dog`` for a neighbor, ``#17 dog`` for a query."""
    known = 0 <= one.label < len(dataset.classes)
    name = dataset.classes[one.label] if known else "" if one.label < 0 else f"class {one.label}"
    first = f"{mark}{one.sample_id}" if mark else f"{one.similarity:.3f}"
    return f"{first} {name}".strip()
