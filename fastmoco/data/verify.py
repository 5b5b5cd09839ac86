"""Reads a whole .beton file and proves every byte; describes one."""

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
from fastmoco.data.dataset import Dataset, open_dataset
from fastmoco.data.facts import describe_contents, description_text, plain_values
from fastmoco.data.progress import show_progress
from fastmoco.errors import UsageError

__all__ = ["VerifyReport", "describe", "description_text", "verify"]


@dataclass(kw_only=True, slots=True)
class VerifyReport:
    """What `verify` proved.

    Attributes:
        path: The file.
        num_samples: Images, all of them decoded.
        num_bytes: Size of the file, all of it read.
        has_checksums: False for a file of FFCV: a changed label or a flipped pixel would not show.
        seconds: Time taken.
        images_per_second: Of reading and decoding.
    """

    path: Path
    num_samples: int
    num_bytes: int
    has_checksums: bool
    seconds: float
    images_per_second: float

    def to_json(self) -> dict[str, Any]:
        """All fields as JSON values."""
        return plain_values(asdict(self))

    def to_text(self) -> str:
        """A line for people."""
        proved = "checksums and pixels" if self.has_checksums else "pixels (it has no checksums)"
        return (
            f"{self.path}: sound; {proved} of {self.num_samples:,} images, "
            f"{self.num_bytes / 1e6:,.1f} MB, in {self.seconds:.1f} s "
            f"({self.images_per_second:,.0f} images/s)"
        )


def verify(path: str | Path) -> VerifyReport:
    """Reads all of a file: index, every checksum, every image decoded, zeros between them.

    Args:
        path: A file, or the pattern of shards, each of which is verified.

    Raises:
        BetonError: If anything is wrong; it names the first bad sample and counts the rest.
        ValueError: If shards are missing.
        OSError: If there is no such file, or it may not be read.
    """
    start = time.monotonic()
    with open_dataset(path) as dataset:
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
    """What a file holds, or the shards of a pattern, as JSON values, by its own index.

    Raises:
        BetonError: If the index is wrong; images are not read.
        ValueError: If shards are missing.
        OSError: If there is no such file, or it may not be read.
    """
    with open_dataset(path) as dataset:
        raw = int(np.count_nonzero(dataset.modes == MODE_RAW))
        files = _files(dataset)
        return {
            "path": str(dataset.path),
            "num_files": len(files),
            "num_bytes": sum(beton.num_bytes for beton in files),
            "page_bytes": files[0].page_bytes,
            "has_checksums": dataset.has_checksums,
            "num_jpeg": len(dataset) - raw,
            "num_raw": raw,
            "image_bytes": int(dataset.sizes.sum()),
            **dataset.facts,
            "fingerprint": dataset.fingerprint,
            **describe_contents(dataset.labels, dataset.widths, dataset.heights, dataset.classes),
        }


def _files(dataset: Dataset) -> tuple[BetonFile, ...]:
    if isinstance(dataset, BetonFile):
        return (dataset,)
    if isinstance(dataset, BetonSet):
        return dataset.files
    raise UsageError(
        f"{dataset.path} is no dataset file; make one: fastmoco convert {dataset.path} train.beton"
    )


def _verify_file(beton: BetonFile) -> None:
    problems = []
    with show_progress(len(beton)) as advance:
        for sample_ids, found in _decode_all(beton):
            problems += [problem for problem in found if problem is not None]
            advance(len(sample_ids), int(beton.sizes[sample_ids.start : sample_ids.stop].sum()))
    if problems:
        more = f"; {len(problems) - 1} more bad samples" if len(problems) > 1 else ""
        raise BetonError(f"{problems[0]}{more}")
    for place, gap in beton.gaps():
        if gap.count(0) != len(gap):
            byte = place + len(gap) - len(gap.lstrip(b"\0"))
            raise BetonError(
                f"{beton.path}: byte {byte}: is not zero though it belongs to no sample; the "
                "images are sound, but something has written into this file"
            )


def _decode_all(beton: BetonFile) -> Iterator[tuple[range, list[BetonError | None]]]:
    """Samples and each one's problem or None, in order; on as many threads as there are CPUs."""

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
