"""Average precision as the VOC 2007 devkit computes it, at any overlap.

Published VOC figures (AP, AP50, AP75 on test2007) follow this rule, averaged over overlaps 0.5 to
0.95 as in detectron2; COCO's rule gives other numbers for the same detections. The devkit matches a
detection only with the object that it overlaps most; COCO's rule matches it with the best object
that is still free. The devkit averages precision over 11 recalls, COCO over 101.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
OVERLAPS = tuple(round(0.5 + 0.05 * step, 2) for step in range(10))


@dataclass(kw_only=True, slots=True)
class Truth:
    """The objects of one class on one image."""

    boxes: Floats
    """``(n, 4)``."""
    difficult: npt.NDArray[np.bool_]
    """``(n,)``."""


@dataclass(kw_only=True, slots=True)
class Found:
    """The detections of one class on one image."""

    boxes: Floats
    """``(n, 4)``."""
    scores: Floats
    """``(n,)``."""


def overlaps(box: Floats, others: Floats) -> Floats:
    """Intersection over union of one box ``(4,)`` with others ``(n, 4)``; all are half open."""
    size = np.minimum(box[2:], others[:, 2:]) - np.maximum(box[:2], others[:, :2])
    shared = np.clip(size, 0, None).prod(axis=1)
    areas = (others[:, 2:] - others[:, :2]).prod(axis=1)
    union: Floats = (box[2:] - box[:2]).prod() + areas - shared
    result: Floats = shared / np.maximum(union, 1e-12)
    return result


def average_precision(
    truth: Mapping[int, Truth], found: Sequence[tuple[int, Found]], overlap: float
) -> float | None:
    """11-point average precision of one class, in 0..1.

    Args:
        truth: Objects by image; images without an object may be left out.
        found: Pairs of image and detections.
        overlap: Least overlap at which a detection counts as a match.

    Returns:
        The average precision; None if all objects are difficult, or there are none.
    """
    num_objects = sum(int((~one.difficult).sum()) for one in truth.values())
    if not num_objects:
        return None
    entries = [
        (float(score), image, box)
        for image, one in found
        for score, box in zip(one.scores, one.boxes, strict=True)
    ]
    entries.sort(key=lambda entry: -entry[0])  # stable: ties in the order of images
    taken = {image: np.zeros(len(one.boxes), bool) for image, one in truth.items()}
    hits = [_outcome(truth.get(image), taken.get(image), box, overlap) for _, image, box in entries]
    counted = np.array([hit for hit in hits if hit is not None], bool)
    true = counted.cumsum()
    recall, precision = true / num_objects, true / np.arange(1, len(true) + 1)
    levels = [precision[recall >= level] for level in np.linspace(0, 1, 11)]
    return float(np.mean([level.max() if level.size else 0.0 for level in levels]))


def _outcome(
    truth: Truth | None, taken: npt.NDArray[np.bool_] | None, box: Floats, overlap: float
) -> bool | None:
    """Whether a detection is right; None if it does not count. Marks its object as taken."""
    if truth is None or taken is None or not len(truth.boxes):
        return False
    shared = overlaps(box, truth.boxes)
    best = int(shared.argmax())
    if shared[best] < overlap:
        return False
    if truth.difficult[best]:
        return None
    first = not taken[best]
    taken[best] = True
    return bool(first)


def voc_average_precision(
    truth: Sequence[Mapping[int, Truth]], found: Sequence[Mapping[int, Found]]
) -> dict[str, float]:
    """AP, AP50 and AP75 in percent, as means over classes that have an object.

    Args:
        truth: Objects by class, for each image.
        found: Detections by class, for each image.
    """
    classes = sorted({label for image in truth for label in image})
    table = []
    for label in classes:
        objects = {i: image[label] for i, image in enumerate(truth) if label in image}
        detections = [(i, image[label]) for i, image in enumerate(found) if label in image]
        table.append([average_precision(objects, detections, overlap) for overlap in OVERLAPS])
    rows = np.array([row for row in table if row[0] is not None], float)
    if not len(rows):
        return {"ap": 0.0, "ap50": 0.0, "ap75": 0.0}
    means = 100 * rows.mean(axis=0)
    return {
        "ap": float(means.mean()),
        "ap50": float(means[0]),
        "ap75": float(means[OVERLAPS.index(0.75)]),
    }
