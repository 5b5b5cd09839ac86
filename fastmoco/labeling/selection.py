"""Which of ranked images are asked for: no duplicates, and where wanted spread over the features.

Memory holds the vectors of what is kept, and a block of candidates at a time.
"""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmoco.draws.streams import INT64

BLOCK_ROWS = 512
"""Candidates compared with what is kept at a time."""
CHUNK_ROWS = 1 << 14
FITTED_ROWS = 20_000
"""Most rows that cluster centers are fitted to."""
MAX_ROUNDS = 50

Vectors = Callable[[INT64], Tensor]
"""Unit vectors ``(n, D)`` of samples, by their ids."""


class Distinct:
    """What is kept so far, and what a candidate must differ from.

    Attributes:
        same_bytes: Candidates left out as equal to another one, byte for byte.
        alike: Those left out by their features.
    """

    def __init__(
        self, content: Callable[[int], bytes], vectors: Vectors | None, max_similarity: float
    ) -> None:
        """Start with nothing.

        Args:
            content: Digest of a sample's stored bytes, by its id.
            vectors: Of samples; None: only bytes are compared.
            max_similarity: Cosine above which two are duplicates.
        """
        self._content, self._vectors, self._limit = content, vectors, max_similarity
        self._seen: set[bytes] = set()
        self._kept: list[Tensor] = []
        self.same_bytes = self.alike = 0

    def add_known(self, ids: INT64) -> None:
        """Count samples that are not candidates, such as labeled ones."""
        self._seen.update(self._content(sample) for sample in ids.tolist())
        if self._vectors is not None:
            for start in range(0, len(ids), CHUNK_ROWS):
                self._kept.append(self._vectors(ids[start : start + CHUNK_ROWS]))

    def keep(self, ids: INT64) -> NDArray[np.bool_]:
        """Which of some candidates differ from all that is kept, and from each other.

        Args:
            ids: In the order of preference; those that differ are kept from now on.

        Returns:
            ``(n,)`` bool.
        """
        chosen = np.zeros(len(ids), bool)
        new = [place for place, sample in enumerate(ids.tolist()) if self._is_new(sample)]
        self.same_bytes += len(ids) - len(new)
        if not new or self._vectors is None:
            chosen[new] = True
            return chosen
        vectors = self._vectors(ids[new])
        apart = torch.ones(len(new), dtype=torch.bool, device=vectors.device)
        for kept in self._kept:
            apart &= (vectors @ kept.T).amax(dim=1) <= self._limit
        apart = _apart_within(vectors, apart.cpu(), self._limit)
        self.alike += int((~apart).sum())
        self._kept.append(vectors[apart.to(vectors.device)])
        self._kept = _joined(self._kept)
        chosen[np.array(new)[apart.numpy()]] = True
        return chosen

    def _is_new(self, sample: int) -> bool:
        digest = self._content(sample)
        is_new = digest not in self._seen
        self._seen.add(digest)
        return is_new


def _apart_within(vectors: Tensor, apart: Tensor, limit: float) -> Tensor:
    """Of rows that are `apart`, those that no earlier such row is too similar to."""
    near = torch.triu(vectors @ vectors.T > limit, diagonal=1).cpu()
    for row in range(len(near)):
        if apart[row]:
            apart &= ~near[row]
    return apart


def _joined(parts: list[Tensor]) -> list[Tensor]:
    """Small parts put together: few products, and none over more than `CHUNK_ROWS` rows."""
    parts = [part for part in parts if len(part)]
    if len(parts) > 1 and len(parts[-2]) + len(parts[-1]) <= CHUNK_ROWS:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def digest(blob: bytes | memoryview) -> bytes:
    """Of stored bytes: equal ones are one image."""
    return hashlib.sha256(blob).digest()


