"""Rows of features on disk: computed once, read as a map.

``KEY.npy`` holds them, row after row, and ``KEY.json``, written last, what they are and their
SHA-256; KEY is the hash of what they are. Reading proves all bytes (1.5 GB a second and core where
the processor has SHA instructions): what is damaged is computed anew.

Rows are written batch by batch and mapped afterwards: they are never in memory twice, and a full
disk is an error that can be caught, not the end of the process. Where nothing can be written,
nothing is kept.
"""

import errno
import hashlib
import json
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fastmoco.files import atomic_path, atomic_write_text, locked

FORMAT_VERSION = 1
"""Another one whenever equal facts would mean other numbers."""


class CachedRows(NamedTuple):
    """Rows as a map of their file."""

    vectors: Tensor
    """``(n, D)`` float32, a private map: what is written to it stays in this process."""
    reused: bool
    """Whether they were there before."""


def cached_rows(
    folder: Path,
    facts: Mapping[str, Any],
    count: int,
    batches: Callable[[], Iterator[Tensor]],
) -> CachedRows | None:
    """Rows from the folder, or computed and left there.

    Another process that computes into the same folder is waited for.

    Args:
        folder: Made where it is missing.
        facts: All that decides the rows, as JSON values.
        count: n.
        batches: Computes them: ``(N, D)`` float32 on any device.

    Returns:
        None where the folder cannot be written, which is said once, unless it is read-only.
    """
    facts = {"format_version": FORMAT_VERSION, **facts, "count": count}
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    path = folder / f"{name}.npy"
    if (found := _read(path, facts)) is not None:
        return CachedRows(found, reused=True)
    try:
        with locked(folder / ".lock"):
            found = _read(path, facts)
            reused = found is not None
            if not reused:
                _write(path, facts, count, batches())
                found = _read(path, facts, proved=True)
    except PermissionError:
        return None
    except OSError as error:
        if error.errno == errno.EROFS:
            return None
        warnings.warn(f"features are not kept in {folder}: {error}", stacklevel=2)
        return None
    return None if found is None else CachedRows(found, reused)


def _write(path: Path, facts: Mapping[str, Any], count: int, batches: Iterator[Tensor]) -> None:
    """Both files, whole or not there.

    Raises:
        OSError: If the disk is full or the like.
    """
    digest, done = hashlib.sha256(), 0
    with atomic_path(path) as temporary:
        with temporary.open("wb") as file:
            for batch in batches:
                rows = batch.cpu().contiguous().numpy()
                if not done:
                    _start(file, path.parent, (count, rows.shape[1]))
                digest.update(rows.data.cast("B"))
                file.write(rows.data)
                done += len(rows)
        assert done == count, (done, count)
    record = {**facts, "sha256": digest.hexdigest()}
    atomic_write_text(path.with_suffix(".json"), json.dumps(record, indent=1))


def _start(file: Any, folder: Path, shape: tuple[int, int]) -> None:
    """The header of an npy file, once it is known that the rows have room."""
    free, needed = shutil.disk_usage(folder).free, 4 * shape[0] * shape[1]
    if free < needed:
        reason = f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} are free"
        raise OSError(errno.ENOSPC, reason)
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _read(path: Path, facts: Mapping[str, Any], *, proved: bool = False) -> Tensor | None:
    """The rows, None where there are none or they are damaged.

    Args:
        path: Of the npy file.
        facts: That its record must have.
        proved: Written just now: the bytes need no proof.
    """
    try:
        record = json.loads(path.with_suffix(".json").read_text(encoding="utf-8"))
        rows = np.load(path, mmap_mode="c", allow_pickle=False)
        digest = record.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    if record != facts or rows.dtype != np.dtype("<f4") or rows.ndim != 2:
        return None
    if not proved and hashlib.sha256(rows.data.cast("B")).hexdigest() != digest:
        return None
    return torch.from_numpy(rows)
