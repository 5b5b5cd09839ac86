"""Which file of a sharded dataset holds which sample, and what the files are called."""

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastmoco.draws.streams import hashed_order

_SHARD_NAME = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.beton")
MAX_SHARDS = 99_999


def shard_samples(count: int, shard: int, shards: int) -> NDArray[np.int64]:
    """The samples of one shard, ascending; sizes differ by one at most.

    Neighbors of the source go to different shards by a hash, so that a source sorted by class does
    not become shards of a class each.
    """
    return np.sort(hashed_order(count)[shard::shards])


def shard_path(target: Path, shard: int, shards: int) -> Path:
    """``train.beton`` -> ``train-00002-of-00008.beton``."""
    return target.with_name(f"{target.stem}-{shard:05d}-of-{shards:05d}.beton")


def find_shards(pattern: Path) -> list[Path]:
    """The files of a pattern such as ``data/train-*.beton``, complete and in order.

    Raises:
        FileNotFoundError: If no file matches.
        ValueError: If files are missing, or they are no shards or of several sets.
    """
    paths = sorted(pattern.parent.glob(pattern.name))
    if not paths:
        raise FileNotFoundError(f"{pattern}: no such files; `fastmoco convert` with shards=N")
    found = [_SHARD_NAME.fullmatch(path.name) for path in paths]
    sets = {(match[1], int(match[3])) for match in found if match}
    if None in found or len(sets) != 1:
        raise ValueError(
            f"{pattern}: matches {', '.join(path.name for path in paths[:4])}, which are not the "
            "shards of one set; narrow the pattern"
        )
    ((stem, shards),) = sets
    wanted = [shard_path(pattern.with_name(f"{stem}.beton"), i, shards) for i in range(shards)]
    if missing := sorted(set(wanted) - set(paths)):
        raise ValueError(
            f"{pattern}: {len(missing)} of {shards} shards are missing, such as {missing[0].name}"
        )
    return paths


def set_fingerprint(fingerprints: Sequence[str]) -> str:
    """Of files taken together: their own if it is one, else the SHA-256 of all, in order."""
    if len(fingerprints) == 1:
        return fingerprints[0]
    return hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()
