"""Split of a source into images to train on and images to test on, for `convert`.

A first pass hashes all images (`image_hash`); it costs about as much as the conversion. Hashes
alone decide the split, so that the same images are split alike on any machine and in any order.
"""

import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.conversion import RECORD_SECONDS
from fastmoco.data.duplicates import copy_groups
from fastmoco.data.encode import fault_of
from fastmoco.data.image_hash import ImageHash, hash_image
from fastmoco.data.journal import Journal, Record, journal_path
from fastmoco.data.jpeg_markers import ImageError
from fastmoco.data.progress import show_progress
from fastmoco.data.sources import SampleSet
from fastmoco.data.workers import in_batches
from fastmoco.draws.streams import mixed
from fastmoco.errors import UsageError
from fastmoco.files import locked

Hashed = ImageHash | str
"""The hashes of an image, or the reason why it is bad."""


@dataclass(slots=True)
class Split:
    """Images to train on and to test on; bad images count as training images."""

    is_test: NDArray[np.bool_]
    """Whether each image is held out for testing, ``(n,)``."""
    groups: NDArray[np.int64]
    """A number for each image, equal for copies of each other, ``(n,)``."""
    untested: list[str]
    """Classes without a test image: those of one image, or of one group of copies."""

    @property
    def copies(self) -> list[list[int]]:
        """Indices of the images of each group of two or more."""
        order = np.argsort(self.groups, kind="stable")
        _, starts = np.unique(self.groups[order], return_index=True)
        return [part.tolist() for part in np.split(order, starts[1:]) if len(part) > 1]


def split_source(
    samples: SampleSet, share: float, target: Path, recipe: str, workers: int
) -> Split:
    """Hash all images of a source and choose the test images.

    The hashes are kept in a journal beside `target`, so that the same call resumes after a kill.

    Args:
        samples: The source.
        share: Fraction of each class to hold out.
        target: Path that gives the journal its name; the caller removes it (`conversion.forget`).
        recipe: Hex digest of the source's samples.
        workers: Number of threads; 0 means as for a conversion.

    Raises:
        UsageError: If no image could be held out, or another process is doing the same.
        ValueError: If no image is usable.
        OSError: If the source cannot be read or the journal cannot be written.
    """
    hashed = _hash_source(samples, target, recipe, workers)
    index = np.array([i for i, one in enumerate(hashed) if not isinstance(one, str)], np.int64)
    if not len(index):
        raise ValueError(
            f"none of its {len(hashed)} images is usable; the first is {samples.names[0]}: "
            f"{hashed[0]}"
        )
    columns = np.array([hashed[i] for i in index], np.uint64).T
    groups = copy_groups(columns[0], columns[1], columns[2].astype(np.bool_))
    labels = samples.labels[index]
    chosen = choose_test(labels, groups, columns[0], share)
    if not chosen.any():
        raise UsageError(
            f"holdout={share:g} leaves no image to test on: no class has two images that are not "
            f"copies of each other ({len(index)} images, {len(np.unique(groups))} without copies); "
            "convert training and test images from two folders instead"
        )
    split = Split(np.zeros(len(hashed), np.bool_), np.arange(len(hashed)), [])
    split.is_test[index], split.groups[index] = chosen, index[groups]
    untested = sorted(set(labels.tolist()) - set(labels[chosen].tolist()) - {-1})
    names = dict(enumerate(samples.classes))
    split.untested = [names.get(label, str(label)) for label in untested]
    return split


def choose_test(
    labels: NDArray[np.int64],
    groups: NDArray[np.int64],
    content: NDArray[np.uint64],
    share: float,
) -> NDArray[np.bool_]:
    """Choose the test images: groups in the order of a hash, as far as they fit.

    A class gives ``share`` of its images, rounded, but at least one and not all; a class of one
    image gives none. Where groups do not fit, it gives fewer.

    Args:
        labels: Class of each image, ``(n,)``.
        groups: Number of each image's group; a group is chosen as a whole or not at all, ``(n,)``.
        content: Hash of each image's content, ``(n,)``.
        share: Fraction in (0, 1).
    """
    _, row, counts = np.unique(labels, return_inverse=True, return_counts=True)
    wanted = np.clip(np.rint(share * counts).astype(np.int64), 1, np.maximum(counts - 1, 1))
    left = np.where(counts > 1, wanted, 0).tolist()
    least = np.full(len(labels), np.iinfo(np.uint64).max)
    np.minimum.at(least, groups, content)
    # Mixed once more: the least hash of a large group is small, which would choose it more often.
    order = np.lexsort((groups, mixed(least)[groups]))
    ends = np.flatnonzero(np.diff(groups[order], append=-1)) + 1
    chosen, start, rows = np.zeros(len(labels), np.bool_), 0, row[order].tolist()
    for end in ends.tolist():
        members = Counter(rows[start:end])
        if all(left[one] >= count for one, count in members.items()):
            for one, count in members.items():
                left[one] -= count
            chosen[order[start:end]] = True
        start = end
    return chosen


def _hash_source(samples: SampleSet, target: Path, recipe: str, workers: int) -> list[Hashed]:
    """Hash the images that the journal lacks; record each second what is done."""
    path, count = journal_path(target), len(samples.names)
    in_use = f"{path}: another process is converting to {target}; wait until it ends"
    hashed: list[Hashed] = []
    with locked(path, in_use=in_use), Journal(path, f"{recipe} hashes") as journal:
        journal.replay(lambda record: _take_up(hashed, record))
        batches = in_batches(samples, partial(_hash_batch, samples), workers, len(hashed))
        pending: list[Hashed] = []
        recorded = time.monotonic()
        with closing(batches), show_progress(count, len(hashed)) as advance:
            for batch, num_bytes in batches:
                pending += batch
                advance(len(batch), num_bytes)
                done = len(hashed) + len(pending) == count
                if done or time.monotonic() - recorded >= RECORD_SECONDS:
                    journal.append({"hashes": pending})
                    hashed += pending
                    pending, recorded = [], time.monotonic()
    return hashed


def _take_up(hashed: list[Hashed], record: Record) -> bool:
    hashed += [one if isinstance(one, str) else ImageHash(*one) for one in record["hashes"]]
    return True


def _hash_batch(samples: SampleSet, batch: slice) -> tuple[list[Hashed], int]:
    """Hash some consecutive samples; also return the bytes read."""
    hashed: list[Hashed] = []
    num_bytes = 0
    for key in samples.keys[batch]:
        try:
            loaded = samples.load(key)
            num_bytes += len(loaded) if isinstance(loaded, bytes) else loaded.nbytes
            hashed.append(hash_image(loaded))
        except (ImageError, OSError) as error:
            hashed.append(fault_of(error, hashed))
    return hashed, num_bytes
