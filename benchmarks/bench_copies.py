"""What the difference hash of `convert holdout=` finds: copies of photographs, and false pairs.

Every photograph is encoded again, rescaled by three filters and then encoded, and rescaled to a
half and encoded badly. A copy is found if its hash is near enough and neither image is flat. Pairs
of photographs with near hashes are false unless they show the same, which a person must judge.
"""

import io
import time
from collections.abc import Iterator
from itertools import chain

import numpy as np
from PIL import Image

from benchmarks.harness import summarize
from benchmarks.pictures import Source
from benchmarks.report import Report, Row
from benchmarks.settings import Settings
from fastmoco.data.duplicates import MAX_DISTANCE, copy_groups
from fastmoco.data.image_hash import ImageHash, hash_image

QUALITIES = (50, 60, 70, 80, 90, 95)
SCALES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.1, 1.25, 1.5, 1.75, 2.0)
FILTERS = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
RESCALED_QUALITY = 75
GOAL = ">= 95%"


def bench_copies(settings: Settings, report: Report, photographs: Source) -> None:
    """Percent of the copies that are found, groups of photographs, milliseconds a hash."""
    blobs = [path.read_bytes() for path in sorted(photographs.folder.rglob("*.*"))]
    start = time.process_time()
    hashes = [hash_image(blob) for blob in blobs]
    seconds = (time.process_time() - start) / len(blobs)
    found: dict[str, list[bool]] = {}
    for index in range(0, len(blobs), max(1, len(blobs) // settings.pick(20, 250))):
        image = Image.open(io.BytesIO(blobs[index])).convert("RGB")
        for kind, copy in chain(_encoded_again(image), _rescaled(image)):
            found.setdefault(kind, []).append(_is_near(hashes[index], hash_image(copy)))
    report.subject, report.device = photographs.name, "cpu"
    for kind, one in found.items():
        recall = summarize([100 * float(np.mean(one))])
        report.rows.append(Row(what=kind, unit="% of copies", value=recall, goal=GOAL))
    columns = np.array(hashes, np.uint64).T
    groups = copy_groups(columns[0], columns[1], columns[2].astype(np.bool_))
    for what, unit, value in (
        ("groups of two or more", "groups", float((np.bincount(groups) > 1).sum())),
        ("flat", "images", float(columns[2].sum())),
        ("both hashes", "ms of one core", 1e3 * seconds),
    ):
        report.rows.append(Row(what=what, unit=unit, value=summarize([value])))


def _is_near(one: ImageHash, other: ImageHash) -> bool:
    near = (one.difference ^ other.difference).bit_count() <= MAX_DISTANCE
    return near and not (one.is_flat or other.is_flat)


def _encoded_again(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    for quality in QUALITIES:
        yield f"quality {quality}", _encoded(image, quality)
    half = image.resize((image.width // 2, image.height // 2), Image.Resampling.BILINEAR)
    yield f"x 0.5, quality {QUALITIES[0]}", _encoded(half, QUALITIES[0])


def _rescaled(image: Image.Image) -> Iterator[tuple[str, bytes]]:
    for scale in SCALES:
        size = max(1, round(scale * image.width)), max(1, round(scale * image.height))
        for resample in FILTERS:
            yield f"x {scale:g}", _encoded(image.resize(size, resample), RESCALED_QUALITY)


def _encoded(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return file.getvalue()
