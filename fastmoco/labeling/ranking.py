"""Images in the order in which they are worth a label."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmoco.draws.streams import INT64
from fastmoco.labeling.settings import RankBy

FLOAT64 = NDArray[np.float64]


@dataclass(slots=True)
class Ranking:
    """Images, those most worth a label first, with what that was decided by."""

    ids: INT64
    """Each once, ``(n,)``."""
    columns: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    """By name, of each image, ``(n,)``."""
    facts: dict[str, Any] = field(default_factory=dict)
    """JSON values, of all together."""

    @classmethod
    def worst_first(cls, ids: INT64, score: FLOAT64, columns: dict[str, FLOAT64]) -> "Ranking":
        """By score, falling; of equal ones the smaller id first.

        Args:
            ids: ``(n,)``.
            score: Of each, ``(n,)``.
            columns: Also kept, of each.
        """
        order = np.lexsort([ids, -score])
        named = {"score": score} | columns
        return cls(ids[order], {name: values[order] for name, values in named.items()})


def places(values: FLOAT64) -> FLOAT64:
    """Where each value stands among all, 0 the least to 1 the greatest; equals share their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    middles = np.cumsum(counts) - (counts + 1) / 2
    found: FLOAT64 = middles[inverse] / max(1, len(values) - 1)
    return found


def badness(loss: FLOAT64, rank: FLOAT64, by: RankBy) -> FLOAT64:
    """How hard each is, 0 to 1.

    Args:
        loss: The greater the harder, ``(n,)``.
        rank: Likewise.
        by: Which of them counts.
    """
    if by is RankBy.both:
        return (places(loss) + places(rank)) / 2
    return places(loss if by is RankBy.loss else rank)
