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
from fastmoco.data.facts import describe_contents, description_text, plain_values

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

    Raises:
        BetonError: If anything is wrong; it names the first bad sample and counts the rest.
        OSError: If there is no such file, or it may not be read.
    """
    start = time.monotonic()
    with BetonFile.open(path) as beton:
        problems = [problem for problem in _decode_all(beton) if problem is not None]
        if problems:
            more = f"; {len(problems) - 1} more bad samples" if len(problems) > 1 else ""
            raise BetonError(f"{problems[0]}{more}")
        for place, gap in beton.gaps():
            if gap.count(0) != len(gap):
                byte = place + len(gap) - len(gap.lstrip(b"\0"))
                raise BetonError(
                    f"{path}: byte {byte}: is not zero though it belongs to no sample; the images "
                    "are sound, but something has written into this file"
                )
        seconds = time.monotonic() - start
        return VerifyReport(
            path=beton.path,
            num_samples=len(beton),
            num_bytes=beton.num_bytes,
            has_checksums=beton.has_checksums,
            seconds=seconds,
            images_per_second=len(beton) / seconds,
        )


def describe(path: str | Path) -> dict[str, Any]:
    """What a file holds, as JSON values: its own index, and its facts where they are beside it.

    Raises:
        BetonError: If the index is wrong; images are not read.
        OSError: If there is no such file, or it may not be read.
    """
    with BetonFile.open(path) as beton:
        raw = int(np.count_nonzero(beton.modes == MODE_RAW))
        return {
            "path": str(beton.path),
            "num_bytes": beton.num_bytes,
            "page_bytes": beton.page_bytes,
            "has_checksums": beton.has_checksums,
            "num_jpeg": len(beton) - raw,
            "num_raw": raw,
            "image_bytes": int(beton.sizes.sum()),
            **beton.facts,
            "fingerprint": beton.fingerprint,
            **describe_contents(beton.labels, beton.widths, beton.heights, beton.classes),
        }


def _decode_all(beton: BetonFile) -> Iterator[BetonError | None]:
    """Each sample's problem or None, in order; on as many threads as there are CPUs."""

    def problem(sample_ids: range) -> list[BetonError | None]:
        return [_problem(beton, sample_id) for sample_id in sample_ids]

    threads = len(os.sched_getaffinity(0))
    batches = (range(a, min(a + 64, len(beton))) for a in range(0, len(beton), 64))
    with ThreadPoolExecutor(threads) as pool:
        while group := list(islice(batches, 8 * threads)):
            for found in pool.map(problem, group):
                yield from found


def _problem(beton: BetonFile, sample_id: int) -> BetonError | None:
    try:
        beton.decode(sample_id)
        beton.name(sample_id)
    except BetonError as error:
        return error
    return None
