"""COCO: one JSON file of boxes, masks and keypoints, beside a folder of images."""

from pathlib import Path
from typing import Any

from fastmoco.detection.annotations import (
    AnnotationError,
    Instance,
    Scene,
    SceneSet,
    check_images,
    checked_box,
    checked_number,
    checked_side,
)
from fastmoco.errors import UsageError
from fastmoco.files import regular_file
from fastmoco.parsing import parse_json


def read_coco(path: Path, *, images: Path | None, option: str) -> SceneSet:
    """Read an annotation file.

    Args:
        path: Annotation file, such as ``annotations/instances_train2017.json``.
        images: Folder of the images; None: the folder beside ``annotations`` that the end of the
            file's name gives (``train2017``).
        option: Option that sets `images`, for messages.

    Raises:
        UsageError: If the folder of images is missing.
        AnnotationError: If the file is broken, or an image is missing.
    """
    content = _read_json(path)
    folder = images or path.parent.parent / path.stem.rsplit("_", 1)[-1]
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is not a folder; set {option} to the folder of the images of {path}"
        )
    try:
        found = _scene_set(path, folder, content)
    except (KeyError, TypeError, IndexError, AttributeError, ValueError) as error:
        if isinstance(error, AnnotationError):
            raise
        raise AnnotationError(
            f"{path} is not in COCO's annotation format ({type(error).__name__}: {error})"
        ) from error
    if not found.scenes:
        raise AnnotationError(f"{path} lists no image")
    check_images(found.scenes, option)
    return found


def _read_json(path: Path) -> Any:
    if not path.is_dir():
        regular_file(path)
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except IsADirectoryError as error:
        raise UsageError(
            f"{path} is a folder; with layout=coco give the annotation file, such as "
            "annotations/instances_train2017.json"
        ) from error
    except ValueError as error:
        raise AnnotationError(f"{path} is not valid JSON ({error})") from error


def _scene_set(path: Path, folder: Path, content: Any) -> SceneSet:
    categories = sorted(content["categories"], key=lambda category: category["id"])
    labels = {category["id"]: label for label, category in enumerate(categories, start=1)}
    scenes = {
        image["id"]: Scene(
            image=folder / image["file_name"],
            height=checked_side(image["height"], f"{path}: height of image {image['id']}"),
            width=checked_side(image["width"], f"{path}: width of image {image['id']}"),
            source=str(path),
        )
        for image in content["images"]
    }
    points = next((tuple(c["keypoints"]) for c in categories if c.get("keypoints")), ())
    for annotation in content["annotations"]:
        _add_instance(annotation, scenes, labels, path, len(points))
    return SceneSet(
        name=str(path),
        classes=tuple(_checked_name(category["name"], path) for category in categories),
        scenes=[scenes[key] for key in sorted(scenes)],
        keypoint_names=points,
    )


def _checked_name(name: Any, path: Path) -> str:
    if not isinstance(name, str):
        raise AnnotationError(f"{path}: the category {str(name)[:80]} is not named by a text")
    return name


def _add_instance(
    annotation: Any, scenes: dict[Any, Scene], labels: dict[Any, int], path: Path, num_points: int
) -> None:
    source = f"{path}: annotation {annotation.get('id', '?')}"
    if (category := annotation["category_id"]) not in labels:
        raise AnnotationError(
            f"{source} has category_id {category}, which categories does not list"
        )
    if (image := annotation["image_id"]) not in scenes:
        raise AnnotationError(f"{source} has image_id {image}, which images does not list")
    scene, area = scenes[image], annotation.get("area")
    x, y, width, height = (checked_number(v, f"{source}: bbox") for v in annotation["bbox"])
    scene.instances.append(
        Instance(
            box=checked_box((x, y, x + width, y + height), scene, source),
            label=labels[category],
            ignored=bool(annotation.get("iscrowd", 0)),
            mask=annotation.get("segmentation"),
            area=None if area is None else checked_number(area, f"{source}: area"),
            keypoints=_keypoints(annotation, num_points, source),
        )
    )


def _keypoints(
    annotation: Any, num_points: int, source: str
) -> list[tuple[float, float, float]] | None:
    if not num_points:
        return None
    given = annotation.get("keypoints") or [0] * (3 * num_points)
    flat = [checked_number(value, f"{source}: keypoints") for value in given]
    if len(flat) != 3 * num_points:
        raise AnnotationError(f"{source} has {len(flat)} keypoint values, not 3 x {num_points}")
    return list(zip(flat[0::3], flat[1::3], flat[2::3], strict=True))
