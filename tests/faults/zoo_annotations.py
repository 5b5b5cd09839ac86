"""Hostile and damaged annotation files of detection, made by code: COCO's JSON and VOC's XML."""

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

from PIL import Image

Case = tuple[str, bytes, str]
"""Name, which begins with the format; the file's bytes; a word of the reason."""

SIDE = 8
SQUARE = [1, 1, 5, 1, 5, 5, 1, 5]
COCO = {
    "images": [{"id": 1, "file_name": "a.jpg", "height": SIDE, "width": SIDE}],
    "categories": [{"id": 1, "name": "cat"}],
    "annotations": [
        {
            "id": 7,
            "image_id": 1,
            "category_id": 1,
            "bbox": [1, 1, 4, 4],
            "area": 16,
            "iscrowd": 0,
            "segmentation": [SQUARE],
        }
    ],
}
VOC = """<annotation><size><width>8</width><height>8</height></size><object><name>cat</name>
<bndbox><xmin>2</xmin><ymin>2</ymin><xmax>5</xmax><ymax>5</ymax></bndbox></object></annotation>"""


def write_image(folder: Path) -> None:
    """The image that all of them are about, where both readers look for it."""
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / "VOC2007" / part).mkdir(parents=True)
    Image.new("RGB", (SIDE, SIDE)).save(folder / "VOC2007/JPEGImages/a.jpg")
    (folder / "VOC2007/ImageSets/Main/train.txt").write_text("a\n")


def cases() -> Iterator[Case]:
    """More than 40 files."""
    yield from _numbers()
    yield from _shapes()
    yield from _masks()
    yield from _coco_bytes()
    yield from _voc()


def _coco(part: str, **values: Any) -> bytes:
    content = deepcopy(COCO)
    content[part][0] |= values
    return json.dumps(content).encode()


def _numbers() -> Iterator[Case]:
    """Numbers that are none."""
    for name, bad in (
        ("infinite", float("inf")),
        ("NaN", float("nan")),
        ("a text", "3"),
        ("1e300", 1e300),
        ("true", True),
        ("null", None),
        ("a list", [3]),
    ):
        yield f"COCO: box with {name}", _coco("annotations", bbox=[1, 1, bad, 4]), "bbox is"
        if bad is not None:
            yield f"COCO: area {name}", _coco("annotations", area=bad), "area is"
        yield f"COCO: height {name}", _coco("images", height=bad), "height of image 1 is"
    yield "COCO: width of 10^12", _coco("images", width=10**12), "whole number from 1 to"
    yield "COCO: width of 1.5", _coco("images", width=1.5), "whole number from 1 to"
    yield "COCO: width 0", _coco("images", width=0), "whole number from 1 to"
    number = b'"width": ' + b"9" * 5_000
    yield "COCO: 5,000 digits", _coco("images").replace(b'"width": 8', number), "digits"


def _shapes() -> Iterator[Case]:
    """Values of another kind."""
    yield "COCO: a list", b"[]", "COCO's annotation format"
    yield "COCO: a number", b"5", "COCO's annotation format"
    yield (
        "COCO: annotations are texts",
        json.dumps(COCO | {"annotations": ["x"]}).encode(),
        "COCO's",
    )
    yield "COCO: box of 3", _coco("annotations", bbox=[1, 1, 4]), "COCO's annotation format"
    yield "COCO: box is a number", _coco("annotations", bbox=4), "COCO's annotation format"
    yield "COCO: id is a list", _coco("images", id=[1]), "COCO's annotation format"
    yield "COCO: file name is a number", _coco("images", file_name=3), "COCO's annotation format"
    yield "COCO: class is a list", _coco("categories", name=["a"]), "not named by a text"
    mixed = COCO | {"categories": [{"id": 1, "name": "a"}, {"id": "x", "name": "b"}]}
    yield "COCO: ids of two kinds", json.dumps(mixed).encode(), "COCO's annotation format"
    yield "COCO: missing image", _coco("images", file_name="../../../etc/none.jpg"), "is missing"


def _masks() -> Iterator[Case]:
    """Masks, which are decoded when they are needed; "mask:" marks these."""
    for name, mask in (
        ("100,000 pixels wide", {"size": [100_000, 100_000], "counts": [0, 5]}),
        ("longer than the image", {"size": [SIDE, SIDE], "counts": [0, 4_000_000_000]}),
        ("negative", {"size": [SIDE, SIDE], "counts": [-5, 69]}),
        ("without end", {"size": [SIDE, SIDE], "counts": "o" * 20}),
        ("size is a text", {"size": "88", "counts": [64]}),
        ("corner at 10^9", [[0, 0, 1e9, 0, 1e9, 1e9]]),
        ("corner at -10^8", [[0, 0, -1e8, 0, -1e8, -1e8]]),
        ("corner not a number", [[0, 0, float("nan"), 0, 1, 9]]),
        ("corners are texts", [["a", "b", "c", "d", "e", "f"]]),
        ("a number", 5),
        ("empty", []),
    ):
        yield f"COCO: mask: {name}", _coco("annotations", segmentation=mask), "no valid mask"


def _coco_bytes() -> Iterator[Case]:
    """What is no JSON."""
    yield "COCO: nested 100,000 deep", b"[" * 100_000, "nested too deeply"
    yield "COCO: cut", _coco("images")[:-9], "not valid JSON"
    yield "COCO: not UTF-8", b"\xff\xfe" + _coco("images"), "not valid JSON"
    yield "COCO: zeros", bytes(300), "not valid JSON"


def _voc() -> Iterator[Case]:
    """XML."""
    for name, old, new, word in (
        ("infinite box", ">5<", ">inf<", "not inside"),
        ("box not a number", ">5<", ">nan<", "not inside"),
        ("box is a word", ">5<", ">five<", "not a number"),
        ("width infinite", "<width>8", "<width>inf", "width is"),
        ("width not a number", "<width>8", "<width>nan", "width is"),
        ("width of 10^12", "<width>8", "<width>1e12", "width is"),
        ("width negative", "<width>8", "<width>-8", "width is"),
        ("class with escapes", ">cat<", ">&#x9b;2J<", "is none of"),
        ("no box", "bndbox", "box", "is missing"),
        ("unclosed", "</object>", "", "not valid XML"),
        (
            "unknown encoding",
            "<annotation>",
            '<?xml version="1.0" encoding="x"?><annotation>',
            "XML",
        ),
    ):
        yield f"VOC: {name}", VOC.replace(old, new).encode(), word
    laughs = "".join(f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12))
    bomb = f'<!DOCTYPE x [<!ENTITY a0 "ha">{laughs}]>' + VOC.replace("cat", "&a11;")
    yield "VOC: billion laughs", bomb.encode(), "declares entities"
    yield "VOC: billion laughs in UTF-16", bomb.encode("utf-16"), "declares entities"
    yield "VOC: 2 MB", b"<a>" + bytes(2 << 20), "larger than"
    outside = '<!DOCTYPE x [<!ENTITY f SYSTEM "file:///etc/passwd">]>' + VOC.replace("cat", "&f;")
    yield "VOC: file of the system", outside.encode(), "declares entities"
    yield "VOC: nested 100,000 deep", b"<a>" * 100_000, "not valid XML"
    yield "VOC: zeros", bytes(300), "not valid XML"
