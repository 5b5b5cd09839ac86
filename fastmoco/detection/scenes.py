"""Drawn scenes with boxes, masks, keypoints and class maps: detection without a download.

The scenes are ellipses and rectangles, filled with the built-in textures, on a plain background.
The class of an object is its texture, so an encoder trained on ``builtin:textures`` is useful here;
size, shape, position and brightness are independent of the class.
``python -m fastmoco.detection.scenes FOLDER`` writes the scenes in the formats of VOC and COCO.
"""

import argparse
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastmoco.data import textures

CLASSES = textures.CLASS_NAMES[:6]
KEYPOINTS = ("center", "left_end", "right_end")
SIDE = 160
SPLITS = {"trainval": 400, "test": 200}
_SPLIT_CODES = {"trainval": 11, "test": 12}
_OBJECTS = (2, 4)
_SIZES = (30.0, 64.0)  # pixels, width and height
_GROUND = (0.35, 0.65)  # tone of the background
_NOISE = 0.03
_GAP = 3.0  # pixels between objects
_TRIES = 40  # to find a free position

Mask = npt.NDArray[np.bool_]


@dataclass(slots=True)
class Object:
    """One object of a scene."""

    label: int
    """Class, from 1."""
    mask: Mask
    """``(SIDE, SIDE)``, True on the object."""

    @property
    def box(self) -> tuple[int, int, int, int]:
        """``x1, y1, x2, y2``, half open."""
        rows, columns = (np.flatnonzero(self.mask.any(axis=axis)) for axis in (1, 0))
        return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1

    @property
    def keypoints(self) -> list[tuple[float, float]]:
        """Positions of `KEYPOINTS`: middle of the box, of its left side and of its right side."""
        x1, y1, x2, y2 = self.box
        middle = (y1 + y2) / 2
        return [((x1 + x2) / 2, middle), (float(x1), middle), (float(x2), middle)]


def draw_scene(split: str, index: int) -> tuple[npt.NDArray[np.uint8], list[Object]]:
    """Draw one scene, a pure function of split and index.

    Args:
        split: ``trainval`` or ``test``.
        index: 0 or more.

    Returns:
        Gray in three equal channels, ``(160, 160, 3)`` uint8, and the objects, 2 to 4.
    """
    random = np.random.Generator(np.random.PCG64([_SPLIT_CODES[split], index]))
    tones = np.full((SIDE, SIDE), _GROUND[0] + (_GROUND[1] - _GROUND[0]) * random.random())
    tones += _NOISE * (2 * random.random((SIDE, SIDE)) - 1)
    objects: list[Object] = []
    placed: list[tuple[float, float, float, float]] = []
    count = _OBJECTS[0] + int(random.random() * (_OBJECTS[1] - _OBJECTS[0] + 1))
    for _ in range(_TRIES):
        if len(objects) == count:
            break
        width, height = _SIZES[0] + (_SIZES[1] - _SIZES[0]) * random.random(2)
        x, y = (random.random(2) * (SIDE - 2 - np.array([width, height]))) + 1
        label = 1 + int(random.random() * len(CLASSES))
        ellipse, texture = random.random() < 0.5, random.random()
        if _is_free(placed, x, y, width, height):
            mask = _shape(x, y, width, height, ellipse=bool(ellipse))
            filling = _filling(split, label, texture)
            tones[mask] = filling[mask]
            objects.append(Object(label, mask))
            placed.append((x, y, width, height))
    gray = np.rint(255 * np.clip(tones, 0, 1)).astype(np.uint8)
    return np.repeat(gray[:, :, None], 3, axis=2), objects


def _is_free(
    placed: Sequence[tuple[float, float, float, float]], x: float, y: float, w: float, h: float
) -> bool:
    return all(
        x > left + width + _GAP
        or left > x + w + _GAP
        or y > top + height + _GAP
        or top > y + h + _GAP
        for left, top, width, height in placed
    )


def _shape(x: float, y: float, width: float, height: float, *, ellipse: bool) -> Mask:
    rows, columns = np.indices((SIDE, SIDE)) + 0.5
    u, v = 2 * (columns - x) / width - 1, 2 * (rows - y) / height - 1
    mask: Mask = (np.hypot(u, v) < 1) if ellipse else (np.maximum(abs(u), abs(v)) < 1)
    return mask


