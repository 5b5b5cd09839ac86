"""Read Pascal VOC as unpacked: ``VOCdevkit/VOC2007/{JPEGImages,Annotations,ImageSets,...}``.

VOC counts pixels from 1 and includes both ends. Boxes here are half open from 0, so 1 is subtracted
from the upper left corner only.
"""

from pathlib import Path
from xml.etree import ElementTree

from PIL import Image

from fastmoco.data.images import FORMATS
from fastmoco.detection.annotations import (
    UNREADABLE,
    AnnotationError,
    Instance,
    Scene,
    SceneSet,
    check_images,
    checked_box,
    checked_side,
)
from fastmoco.errors import UsageError, nearest_name
from fastmoco.files import regular_file

MAX_BYTES = 1 << 20  # of one image; those of VOC have some thousand
VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train",
    "tvmonitor",
)  # fmt: skip


def read_voc(
    root: Path, *, years: str, split: str, classes: tuple[str, ...] = (), segment: bool = False
) -> SceneSet:
    """Read the annotations of a split of one or more years.

    Args:
        root: The folder VOCdevkit, or the folder of one year in it.
        years: Years such as ``07``, ``2012`` or ``07+12``.
        split: A list in ``ImageSets/Main``, with `segment` in ``ImageSets/Segmentation``.
        classes: Names in the order of their labels; empty: VOC's 20.
        segment: Read class maps instead of boxes.

    Raises:
        UsageError: If a folder or a list is missing.
        AnnotationError: If an annotation or an image is missing or broken.
    """
    names = classes or VOC_CLASSES
    scenes = []
    for year in years.split("+"):
        folder = _year_folder(root, year)
        for image_id in _image_ids(folder, split, "Segmentation" if segment else "Main"):
            scenes.append(
                _map_scene(folder, image_id) if segment else _box_scene(folder, image_id, names)
            )
    found = SceneSet(name=f"{root} ({years} {split})", classes=names, scenes=scenes)
    check_images(found.scenes, "data.train_split or data.test_split to a list without it")
    return found


def _year_folder(root: Path, year: str) -> Path:
    full = year if len(year) == 4 else f"20{year:0>2}"
    for folder in (root / f"VOC{full}", root):
        if folder.name == f"VOC{full}" and (folder / "ImageSets").is_dir():
            return folder
    raise UsageError(
        f"{root / f'VOC{full}'} is missing or has no ImageSets; set data.train and data.test to "
        "the folder VOCdevkit, and data.train_years and data.test_years to years in it, such as 07"
    )


def _image_ids(folder: Path, split: str, kind: str) -> list[str]:
    path = folder / "ImageSets" / kind / f"{split}.txt"
    if not path.is_file():
        known = sorted(file.stem for file in path.parent.glob("*.txt") if "_" not in file.stem)
        raise UsageError(f"{path} is missing{nearest_name(split, known)}")
    lines = path.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    ids = [words[0] for line in lines if (words := line.split())]
    if not ids:
        raise UsageError(f"{path} lists no image")
    return ids


def _map_scene(folder: Path, image_id: str) -> Scene:
    path = folder / "SegmentationClass" / f"{image_id}.png"
    image = folder / "JPEGImages" / f"{image_id}.jpg"
    width, height = _image_size(image, folder / "ImageSets" / "Segmentation")
    return Scene(image=image, height=height, width=width, source=str(path), class_map=path)


def _image_size(image: Path, source: Path) -> tuple[int, int]:
    try:
        with Image.open(regular_file(image), formats=FORMATS) as header:
            return header.size
    except FileNotFoundError as error:
        raise AnnotationError(f"{image} is missing, but {source} lists it") from error
    except UNREADABLE as error:
        raise AnnotationError(f"{image} is not a readable image") from error


def _box_scene(folder: Path, image_id: str, names: tuple[str, ...]) -> Scene:
    path = folder / "Annotations" / f"{image_id}.xml"
    image = folder / "JPEGImages" / f"{image_id}.jpg"
    try:
        root = _parsed(regular_file(path))
    except FileNotFoundError as error:
        raise AnnotationError(f"{path} is missing, but ImageSets lists {image_id}") from error
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise AnnotationError(f"{path} is not valid XML ({error})") from error
    width, height = (
        checked_side(_number(root, f"size/{side}", path), f"{path}: {side}")
        for side in ("width", "height")
    )
    scene = Scene(image=image, height=height, width=width, source=str(path))
    for item in root.iterfind("object"):
        scene.instances.append(_instance(item, scene, path, names))
    return scene


def _parsed(path: Path) -> ElementTree.Element:
    """The root of an annotation; one with entities, which can stand for gigabytes, is refused."""
    with path.open("rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"it is larger than {MAX_BYTES:,} bytes")
    if b"<!ENTITY" in data.replace(b"\0", b""):  # also in UTF-16
        raise ValueError("it declares entities")
    return ElementTree.fromstring(data)


def _instance(
    item: ElementTree.Element, scene: Scene, path: Path, names: tuple[str, ...]
) -> Instance:
    name = (item.findtext("name") or "").strip()
    if name not in names:
        raise AnnotationError(
            f"{path}: class {name!r} is none of the {len(names)} known"
            f"{nearest_name(name, list(names))} (set data.classes=[...] for other classes)"
        )
    x1, y1, x2, y2 = (
        _number(item, f"bndbox/{edge}", path) for edge in ("xmin", "ymin", "xmax", "ymax")
    )
    box = checked_box((x1 - 1, y1 - 1, x2, y2), scene, str(path))
    difficult = (item.findtext("difficult") or "0").strip() == "1"
    return Instance(box=box, label=names.index(name) + 1, ignored=difficult)


def _number(item: ElementTree.Element, tags: str, path: Path) -> float:
    text = item.findtext(tags)
    try:
        return float(text or "")
    except ValueError as error:
        problem = "is missing" if text is None else f"is {text!r}, which is not a number"
        raise AnnotationError(f"{path}: <{tags.replace('/', '><')}> {problem}") from error
