"""Rankings of images by how much they are worth a label."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmoco.draws.host import draw_keys
from fastmoco.draws.streams import INT64
from fastmoco.labeling.settings import RankBy

FLOAT64 = NDArray[np.float64]


@dataclass(slots=True)
class Ranking:
    """Images, those most worth a label first, and the scores that decided the order."""

    ids: INT64
    """Distinct sample ids, ``(n,)``."""
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """Values of each image by column name, ``(n,)`` each."""
    facts: dict[str, Any] = field(default_factory=dict)
    """JSON values that describe the ranking as a whole."""

    @classmethod
    def worst_first(cls, ids: INT64, score: FLOAT64, columns: dict[str, FLOAT64]) -> "Ranking":
        """Sort by descending score, then by ascending id.

        Args:
            ids: Sample ids, ``(n,)``.
            score: Score of each image, ``(n,)``.
            columns: Other values of each image, ``(n,)`` each, kept beside the score.
        """
        order = np.lexsort([ids, -score])
        named = {"score": score} | columns
        return cls(ids[order], {name: values[order] for name, values in named.items()})


def random_order(ids: INT64, seed: int, stream: int) -> INT64:
    """Samples ordered by their draw keys; a function of the seed and the stream."""
    keys = draw_keys(seed, int(stream), ids).view(np.uint64)
    return ids[np.argsort(keys, kind="stable")]


def places(values: FLOAT64) -> FLOAT64:
    """Position of each value among all, from 0 (least) to 1 (greatest); ties get their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    middles = np.cumsum(counts) - (counts + 1) / 2
    found: FLOAT64 = middles[inverse] / max(1, len(values) - 1)
    return found


def badness(loss: FLOAT64, rank: FLOAT64, by: RankBy) -> FLOAT64:
    """How hard each image is, from 0 to 1.

    Args:
        loss: Loss of each image, ``(n,)``; higher is harder.
        rank: Rank of each image's positive, ``(n,)``; higher is harder.
        by: Which of the two decides, or both.
    """
    if by is RankBy.both:
        return (places(loss) + places(rank)) / 2
    return places(loss if by is RankBy.loss else rank)
