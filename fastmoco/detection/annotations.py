"""What a detection data set is: images with boxes, masks, keypoints or a map of classes.

Boxes are ``x1, y1, x2, y2`` in pixels from the image's upper left corner, half open: a box over the
whole image is ``0, 0, width, height``. Labels count from 1; 0 is the background.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fastmoco.errors import UsageError

BOX_TOLERANCE = (
    1.0  # pixels that a box may reach over the edge; VOC and COCO have such, by rounding
)


class AnnotationError(ValueError):
    """An annotation is missing, broken or impossible; the message names its file."""


@dataclass(kw_only=True, slots=True)
class Instance:
    """One object."""

    box: tuple[float, float, float, float]
    """``x1, y1, x2, y2``."""
    label: int
    """From 1."""
    ignored: bool = False
    """Neither to be found nor wrong to find: VOC's difficult, COCO's crowd."""
    mask: Any = None
    """Polygons or run lengths, as COCO has them."""
    area: float | None = None
    """Of the mask, pixels, as COCO has it."""
    keypoints: list[tuple[float, float, float]] | None = None
    """``x, y, visibility`` each; visibility 0 is unknown."""


@dataclass(kw_only=True, slots=True)
class Scene:
    """One image with what is in it."""

    image: Path
    height: int
    width: int
    source: str
    """Where the annotation stands, for messages."""
    instances: list[Instance] = field(default_factory=list)
    class_map: Path | None = None
    """segment: a palette PNG of class indices, 255 where unknown."""


@dataclass(kw_only=True, slots=True)
class SceneSet:
    """Images in a fixed order, and the names of the classes."""

    name: str
    """For messages and results."""
    classes: tuple[str, ...]
    """Name of label 1 first."""
    scenes: list[Scene]
    keypoint_names: tuple[str, ...] = ()

    @property
    def num_classes(self) -> int:
        """With the background."""
        return len(self.classes) + 1

    @property
    def fingerprint(self) -> str:
        """Of images, boxes and classes: a run goes on with the same ones alone."""
        digest = hashlib.sha256(repr((self.classes, self.keypoint_names)).encode())
        for scene in self.scenes:
            found = [(one.box, one.label, one.ignored) for one in scene.instances]
            digest.update(repr((scene.image.name, scene.height, scene.width, found)).encode())
        return digest.hexdigest()

    def to_learn_from(self, *, ignored_too: bool) -> "SceneSet":
        """The images that have an object of some area, with no others in them.

        Args:
            ignored_too: Keep ignored objects.

        Raises:
            UsageError: If none is left.
        """
        scenes = []
        for scene in self.scenes:
            kept = [i for i in scene.instances if (ignored_too or not i.ignored) and has_area(i)]
            if kept:
                scenes.append(
                    Scene(
                        image=scene.image,
                        height=scene.height,
                        width=scene.width,
                        source=scene.source,
                        instances=kept,
                    )
                )
        if not scenes:
            raise UsageError(f"{self.name} has no box to learn from; give data.train=... that has")
        return SceneSet(
            name=self.name,
            classes=self.classes,
            scenes=scenes,
            keypoint_names=self.keypoint_names,
        )


def has_area(instance: Instance) -> bool:
    """Whether width and height are positive: COCO has a few boxes of none."""
    x1, y1, x2, y2 = instance.box
    return x2 > x1 and y2 > y1


def checked_box(
    values: Sequence[float], *, height: int, width: int, source: str
) -> tuple[float, float, float, float]:
    """A box cut to its image.

    Args:
        values: ``x1, y1, x2, y2``.
        height: Of the image, pixels.
        width: Of the image, pixels.
        source: Where it stands, for the message.

    Raises:
        AnnotationError: If it is no box, or reaches over the edge by more than `BOX_TOLERANCE`.
    """
    x1, y1, x2, y2 = values
    low, right, bottom = -BOX_TOLERANCE, width + BOX_TOLERANCE, height + BOX_TOLERANCE
    if not (low <= x1 <= x2 <= right and low <= y1 <= y2 <= bottom):  # false for NaN too
        raise AnnotationError(
            f"{source}: the box {x1:g}, {y1:g}, {x2:g}, {y2:g} (x1, y1, x2, y2) is not inside the "
            f"image of {width} x {height} pixels; mend or remove it"
        )
    return max(0.0, x1), max(0.0, y1), min(float(width), x2), min(float(height), y2)


def check_images(scenes: Sequence[Scene], option: str) -> None:
    """Refuse a set with a missing image or map before anything is learned.

    Raises:
        AnnotationError: Naming the first that is missing.
    """
    for scene in scenes:
        for path in filter(None, (scene.image, scene.class_map)):
            if not path.is_file():
                raise AnnotationError(
                    f"{path} is missing, but {scene.source} lists it; restore it or set {option}"
                )


def check_same_classes(train: SceneSet, test: SceneSet) -> None:
    """Refuse sets whose labels mean different things.

    Raises:
        UsageError: Naming a class that only one of them has.
    """
    if train.classes != test.classes:
        odd = sorted(set(train.classes) ^ set(test.classes)) or list(test.classes)
        raise UsageError(
            f"{train.name} and {test.name} have different classes (such as {odd[0]}); "
            "give data.train and data.test of the same"
        )


def boxes_of(instances: Sequence[Instance]) -> npt.NDArray[np.float32]:
    """All boxes, ``(n, 4)``; n may be 0."""
    return np.array([i.box for i in instances], np.float32).reshape(-1, 4)