def shares(sizes: Sequence[int], count: int) -> list[int]:
    """How many of `count` places each group gets: equally many, as far as it has members.

    Args:
        sizes: Members of each group.
        count: Places; what all groups together cannot fill stays empty.
    """
    found = [0] * len(sizes)
    while count:
        open_groups = [group for group, size in enumerate(sizes) if found[group] < size]
        if not open_groups:
            break
        share = max(1, count // len(open_groups))
        for group in open_groups:
            taken = min(share, sizes[group] - found[group], count)
            found[group] += taken
            count -= taken
    return found


def spread(groups: Sequence[INT64], distinct: Distinct, count: int) -> list[INT64]:
    """Distinct members of groups, equally many of each as far as there are.

    Args:
        groups: Ids in the order of preference, of each group.
        distinct: Keeps what is taken.
        count: How many in all; fewer where there are no more.

    Returns:
        Ids of each group, in its order.
    """
    places, found = [0] * len(groups), [np.empty(0, np.int64) for _ in groups]
    missing = count
    while missing:
        left = [len(group) - place for group, place in zip(groups, places, strict=True)]
        wanted = shares(left, missing)
        if not any(wanted):
            break
        for number, share in enumerate(wanted):
            for size in _blocks(share):
                block = groups[number][places[number] : places[number] + size]
                places[number] += size
                found[number] = np.concatenate([found[number], block[distinct.keep(block)]])
        missing = count - sum(len(ids) for ids in found)
    return found


def _blocks(count: int) -> list[int]:
    return [min(BLOCK_ROWS, count - start) for start in range(0, count, BLOCK_ROWS)]


@torch.no_grad()
def k_center(vectors: Tensor, count: int, centers: Tensor | None = None) -> INT64:
    """Greedy k-center: each next row is the one farthest from all centers so far.

    So that every row is near a chosen one: at most twice as far as the best choice could have it
    (Gonzalez, 1985). It costs ``count * n * D`` multiplications.

    Args:
        vectors: Unit rows, ``(n, D)``.
        count: Rows to choose, at most n.
        centers: Unit rows ``(m, D)`` that are covered already; with none, row 0 comes first.

    Returns:
        Rows in the order of choice, ``(count,)`` int64; of equally far ones the first.
    """
    nearest = vectors.new_full((len(vectors),), -2.0)  # similarity to the nearest center
    for part in () if centers is None else torch.split(centers, CHUNK_ROWS):
        nearest = torch.maximum(nearest, (vectors @ part.T).amax(dim=1))
    chosen = []
    for _ in range(count):
        row = int(nearest.argmin())
        chosen.append(row)
        nearest = torch.maximum(nearest, vectors @ vectors[row])
        nearest[row] = 3.0  # more than any: never again, not even for lack of others
    return np.array(chosen, np.int64)


@torch.no_grad()
def cluster(vectors: Vectors, ids: INT64, clusters: int, seed: int) -> INT64:
    """K-means of unit vectors: Lloyd's rounds from k-means++ (Arthur and Vassilvitskii, 2007).

    Args:
        vectors: Of samples.
        ids: Of all that are clustered; centers are fitted to `FITTED_ROWS` of them at most.
        clusters: At most as many as samples.
        seed: Of the first centers.

    Returns:
        Cluster of each sample, ``(n,)``.
    """
    random = np.random.default_rng(seed)
    chosen = np.sort(random.permutation(len(ids))[:FITTED_ROWS])
    rows = vectors(ids[chosen])
    centers, before = _first_centers(rows, clusters, random), None
    for _ in range(MAX_ROUNDS):
        nearest = _nearest(rows, centers)
        if before is not None and torch.equal(nearest, before):
            break
        sums = torch.zeros_like(centers).index_add_(0, nearest, rows)
        counts = torch.bincount(nearest, minlength=clusters)[:, None]
        centers = torch.where(counts > 0, sums / counts.clamp(min=1), centers)
        before = nearest
    parts = [
        _nearest(vectors(ids[start : start + CHUNK_ROWS]), centers).cpu()
        for start in range(0, len(ids), CHUNK_ROWS)
    ]
    return torch.cat(parts).numpy()


def _first_centers(rows: Tensor, clusters: int, random: np.random.Generator) -> Tensor:
    """Each next center is a row drawn by its squared distance to the nearest one before."""
    places = [int(random.integers(len(rows)))]
    squared = _squared_distances(rows, rows[places])[:, 0]
    for _ in range(clusters - 1):
        weights = squared.cpu().double().numpy()
        weights[places] = 0
        total = weights.sum()
        weights = weights / total if total else np.full(len(rows), 1 / len(rows))
        places.append(int(random.choice(len(rows), p=weights)))
        squared = torch.minimum(squared, _squared_distances(rows, rows[places[-1:]])[:, 0])
    return rows[places]


def _nearest(rows: Tensor, centers: Tensor) -> Tensor:
    return _squared_distances(rows, centers).argmin(dim=1)


def _squared_distances(rows: Tensor, centers: Tensor) -> Tensor:
    """``|x - c|^2``, not below 0, ``(n, k)``."""
    squares = rows.square().sum(1)[:, None] + centers.square().sum(1)
    return (squares - 2 * rows @ centers.T).clamp_(min=0)
