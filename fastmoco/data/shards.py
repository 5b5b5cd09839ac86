"""Assignment of samples to the files of a sharded dataset, and the files' names."""

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
    """Samples of one shard, ascending; sizes of shards differ by at most one.

    A hash sends neighbors of the source to different shards, so that a source sorted by class does
    not give shards of one class each.
    """
    return np.sort(hashed_order(count)[shard::shards])


def shard_path(target: Path, shard: int, shards: int) -> Path:
    """Path of one shard: ``train.beton`` -> ``train-00002-of-00008.beton``."""
    return target.with_name(f"{target.stem}-{shard:05d}-of-{shards:05d}.beton")


def find_shards(pattern: Path) -> list[Path]:
    """Files that match a pattern such as ``data/train-*.beton``, complete and in order.

    Raises:
        FileNotFoundError: If no file matches.
        ValueError: If files are missing, are not shards, or belong to several sets.
    """
    paths = sorted(pattern.parent.glob(pattern.name))
    if not paths:
        raise FileNotFoundError(
            f"{pattern}: no such files; make them with `fastmoco convert SRC DST.beton shards=N`"
        )
    check_shards(pattern, [path.name for path in paths])
    return paths


def check_shards(pattern: Path, names: Sequence[str]) -> None:
    """Check that files are all shards of one set.

    Args:
        pattern: What they match.
        names: Their names, at least one.

    Raises:
        ValueError: If files are missing, are not shards, or belong to several sets.
    """
    found = [_SHARD_NAME.fullmatch(name) for name in names]
    sets = {(match[1], int(match[3])) for match in found if match}
    if None in found or len(sets) != 1:
        raise ValueError(
            f"{pattern}: matches {', '.join(names[:4])}, which are not the shards of one set; "
            "narrow the pattern"
        )
    ((stem, shards),) = sets
    wanted = {shard_path(Path(f"{stem}.beton"), i, shards).name for i in range(shards)}
    if missing := sorted(wanted - set(names)):
        raise ValueError(
            f"{pattern}: {len(missing)} of {shards} shards are missing, such as {missing[0]}"
        )


def counted_shards(pattern: Path) -> list[str]:
    """Names of the shards of a pattern that says how many there are, else [].

    ``train-*-of-00008.beton`` needs no listing: its numbers are 0 to 7.
    """
    found = re.fullmatch(r"(.+)-\*-of-(\d{5})\.beton", pattern.name)
    if not found or "*" in found[1]:
        return []
    count = int(found[2])
    return [shard_path(Path(f"{found[1]}.beton"), i, count).name for i in range(count)]


def set_fingerprint(fingerprints: Sequence[str]) -> str:
    """Fingerprint of files together: of one file its own, else the SHA-256 of all, in order."""
    if len(fingerprints) == 1:
        return fingerprints[0]
    return hashlib.sha256("\n".join(fingerprints).encode()).hexdigest()
