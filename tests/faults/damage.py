"""Damage of bytes, a function of its kind, its position and the generator."""

from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise

import numpy as np

Damage = Callable[[bytes, int, np.random.Generator], bytes]


def _flip(data: bytes, at: int, random: np.random.Generator) -> bytes:
    return _put(data, at, bytes([data[at] ^ 1 << int(random.integers(8))]))


def _cut(data: bytes, at: int, _: np.random.Generator) -> bytes:
    return data[:at]


def _zero(data: bytes, at: int, random: np.random.Generator) -> bytes:
    return _put(data, at, bytes(min(int(random.integers(1, 65)), len(data) - at)))


def _delete(data: bytes, at: int, random: np.random.Generator) -> bytes:
    return data[:at] + data[at + int(random.integers(1, 65)) :]


def _swap(data: bytes, at: int, random: np.random.Generator) -> bytes:
    """Two blocks of equal size change places."""
    size = int(random.integers(1, 65))
    other = int(random.integers(len(data)))
    first, second = sorted((at, other))
    size = min(size, second - first, len(data) - second)
    if not size:
        return data
    a, b = data[first : first + size], data[second : second + size]
    return _put(_put(data, first, b), second, a)


def _overwrite(data: bytes, at: int, random: np.random.Generator) -> bytes:
    return _put(data, at, random.bytes(min(int(random.integers(1, 9)), len(data) - at)))


def _insert(data: bytes, at: int, random: np.random.Generator) -> bytes:
    return data[:at] + random.bytes(int(random.integers(1, 65))) + data[at:]


def _repeat(data: bytes, at: int, random: np.random.Generator) -> bytes:
    size = int(random.integers(1, 257))
    return data[:at] + data[at : at + size] * int(random.integers(2, 9)) + data[at + size :]


def _put(data: bytes, at: int, part: bytes) -> bytes:
    return data[:at] + part + data[at + len(part) :]


MAP: dict[str, Damage] = {
    "flip": _flip,
    "cut": _cut,
    "zero": _zero,
    "delete": _delete,
    "swap": _swap,
}
"""Kinds of a byte map."""
MUTATIONS: dict[str, Damage] = {
    **MAP,
    "overwrite": _overwrite,
    "insert": _insert,
    "repeat": _repeat,
}
"""Kinds of a mutated input."""


def byte_map(
    data: bytes, count: int, seed: list[int], places: Sequence[int] | None = None
) -> Iterator[tuple[str, int, bytes]]:
    """Damage of every kind, each at ``count`` positions, one in each of as many equal ranges.

    The positions are drawn from ``places``, by default all of them. Yields the kind, the position
    and the damaged bytes, which differ from ``data``.
    """
    random = np.random.default_rng(seed)
    places = places or range(len(data))
    edges = np.linspace(0, len(places), min(count, len(places)) + 1).astype(int)
    for kind, damage in MAP.items():
        for start, end in pairwise(edges.tolist()):
            at = places[int(random.integers(start, end))]
            changed = damage(data, at, random)
            if changed != data:
                yield kind, at, changed


def mutated(data: bytes, random: np.random.Generator) -> tuple[str, bytes]:
    """One to three drawn mutations; the kind of the first, and the bytes."""
    kinds = random.choice(list(MUTATIONS), int(random.integers(1, 4)))
    for kind in kinds:
        data = MUTATIONS[str(kind)](data, int(random.integers(len(data))), random) if data else data
    return str(kinds[0]), data
