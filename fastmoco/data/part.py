"""A dataset file made of samples of another one: stored bytes stay as they are, labels may not."""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.beton_format import PAGE_BYTES_MIN, sidecar_path
from fastmoco.data.beton_writer import BetonWriter
from fastmoco.data.dataset import Dataset
from fastmoco.data.facts import describe_contents
from fastmoco.data.progress import show_progress
from fastmoco.files import atomic_path

DEFAULT_PAGE_BYTES = 1 << 23
COUNTS = ("num_duplicates", "num_quarantined")
"""Facts of a whole dataset that a part of it does not have."""


def write_part(
    target: Path,
    dataset: Dataset,
    ids: NDArray[np.int64],
    *,
    labels: NDArray[np.int64],
    classes: Sequence[str],
    origin: Mapping[str, Any],
) -> str:
    """Write samples of a dataset, in the order of `ids`, as ``NAME.beton`` and ``NAME.beton.json``.

    Each image's bytes are copied, their checksum proved on the way, and nothing is decoded. Channel
    statistics are those of the whole dataset: what learns from a part is normalized alike.

    Args:
        target: The file; one that stands there stays as it is until the new one is whole.
        dataset: Open.
        ids: ``(n,)``, n > 0.
        labels: Of these samples, ``(n,)``, -1 where unlabeled.
        classes: Class names.
        origin: Facts for people, into the JSON file.

    Returns:
        The file's fingerprint.

    Raises:
        BetonError: If an image is damaged.
        OSError: If a file cannot be written; what stood there stays, but the facts for people may
            be the old ones where only their rename failed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    page_bytes = _page_bytes(dataset, ids)
    whole = len(ids) == len(dataset)
    facts = {k: v for k, v in dataset.facts.items() if whole or k not in COUNTS}
    contents = describe_contents(labels, dataset.widths[ids], dataset.heights[ids], classes)
    with BetonWriter(target, capacity=len(ids), page_bytes=page_bytes) as writer:
        _copy(writer, dataset, ids, labels)
        fingerprint = writer.finish(classes, facts)
        described = {"fingerprint": fingerprint, **contents, **facts, **origin}
        # Written first: on a full disk both old files stay.
        with atomic_path(sidecar_path(target)) as temporary:
            temporary.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
            writer.commit()
    return fingerprint


def _copy(
    writer: BetonWriter, dataset: Dataset, ids: NDArray[np.int64], labels: NDArray[np.int64]
) -> None:
    """Add samples with other labels."""
    with show_progress(len(ids)) as advance:
        for sample, label in zip(ids.tolist(), labels.tolist(), strict=True):
            blob = bytes(dataset.blob(sample))
            writer.add(
                blob,
                mode=int(dataset.modes[sample]),
                width=int(dataset.widths[sample]),
                height=int(dataset.heights[sample]),
                label=label,
                name=dataset.name(sample),
                crc32=zlib.crc32(blob),
            )
            advance(1, len(blob))


def _page_bytes(dataset: Dataset, ids: NDArray[np.int64]) -> int:
    """The usual page size, or the smallest larger one that holds the largest image."""
    largest = int(dataset.sizes[ids].max())
    return max(DEFAULT_PAGE_BYTES, PAGE_BYTES_MIN, 1 << (largest - 1).bit_length())