def _filling(split: str, label: int, position: float) -> npt.NDArray[np.float64]:
    """A texture, ``(SIDE, SIDE)`` tones in 0..1: images of the built-in set side by side."""
    kind = "train" if split == "trainval" else "test"
    tiles = math.ceil(SIDE / textures.IMAGE_SIZE)
    num_classes = len(textures.CLASS_NAMES)
    members = textures.SPLIT_SIZES[kind] // num_classes
    first = int(position * members)
    index = [(first + tile) % members * num_classes + label - 1 for tile in range(tiles)]
    row = np.concatenate([textures.render(kind, i)[:, :, 0] for i in index], axis=1)
    plane: npt.NDArray[np.float64] = np.concatenate([row] * tiles)[:SIDE, :SIDE] / 255
    return plane


def write_scenes(folder: Path, splits: dict[str, int] | None = None) -> None:
    """Write ``VOCdevkit/VOC2007`` and ``annotations/instances_SPLIT.json`` for the same images.

    Args:
        folder: Created if missing; its files are overwritten.
        splits: Number of scenes of each split; None: `SPLITS`.
    """
    root = folder / "VOCdevkit" / "VOC2007"
    lists = [root / "ImageSets" / name for name in ("Main", "Segmentation")]
    parts = [root / name for name in ("JPEGImages", "Annotations", "SegmentationClass")]
    for part in (*parts, *lists):
        part.mkdir(parents=True, exist_ok=True)
    (folder / "annotations").mkdir(exist_ok=True)
    categories = [
        {"id": label, "name": name, "keypoints": list(KEYPOINTS)}
        for label, name in enumerate(CLASSES, start=1)
    ]
    for split, count in (splits or SPLITS).items():
        ids = [f"{_SPLIT_CODES[split]}{index:05d}" for index in range(count)]
        content: dict[str, Any] = {"images": [], "annotations": [], "categories": categories}
        for index, image_id in enumerate(ids):
            pixels, objects = draw_scene(split, index)
            Image.fromarray(pixels).save(root / "JPEGImages" / f"{image_id}.jpg", quality=95)
            _write_xml(root / "Annotations" / f"{image_id}.xml", objects)
            _write_class_map(root / "SegmentationClass" / f"{image_id}.png", objects)
            _add_to_coco(content, image_id, objects)
        for part in lists:
            (part / f"{split}.txt").write_text("".join(f"{image_id}\n" for image_id in ids))
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def _write_xml(path: Path, objects: Sequence[Object]) -> None:
    root = ElementTree.Element("annotation")
    size = ElementTree.SubElement(root, "size")
    for name, value in (("width", SIDE), ("height", SIDE), ("depth", 3)):
        ElementTree.SubElement(size, name).text = str(value)
    for one in objects:
        item = ElementTree.SubElement(root, "object")
        ElementTree.SubElement(item, "name").text = CLASSES[one.label - 1]
        ElementTree.SubElement(item, "difficult").text = "0"
        x1, y1, x2, y2 = one.box
        box = ElementTree.SubElement(item, "bndbox")
        for name, value in (("xmin", x1 + 1), ("ymin", y1 + 1), ("xmax", x2), ("ymax", y2)):
            ElementTree.SubElement(box, name).text = str(value)
    ElementTree.ElementTree(root).write(path)


def _write_class_map(path: Path, objects: Sequence[Object]) -> None:
    indices = np.zeros((SIDE, SIDE), np.uint8)
    for one in objects:
        indices[one.mask] = one.label
    image = Image.fromarray(indices)
    image.putpalette([level for i in range(256) for level in (37 * i % 256, 91 * i % 256, i)])
    image.save(path)


def _add_to_coco(content: dict[str, Any], image_id: str, objects: Sequence[Object]) -> None:
    content["images"].append(
        {"id": int(image_id), "file_name": f"{image_id}.jpg", "height": SIDE, "width": SIDE}
    )
    for one in objects:
        x1, y1, x2, y2 = one.box
        content["annotations"].append(
            {
                "id": len(content["annotations"]) + 1,
                "image_id": int(image_id),
                "category_id": one.label,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": int(one.mask.sum()),
                "iscrowd": 0,
                "segmentation": {"size": [SIDE, SIDE], "counts": run_lengths(one.mask)},
                "keypoints": [value for x, y in one.keypoints for value in (x, y, 2)],
                "num_keypoints": len(KEYPOINTS),
            }
        )


def run_lengths(mask: Mask) -> list[int]:
    """Uncompressed run lengths in COCO's format: column by column, zeros first."""
    flat = np.concatenate([[False], mask.T.reshape(-1)])
    edges = np.flatnonzero(np.diff(flat.astype(np.int8)))
    return [int(length) for length in np.diff([0, *edges, mask.size])]


def main() -> None:
    """Write the scenes to the folder given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    write_scenes(folder)
    counts = ", ".join(f"{count} {split}" for split, count in SPLITS.items())
    print(f"{folder}: {counts} scenes, in VOCdevkit/ and annotations/")  # noqa: T201


if __name__ == "__main__":
    main()
