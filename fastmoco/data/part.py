"""A dataset file with some samples of another one: stored bytes are copied, labels may change."""

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.beton_format import sidecar_path
from fastmoco.data.beton_writer import BetonWriter
from fastmoco.data.dataset import Dataset
from fastmoco.data.facts import describe_contents
from fastmoco.data.progress import show_progress
from fastmoco.files import atomic_path

DEFAULT_PAGE_BYTES = 1 << 23
COUNTS = ("num_duplicates", "num_quarantined")
"""Facts of a complete dataset that a part does not have."""


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

    Each image's bytes are copied after verifying their checksum; nothing is decoded. Channel
    statistics are those of the complete dataset, so that a part is normalized like it.

    Args:
        target: The file; an existing one stays unchanged until the new one is complete.
        dataset: An open dataset.
        ids: Samples to write, ``(n,)``, n > 0.
        labels: Labels of these samples, ``(n,)``, -1 where unlabeled.
        classes: Class names.
        origin: Further facts for the JSON file.

    Returns:
        The file's fingerprint.

    Raises:
        BetonError: If an image is damaged.
        OSError: If a file cannot be written; existing files stay, but the JSON file may be the old
            one if only its rename failed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    page_bytes = _page_bytes(dataset, ids)
    is_complete = len(ids) == len(dataset)
    facts = {k: v for k, v in dataset.facts.items() if is_complete or k not in COUNTS}
    contents = describe_contents(labels, dataset.widths[ids], dataset.heights[ids], classes)
    with BetonWriter(target, capacity=len(ids), page_bytes=page_bytes) as writer:
        _copy(writer, dataset, ids, labels)
        fingerprint = writer.finish(classes, facts)
        described = {"fingerprint": fingerprint, **contents, **facts, **origin}
        # The JSON file is written first, so that both old files stay on a full disk.
        with atomic_path(sidecar_path(target)) as temporary:
            temporary.write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")
            writer.commit()
    return fingerprint


def _copy(
    writer: BetonWriter, dataset: Dataset, ids: NDArray[np.int64], labels: NDArray[np.int64]
) -> None:
    """Copy samples, with new labels."""
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
    """The usual page size, or the smallest larger one that fits the largest image."""
    largest = int(dataset.sizes[ids].max())
    return max(DEFAULT_PAGE_BYTES, 1 << (largest - 1).bit_length())
