"""Choice among ranked images: without duplicates and, if wanted, spread over the feature space.

Memory holds the vectors of the images kept so far and of one block of candidates.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fastmoco.draws.streams import INT64

BLOCK_ROWS = 512
"""Candidates compared at a time with the images kept so far."""
CHUNK_ROWS = 1 << 14
FITTED_ROWS = 20_000
"""Maximum number of rows that cluster centers are fitted to."""
MAX_ROUNDS = 50

Vectors = Callable[[INT64], Tensor]
"""Function from sample ids ``(n,)`` to unit vectors ``(n, D)``."""


def chunks(vectors: Vectors, ids: INT64) -> Iterator[Tensor]:
    """Yield the vectors of all samples, `CHUNK_ROWS` at a time."""
    for start in range(0, len(ids), CHUNK_ROWS):
        yield vectors(ids[start : start + CHUNK_ROWS])


class Distinct:
    """The images kept so far, from which each new candidate must differ.

    Attributes:
        same_bytes: Number of candidates skipped because their bytes equal those of another image.
        alike: Number of candidates skipped because their features are too similar.
    """

    def __init__(
        self, content: Callable[[int], bytes], vectors: Vectors | None, max_similarity: float
    ) -> None:
        """Start without images.

        Args:
            content: Function from a sample's id to a digest of its stored bytes.
            vectors: Unit vectors of samples; None compares only bytes.
            max_similarity: Cosine above which two images are duplicates.
        """
        self._content, self._vectors, self._limit = content, vectors, max_similarity
        self._seen: set[bytes] = set()
        self._kept: list[Tensor] = []
        self.same_bytes = self.alike = 0

    def add_known(self, ids: INT64) -> None:
        """Add images that are not candidates, such as labeled ones."""
        self._seen.update(self._content(sample) for sample in ids.tolist())
        if self._vectors is not None:
            self._kept.extend(chunks(self._vectors, ids))

    def keep(self, ids: INT64) -> NDArray[np.bool_]:
        """Keep the candidates that differ from all kept images and from each other.

        Args:
            ids: Candidates in the order of preference, ``(n,)``.

        Returns:
            Mask of the candidates that were kept, ``(n,)`` bool.
        """
        chosen = np.zeros(len(ids), bool)
        new = [index for index, sample in enumerate(ids.tolist()) if self._is_new(sample)]
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
    """Narrow `apart` to the rows that are not too similar to an earlier row of it."""
    near = torch.triu(vectors @ vectors.T > limit, diagonal=1).cpu()
    for row in range(len(near)):
        if apart[row]:
            apart &= ~near[row]
    return apart


def _joined(parts: list[Tensor]) -> list[Tensor]:
    """Join small parts: few products, none of them over more than `CHUNK_ROWS` rows."""
    parts = [part for part in parts if len(part)]
    if len(parts) > 1 and len(parts[-2]) + len(parts[-1]) <= CHUNK_ROWS:
        parts[-2:] = [torch.cat(parts[-2:])]
    return parts


def digest(blob: bytes | memoryview) -> bytes:
    """SHA-256 of stored bytes; images with equal bytes are the same."""
    return hashlib.sha256(blob).digest()


def shares(sizes: Sequence[int], count: int) -> list[int]:
    """Split `count` over groups: equal numbers, but no more than a group has members.

    Args:
        sizes: Number of members of each group.
        count: Members to take in all; fewer are taken if all groups together have fewer.
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
    """Take distinct members of groups, the same number of each as far as possible.

    Args:
        groups: Ids of each group, in the order of preference.
        distinct: Decides which members are duplicates; keeps the taken ones.
        count: Members to take in all; fewer if there are no more.

    Returns:
        The ids taken from each group, in its order.
    """
    positions, found = [0] * len(groups), [np.empty(0, np.int64) for _ in groups]
    missing = count
    while missing:
        rest = [group[start:] for group, start in zip(groups, positions, strict=True)]
        wanted = shares([len(group) for group in rest], missing)
        if not any(wanted):
            break
        for number, share in enumerate(wanted):
            for start in range(0, share, BLOCK_ROWS):
                block = rest[number][start : min(start + BLOCK_ROWS, share)]
                found[number] = np.concatenate([found[number], block[distinct.keep(block)]])
            positions[number] += share
        missing = count - sum(len(ids) for ids in found)
    return found


@torch.no_grad()
def k_center(vectors: Tensor, count: int, centers: Tensor | None = None) -> INT64:
    """Greedy k-center: each next row is the one farthest from all centers so far.

    The largest distance of a row to its nearest center is at most twice that of the best choice
    (Gonzalez, 1985). The cost is ``count * n * D`` multiplications.

    Args:
        vectors: Unit rows, ``(n, D)``.
        count: Number of rows to choose, at most n.
        centers: Unit rows ``(m, D)`` that are centers already; None starts with row 0.

    Returns:
        Indices of rows in the order of choice, ``(count,)`` int64; a tie goes to the first row.
    """
    nearest = vectors.new_full((len(vectors),), -2.0)  # similarity to the nearest center
    for part in () if centers is None else torch.split(centers, CHUNK_ROWS):
        nearest = torch.maximum(nearest, (vectors @ part.T).amax(dim=1))
    chosen = []
    for _ in range(count):
        row = int(nearest.argmin())
        chosen.append(row)
        nearest = torch.maximum(nearest, vectors @ vectors[row])
        nearest[row] = 3.0  # above any cosine, so that no row is chosen twice
    return np.array(chosen, np.int64)


@torch.no_grad()
def cluster(vectors: Vectors, ids: INT64, clusters: int, seed: int) -> INT64:
    """K-means of unit vectors: Lloyd's rounds from k-means++ (Arthur and Vassilvitskii, 2007).

    Args:
        vectors: Unit vectors of samples.
        ids: Samples to cluster, ``(n,)``; centers are fitted to at most `FITTED_ROWS` of them.
        clusters: Number of clusters, at most n.
        seed: Seed for the rows that centers are fitted to and for the first centers.

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
    return torch.cat([_nearest(part, centers).cpu() for part in chunks(vectors, ids)]).numpy()


def _first_centers(rows: Tensor, clusters: int, random: np.random.Generator) -> Tensor:
    """K-means++: draw each center with weight squared distance to the nearest earlier one."""
    chosen = [int(random.integers(len(rows)))]
    squared = _squared_distances(rows, rows[chosen])[:, 0]
    for _ in range(clusters - 1):
        weights = squared.cpu().double().numpy()
        weights[chosen] = 0
        total = weights.sum()
        weights = weights / total if total else np.full(len(rows), 1 / len(rows))
        chosen.append(int(random.choice(len(rows), p=weights)))
        squared = torch.minimum(squared, _squared_distances(rows, rows[chosen[-1:]])[:, 0])
    return rows[chosen]


def _nearest(rows: Tensor, centers: Tensor) -> Tensor:
    return _squared_distances(rows, centers).argmin(dim=1)


def _squared_distances(rows: Tensor, centers: Tensor) -> Tensor:
    """``|x - c|^2``, clamped at 0, ``(n, k)``."""
    squares = rows.square().sum(1)[:, None] + centers.square().sum(1)
    return (squares - 2 * rows @ centers.T).clamp_(min=0)
