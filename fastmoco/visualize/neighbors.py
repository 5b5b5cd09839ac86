"""`fastmoco neighbors`: what the encoder takes for alike, as a contact sheet."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
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
from fastmoco.evaluate.features import (
    FeatureRequest,
    FrozenEncoder,
    extract_features,
    feature_rows,
    features_folder,
    open_encoder,
    request_of,
)
from fastmoco.visualize.pictures import Cell, draw_contact_sheet
from fastmoco.visualize.settings import NeighborsConfig

MAX_QUERIES, MAX_NEIGHBORS = 64, 32
"""What a picture can show."""
_SAME, _OTHER = "tab:green", "tab:red"


@dataclass(slots=True)
class Neighbor:
    """One image, seen from a query."""

    sample_id: int
    path: str
    label: int
    """-1 where unlabeled."""
    similarity: float
    """Cosine, -1 to 1; of the query itself 1."""


@dataclass(slots=True)
class Neighborhoods:
    """Queries and what is nearest to them."""

    out: str
    features: str
    num_images: int
    """Among which the neighbors were found, the query left out."""
    queries: list[Neighbor]
    neighbors: list[list[Neighbor]]
    """Of each query, the most similar first."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    def to_text(self) -> str:
        """For people."""
        count = len(self.neighbors[0])
        return f"{self.out}: {len(self.queries)} images with {count} neighbors each"


def write_neighbors(run: Path, cfg: NeighborsConfig) -> Neighborhoods:
    """Find the nearest images of some of ``data.test`` among all others, and draw them.

    Args:
        run: A run folder, a checkpoint, an imported folder or an exported file.
        cfg: From `load_config`.

    Raises:
        UsageError: If an option is missing or does not fit.
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
        vectors = _query_vectors(encoder, dataset, request, queries)
        similarity, ids = nearest_others(rows, vectors, queries, cfg.k)
        found = Neighborhoods(
            out=str(cfg.out),
            features=cfg.features.value,
            num_images=len(dataset) - 1,
            queries=[_describe(dataset, query, 1.0) for query in queries],
            neighbors=[
                [_describe(dataset, *pair) for pair in zip(*row, strict=True)]
                for row in zip(ids.tolist(), similarity.tolist(), strict=True)
            ],
        )
        draw_contact_sheet(cfg.out, _cells(dataset, found), headers=_headers(cfg.k))
    return found


def _queries(cfg: NeighborsConfig, dataset: Dataset) -> list[int]:
    """Ids of the queries: those named, or the first of a fixed hashed order.

    Raises:
        UsageError: If they, or their neighbors, do not fit the dataset or a picture.
    """
    most = min(MAX_NEIGHBORS, len(dataset) - 1)
    if not 1 <= cfg.k <= most:
        raise UsageError(f"k={cfg.k} does not fit; set it to 1 to {most}")
    if wrong := [query for query in cfg.queries if not 0 <= query < len(dataset)]:
        raise UsageError(
            f"queries has {wrong[0]}; {dataset.path} has the ids 0 to {len(dataset) - 1}"
        )
    if len(cfg.queries) > MAX_QUERIES:
        raise UsageError(f"queries names {len(cfg.queries)}; a picture shows {MAX_QUERIES} at most")
    if cfg.queries:
        return list(cfg.queries)
    if not 1 <= cfg.count <= min(MAX_QUERIES, len(dataset)):
        raise UsageError(
            f"count={cfg.count} does not fit; set it to 1 to {min(MAX_QUERIES, len(dataset))}"
        )
    return [int(sample) for sample in hashed_order(len(dataset))[: cfg.count]]


def _query_vectors(
    encoder: FrozenEncoder, dataset: Dataset, request: FeatureRequest, queries: list[int]
) -> Tensor:
    chosen = FeatureRequest(
        features=request.features,
        batch_size=min(request.batch_size, len(queries)),
        precision=request.precision,
        loader=request.loader,
        num_threads=request.num_threads,
        sample_ids=np.array(queries, np.int64),
    )
    return extract_features(encoder, dataset, chosen).vectors.cpu()


@torch.no_grad()
def nearest_others(
    rows: Iterator[Tensor], vectors: Tensor, queries: list[int], k: int
) -> tuple[Tensor, Tensor]:
    """The k rows that are most similar to each query by cosine, itself left out; exact.

    Only a batch of rows is in memory at a time.

    Args:
        rows: ``(N, D)`` float32 on the host, all samples in order; more than k in all.
        vectors: Of the queries, ``(q, D)`` float32 on the host.
        queries: Their ids.
        k: Neighbors.

    Returns:
        Similarities ``(q, k)``, falling, and ids ``(q, k)`` int64.
    """
    vectors, own = F.normalize(vectors, dim=1), torch.tensor(queries)[:, None]
    best = torch.full((len(queries), k), -torch.inf)
    ids = torch.full((len(queries), k), -1)
    start = 0
    for batch in rows:
        here = torch.arange(start, start + len(batch)).expand(len(queries), -1)
        similarity = vectors @ F.normalize(batch, dim=1).T
        similarity.masked_fill_(here == own, -torch.inf)
        best, place = torch.cat([best, similarity], 1).topk(k, dim=1)
        ids = torch.cat([ids, here], 1).gather(1, place)
        start += len(batch)
    return best, ids


def _describe(dataset: Dataset, sample: int, similarity: float) -> Neighbor:
    return Neighbor(
        sample_id=sample,
        path=printable(dataset.name(sample)),
        label=int(dataset.labels[sample]),
        similarity=similarity,
    )


def _headers(k: int) -> list[str]:
    return ["query", "nearest first", *[""] * (k - 1)]


def _cells(dataset: Dataset, found: Neighborhoods) -> list[list[Cell]]:
    """Pictures and words: green frames around neighbors of the query's class, red around others."""
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
    """``0.93 dog`` of a neighbor, ``#17 dog`` of a query."""
    known = 0 <= one.label < len(dataset.classes)
    name = dataset.classes[one.label] if known else "" if one.label < 0 else f"class {one.label}"
    first = f"{mark}{one.sample_id}" if mark else f"{one.similarity:.3f}"
    return f"{first} {name}".strip()
