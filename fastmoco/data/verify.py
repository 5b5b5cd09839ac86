"""Verification of every byte of a .beton file, and its description."""

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from fastmoco.data.beton import BetonError, BetonFile
from fastmoco.data.beton_format import MODE_RAW
from fastmoco.data.beton_set import BetonSet
from fastmoco.data.dataset import Dataset, open_dataset, open_files
from fastmoco.data.facts import describe_contents, description_text, plain_values
from fastmoco.data.progress import show_progress
from fastmoco.data.remote.streamed import StreamedSet

__all__ = ["VerifyReport", "describe", "description_text", "verify"]


DEVIATION_IMAGES = 500
"""Most images that `describe` decodes: half a second for photographs."""


@dataclass(kw_only=True, slots=True)
class VerifyReport:
    """Result of `verify`."""

    path: Path
    """The file."""
    num_samples: int
    """Images, all of them decoded."""
    num_bytes: int
    """Size of the file in bytes, all of them read."""
    has_checksums: bool
    """False for a file of FFCV: changed labels and pixels would go unnoticed."""
    seconds: float
    """Duration."""
    images_per_second: float
    """Images read and decoded per second."""

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return plain_values(asdict(self))

    def to_text(self) -> str:
        """Format as a line."""
        checked = "checksums and pixels" if self.has_checksums else "pixels (it has no checksums)"
        return (
            f"{self.path}: sound; checked {checked} of {self.num_samples:,} images, "
            f"{self.num_bytes / 1e6:,.1f} MB, in {self.seconds:.1f} s "
            f"({self.images_per_second:,.0f} images/s)"
        )


def verify(path: str | Path) -> VerifyReport:
    """Read a complete file: check the index, all checksums, all images, and the zeros between them.

    Args:
        path: A file, or the pattern of shards, which are all verified.

    Raises:
        UsageError: If the path is a folder or tar shards.
        BetonError: If anything is wrong; it names the first bad sample and counts the others.
        ValueError: If shards are missing.
        OSError: If the file does not exist or cannot be read.
    """
    start = time.monotonic()
    with open_files(path) as dataset:
        for beton in _files(dataset):
            _verify_file(beton)
        seconds = time.monotonic() - start
        return VerifyReport(
            path=dataset.path,
            num_samples=len(dataset),
            num_bytes=sum(beton.num_bytes for beton in _files(dataset)),
            has_checksums=dataset.has_checksums,
            seconds=seconds,
            images_per_second=len(dataset) / seconds,
        )


def describe(path: str | Path) -> dict[str, Any]:
    """Describe a dataset, converted or not, as JSON values: from its index, and from some images.

    Raises:
        BetonError: If the index is wrong; damaged images are not looked for.
        ValueError: If shards are missing, or a folder has no JPEG that can be read unconverted.
        OSError: If nothing exists at the path, or it cannot be read.
    """
    with open_dataset(path) as dataset:
        raw = int(np.count_nonzero(dataset.modes == MODE_RAW))
        return {
            "path": str(dataset.path),
            **(_storage(dataset) if isinstance(dataset, BetonFile | BetonSet) else {}),
            "has_checksums": dataset.has_checksums,
            "num_jpeg": len(dataset) - raw,
            "num_raw": raw,
            "image_bytes": int(dataset.sizes.sum()),
            **dataset.facts,
            **_mean_deviation(dataset),
            "fingerprint": dataset.fingerprint,
            **describe_contents(dataset.labels, dataset.widths, dataset.heights, dataset.classes),
        }


def _mean_deviation(dataset: Dataset) -> dict[str, Any]:
    """``channel_std_per_image``: the mean over images of each image's own deviation, in 0..1.

    Published statistics are of this kind (ImageNet .229, CIFAR-10 .2023); ``channel_std``, over all
    pixels, is larger. Up to `DEVIATION_IMAGES` images are measured, evenly spaced; the result is
    ``{}`` if one cannot be read, which `verify` explains, or if shards would be fetched for it.
    """
    if isinstance(dataset, StreamedSet):
        return {}
    chosen = range(0, len(dataset), -(-len(dataset) // DEVIATION_IMAGES))
    try:
        found = [dataset.decode(i).std(axis=(0, 1), dtype=np.float32) for i in chosen]
    except (ValueError, OSError):
        return {}
    mean = np.stack(found).mean(axis=0, dtype=np.float64) / 255
    return {"channel_std_per_image": [round(value, 4) for value in mean.tolist()]}


def _storage(dataset: BetonFile | BetonSet) -> dict[str, int]:
    """Facts about the files of a dataset."""
    files = _files(dataset)
    return {
        "num_files": len(files),
        "num_bytes": sum(beton.num_bytes for beton in files),
        "page_bytes": files[0].page_bytes,
    }


def _files(dataset: BetonFile | BetonSet) -> tuple[BetonFile, ...]:
    return dataset.files if isinstance(dataset, BetonSet) else (dataset,)


def _verify_file(beton: BetonFile) -> None:
    problems = []
    with show_progress(len(beton)) as advance:
        for sample_ids, found in _decode_all(beton):
            problems += [problem for problem in found if problem is not None]
            advance(len(sample_ids), int(beton.sizes[sample_ids.start : sample_ids.stop].sum()))
    if problems:
        more = f"; {len(problems) - 1} more bad samples" if len(problems) > 1 else ""
        raise BetonError(f"{problems[0]}{more}")
    for offset, gap in beton.gaps():
        if gap.count(0) != len(gap):
            byte = offset + len(gap) - len(gap.lstrip(b"\0"))
            raise BetonError(
                f"{beton.path}: byte {byte}: is not zero, but belongs to no sample; the images are "
                "sound, but something has written to this file"
            )


def _decode_all(beton: BetonFile) -> Iterator[tuple[range, list[BetonError | None]]]:
    """Yield samples and each one's problem or None, in order; uses one thread per CPU."""

    def problems(sample_ids: range) -> list[BetonError | None]:
        return [_problem(beton, sample_id) for sample_id in sample_ids]

    threads = len(os.sched_getaffinity(0))
    batches = (range(a, min(a + 64, len(beton))) for a in range(0, len(beton), 64))
    with ThreadPoolExecutor(threads) as pool:
        while group := list(islice(batches, 8 * threads)):
            yield from zip(group, pool.map(problems, group), strict=True)


def _problem(beton: BetonFile, sample_id: int) -> BetonError | None:
    try:
        beton.decode(sample_id)
        beton.name(sample_id)
    except BetonError as error:
        return error
    return None
