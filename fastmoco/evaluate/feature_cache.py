"""Rows of features on disk: computed once, then memory-mapped.

``KEY.npy`` holds the rows. ``KEY.json``, written last, holds the facts that decide them and their
SHA-256; KEY is the hash of the facts. Reading verifies all bytes (1.5 GB per second and core if the
processor has SHA instructions); damaged rows are computed again.

Rows are written batch by batch and mapped afterwards: they are never in memory twice, and a full
disk is an error that can be caught, not the end of the process. If the folder cannot be written,
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
from fastmoco.parsing import parse_json

FORMAT_VERSION = 1
"""Must change whenever equal facts would mean other numbers."""


def folder_of_run(run: Path) -> Path:
    """The folder of a run or of one of its checkpoint files; of another file, its own folder."""
    if run.is_dir():
        return run
    return run.parent.parent if run.parent.name == "checkpoints" else run.parent


class CachedRows(NamedTuple):
    """Rows in a memory-mapped file."""

    vectors: Tensor
    """``(n, D)`` float32, a private map: writes to it stay in this process."""
    reused: bool
    """Whether the file was there before."""


def cached_rows(
    folder: Path,
    facts: Mapping[str, Any],
    count: int,
    batches: Callable[[], Iterator[Tensor]],
) -> CachedRows | None:
    """Read rows from a folder, or compute them and keep them there.

    This waits for another process that computes into the same folder.

    Args:
        folder: Folder of the cache, made if missing.
        facts: Everything that decides the rows, as JSON values.
        count: n, the number of rows.
        batches: Computes the rows: ``(N, D)`` float32 on any device.

    Returns:
        None if the folder cannot be written; this warns, unless the folder is read-only.
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
                found = _read(path, facts, verify=False)
    except OSError as error:
        if error.errno != errno.EROFS and not isinstance(error, PermissionError):
            warnings.warn(f"features are not kept in {folder}: {error}", stacklevel=2)
        return None
    return None if found is None else CachedRows(found, reused)


def _write(path: Path, facts: Mapping[str, Any], count: int, batches: Iterator[Tensor]) -> None:
    """Write both files, each atomically; raise OSError if the disk is full or cannot be written."""
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
    """Write the header of an npy file, after checking that the disk has room for the rows."""
    free, needed = shutil.disk_usage(folder).free, 4 * shape[0] * shape[1]
    if free < needed:
        reason = f"{needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} are free"
        raise OSError(errno.ENOSPC, reason)
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)


def _read(path: Path, facts: Mapping[str, Any], *, verify: bool = True) -> Tensor | None:
    """Map the rows of an npy file; None if they are missing, damaged or of other facts."""
    try:
        record = parse_json(path.with_suffix(".json").read_text(encoding="utf-8"))
        rows = np.load(path, mmap_mode="c", allow_pickle=False)
        digest = record.pop("sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return None
    if record != facts or rows.dtype != np.dtype("<f4") or rows.ndim != 2:
        return None
    if verify and hashlib.sha256(rows.data.cast("B")).hexdigest() != digest:
        return None
    return torch.from_numpy(rows)
