"""Groups of images that are copies of each other: equal, or with nearly equal difference hashes."""

from collections.abc import Iterator
from itertools import combinations, pairwise

import numpy as np
from numpy.typing import NDArray

MAX_DISTANCE = 3
"""Bits in which the difference hashes of two copies may differ."""
_EDGES = (0, 11, 22, 33, 44, 54, 64)  # of six bands of bits, of which three differing bits leave
_EQUAL_BANDS = 3  # three equal
MAX_RUN = 64
"""Hashes, in sorted order, that a hash is compared with for each choice of bands. More than that
agree on 32 bits only where nearly all images look alike; some pairs may then be missed."""
_ONES = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1).sum(1, dtype=np.uint8)

UINT64 = NDArray[np.uint64]
INT64 = NDArray[np.int64]


def copy_groups(content: UINT64, difference: UINT64, is_flat: NDArray[np.bool_]) -> INT64:
    """Group images with equal content, or with difference hashes at most `MAX_DISTANCE` apart.

    A copy of a copy is in the same group. Difference hashes of flat images are ignored. A million
    images take 3 s, or 50 s if all look alike (one core).

    Args:
        content: Hash of each image's content, ``(n,)``.
        difference: Difference hash of each, ``(n,)``.
        is_flat: Whether each is flat, ``(n,)``.

    Returns:
        The least index of each image's group, ``(n,)``.
    """
    groups = np.arange(len(content))
    _, first, inverse = np.unique(content, return_index=True, return_inverse=True)
    _join(groups, groups.copy(), first[inverse])
    shown = np.flatnonzero(~is_flat)
    distinct, first, inverse = np.unique(difference[shown], return_index=True, return_inverse=True)
    _join(groups, shown, shown[first[inverse]])
    for one, other in near_pairs(distinct):
        _join(groups, shown[first[one]], shown[first[other]])
    return groups


def near_pairs(hashes: UINT64) -> Iterator[tuple[INT64, INT64]]:
    """Find the pairs at most `MAX_DISTANCE` bits apart, by indices; some of them repeatedly.

    Two such hashes agree in at least three of six bands. So for each choice of three, only hashes
    that agree there are compared: neighbors after sorting by these bands.
    """
    bands = [(1 << end) - (1 << start) for start, end in pairwise(_EDGES)]
    for chosen in combinations(bands, _EQUAL_BANDS):
        masked = hashes & np.uint64(sum(chosen))
        order = np.argsort(masked)
        keys, ordered = masked[order], hashes[order]
        left = np.arange(len(hashes))
        for step in range(1, min(MAX_RUN + 1, len(hashes))):
            left = left[left < len(hashes) - step]
            left = left[keys[left] == keys[left + step]]
            if not len(left):
                break
            near = left[_distances(ordered[left], ordered[left + step]) <= MAX_DISTANCE]
            yield order[near], order[near + step]


def _distances(one: UINT64, other: UINT64) -> NDArray[np.uint8]:
    """Number of differing bits, elementwise."""
    ones: NDArray[np.uint8] = _ONES[(one ^ other).view(np.uint8).reshape(-1, 8)].sum(1, np.uint8)
    return ones


def _join(groups: INT64, one: INT64, other: INT64) -> None:
    """Unite the groups of pairs of images, in place; groups keep the least index as their name."""
    while True:
        low = np.minimum(groups[one], groups[other])
        high = np.maximum(groups[one], groups[other])
        apart = low != high
        if not apart.any():
            return
        one, other = one[apart], other[apart]
        np.minimum.at(groups, high[apart], low[apart])
        while not np.array_equal(groups, groups[groups]):
            groups[:] = groups[groups]
