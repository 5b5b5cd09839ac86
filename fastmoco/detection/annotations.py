"""A detection dataset: images with boxes, masks, keypoints or a class map.

Boxes are ``x1, y1, x2, y2`` in pixels from the image's upper left corner, half open: a box over the
full image is ``0, 0, width, height``. Labels count from 1; 0 is the background.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastmoco.data.images import MAX_SIDE
from fastmoco.errors import UsageError

MAX_NUMBER = 1e15
"""Whole numbers below are exact as floats; no image is as large."""
BOX_TOLERANCE = 1.0  # pixels; some boxes of VOC and COCO cross the edge, by rounding


UNREADABLE = (OSError, SyntaxError, Image.DecompressionBombError)
"""What Pillow raises for images that are damaged or far too large."""


class AnnotationError(ValueError):
    """An annotation is missing, broken or impossible; the message names its file."""


@dataclass(kw_only=True, slots=True)
class Instance:
    """One object."""

    box: tuple[float, float, float, float]
    """``x1, y1, x2, y2``."""
    label: int
    """Class, from 1."""
    ignored: bool = False
    """Counts neither as missed nor as wrong: VOC's difficult, COCO's crowd."""
    mask: Any = None
    """Polygons or run lengths, in COCO's format."""
    area: float | None = None
    """Area of the mask in pixels, from COCO's file."""
    keypoints: list[tuple[float, float, float]] | None = None
    """``x, y, visibility`` of each keypoint; visibility 0 means unknown."""


@dataclass(kw_only=True, slots=True)
class Scene:
    """One image with its annotations."""

    image: Path
    height: int
    width: int
    source: str
    """File of the annotation, for messages."""
    instances: list[Instance] = field(default_factory=list)
    class_map: Path | None = None
    """task=segment: a palette PNG of class indices, 255 where unknown."""


@dataclass(kw_only=True, slots=True)
class SceneSet:
    """Images in a fixed order, with the class names."""

    name: str
    """Name for messages and results."""
    classes: tuple[str, ...]
    """Class names; the first is label 1."""
    scenes: list[Scene]
    keypoint_names: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """Number of classes, background included."""
        return len(self.classes) + 1

    @property
    def fingerprint(self) -> str:
        """SHA-256 of image names, boxes and classes; a run resumes only with the same ones."""
        digest = hashlib.sha256(repr((self.classes, self.keypoint_names)).encode())
        for scene in self.scenes:
            found = [(one.box, one.label, one.ignored) for one in scene.instances]
            digest.update(repr((scene.image.name, scene.height, scene.width, found)).encode())
        return digest.hexdigest()

    def to_learn_from(self, *, ignored_too: bool) -> "SceneSet":
        """A set of the objects with a positive area; images without any are left out.

        Args:
            ignored_too: Keep ignored objects.

        Raises:
            UsageError: If no image is left.
        """
        scenes = []
        for scene in self.scenes:
            kept = [i for i in scene.instances if (ignored_too or not i.ignored) and has_area(i)]
            if kept:
                scenes.append(replace(scene, instances=kept))
        if not scenes:
            raise UsageError(f"{self.name} has no box to learn from; set data.train to other data")
        return replace(self, scenes=scenes)


def has_area(instance: Instance) -> bool:
    """Whether width and height are positive: in COCO a few boxes have width or height 0."""
    x1, y1, x2, y2 = instance.box
    return x2 > x1 and y2 > y1


def checked_number(value: Any, what: str) -> float:
    """A number from an annotation file, where also texts and infinite numbers occur.

    Args:
        value: The value.
        what: File and name of the value, for the message.

    Raises:
        AnnotationError: If it is not a finite number.
    """
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not abs(value) <= MAX_NUMBER:  # false for NaN too
        raise AnnotationError(f"{what} is {str(value)[:80]!r}, not a finite number")
    return float(value)


def checked_side(value: Any, what: str) -> int:
    """Height or width of an image from an annotation file.

    Raises:
        AnnotationError: If it is not a whole number from 1 to `MAX_SIDE`.
    """
    number = checked_number(value, what)
    if not (1 <= number <= MAX_SIDE and number == int(number)):
        raise AnnotationError(f"{what} is {number:g}, not a whole number from 1 to {MAX_SIDE}")
    return int(number)


def checked_box(
    values: Sequence[float], scene: Scene, source: str
) -> tuple[float, float, float, float]:
    """Cut a box to its image.

    Args:
        values: ``x1, y1, x2, y2``.
        scene: The image.
        source: Where the box is written, for the message.

    Raises:
        AnnotationError: If the corners are swapped or not finite, or if the box reaches over the
            edge by more than `BOX_TOLERANCE`.
    """
    (x1, y1, x2, y2), height, width = values, scene.height, scene.width
    low, right, bottom = -BOX_TOLERANCE, width + BOX_TOLERANCE, height + BOX_TOLERANCE
    if not (low <= x1 <= x2 <= right and low <= y1 <= y2 <= bottom):  # false for NaN too
        raise AnnotationError(
            f"{source}: the box {x1:g}, {y1:g}, {x2:g}, {y2:g} (x1, y1, x2, y2) is not inside the "
            f"image of {width} x {height} pixels; correct or remove it"
        )
    return max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2)


def check_images(scenes: Sequence[Scene], option: str) -> None:
    """Check before training that every image and class map exists.

    Raises:
        AnnotationError: If one is missing; names the first.
    """
    for scene in scenes:
        for path in filter(None, (scene.image, scene.class_map)):
            if not path.is_file():
                raise AnnotationError(
                    f"{path} is missing, but {scene.source} lists it; restore it or set {option}"
                )


def check_same_classes(train: SceneSet, test: SceneSet) -> None:
    """Check that labels mean the same in both sets.

    Raises:
        UsageError: If the classes differ; names one that only one set has.
    """
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes)) or list(test.classes)
        raise UsageError(
            f"{train.name} and {test.name} have different classes (such as {odd[0]}); "
            "set data.train and data.test to sets with the same classes"
        )


def boxes_of(instances: Sequence[Instance]) -> npt.NDArray[np.float32]:
    """All boxes, ``(n, 4)`` float32; n may be 0."""
    return np.array([i.box for i in instances], np.float32).reshape(-1, 4)
