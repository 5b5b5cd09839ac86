"""Convert masks in COCO's format (polygons, run lengths) and class maps to arrays.

The run-length code is faster-coco-eval's, which the extra ``[eval]`` installs.
"""

from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fastmoco.data.images import FORMATS
from fastmoco.detection.annotations import UNREADABLE, AnnotationError, Instance, Scene
from fastmoco.errors import UsageError
from fastmoco.files import regular_file

UNKNOWN = 255  # in a class map: VOC's void


def mask_library() -> ModuleType:
    """The module of faster-coco-eval for run-length masks.

    Raises:
        UsageError: If faster-coco-eval is not installed.
    """
    try:
        from faster_coco_eval import mask
    except ImportError as error:
        raise UsageError(
            f"masks need faster-coco-eval ({error}); pip install faster-coco-eval torchmetrics"
        ) from error
    module: ModuleType = mask
    return module


def instance_mask(instance: Instance, scene: Scene) -> npt.NDArray[np.uint8]:
    """The mask of an object, ``(height, width)`` uint8 of 0 and 1.

    Raises:
        AnnotationError: If it has none, or one that is neither polygons nor run lengths.
    """
    library = mask_library()
    try:
        _check_extent(instance.mask, scene.height, scene.width)
        runs = _run_lengths(library, instance.mask, scene.height, scene.width)
        mask: npt.NDArray[np.uint8] = np.asarray(library.decode(runs), np.uint8)
    except (TypeError, ValueError, KeyError, IndexError, RuntimeError) as error:
        raise AnnotationError(
            f"{scene.source}: an object of {scene.image.name} has no valid mask "
            f"({type(error).__name__}: {error}); correct it, or use task=boxes"
        ) from error
    if mask.shape != (scene.height, scene.width):
        raise AnnotationError(
            f"{scene.source}: a mask of {scene.image.name} has {mask.shape[1]} x {mask.shape[0]} "
            f"pixels, the image {scene.width} x {scene.height}"
        )
    return mask


def _check_extent(mask: Any, height: int, width: int) -> None:
    """Refuse sizes and corners that the library would ask memory for.

    Raises:
        ValueError: If run lengths are of another size, or a corner is far outside the image.
    """
    if isinstance(mask, dict):
        if list(mask["size"]) != [height, width]:
            raise ValueError(f"its run lengths are of {mask['size']}, not {[height, width]}")
        return
    corners = np.concatenate([np.asarray(polygon, np.float64).ravel() for polygon in mask])
    if not (np.abs(corners) <= 2 * max(height, width)).all():  # false for NaN too
        raise ValueError("a corner is far outside the image")


def _run_lengths(library: ModuleType, mask: Any, height: int, width: int) -> Any:
    if isinstance(mask, dict):
        if isinstance(mask["counts"], list):
            return library.frPyObjects(mask, height, width)
        return mask
    return library.merge(library.frPyObjects(mask, height, width))


def read_class_map(path: Path, scene: Scene, num_classes: int) -> npt.NDArray[np.uint8]:
    """Read a map of class indices, ``(height, width)`` uint8, 255 where unknown.

    Args:
        path: A palette or gray PNG.
        scene: Image of the map.
        num_classes: Number of classes, background included.

    Raises:
        AnnotationError: If it cannot be read, has another size than the image, or an unknown class.
    """
    try:
        with Image.open(regular_file(path), formats=FORMATS) as image:
            if image.mode not in ("P", "L") or image.size != (scene.width, scene.height):
                raise AnnotationError(
                    f"{path} has mode {image.mode} and {image.width} x {image.height} pixels; a "
                    f"class map must have mode P or L and {scene.width} x {scene.height} pixels"
                )
            indices = np.array(image)
    except UNREADABLE as error:
        raise AnnotationError(f"{path} is not a readable image") from error
    odd = np.unique(indices[(indices >= num_classes) & (indices != UNKNOWN)])
    if odd.size:
        raise AnnotationError(
            f"{path} has class {odd[0]}; allowed are 0 to {num_classes - 1} and {UNKNOWN}; "
            "set data.classes=[...] to the names of all classes"
        )
    result: npt.NDArray[np.uint8] = indices.astype(np.uint8, copy=False)
    return result
