"""Annotation files of detection that are damaged or hostile: one line that names the file."""

import tracemalloc

import pytest

from fastmoco.detection.annotations import AnnotationError
from fastmoco.detection.coco import read_coco
from fastmoco.detection.masks import instance_mask
from fastmoco.detection.voc import read_voc
from tests.faults import zoo_annotations
from tests.optional import require

HOSTILE = list(zoo_annotations.cases())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("annotated")
    zoo_annotations.write_image(root)
    return root


def read(folder, name, data):
    """Read a file by its format, and its masks; returns its path."""
    images = folder / "VOC2007/JPEGImages"
    path = folder / ("a.json" if name.startswith("COCO") else "VOC2007/Annotations/a.xml")
    path.write_bytes(data)
    try:
        if name.startswith("VOC"):
            read_voc(folder, years="07", split="train", classes=("cat",))
        else:
            (scene,) = read_coco(path, images=images, option="data.train_images").scenes
            if "mask:" in name:
                require("faster_coco_eval")
                instance_mask(scene.instances[0], scene)
    finally:
        assert tracemalloc.get_traced_memory()[1] < 50 << 20
    return path


@pytest.mark.parametrize(("name", "data", "word"), HOSTILE, ids=[case[0] for case in HOSTILE])
def test_a_hostile_file_is_one_line_that_names_it(folder, name, data, word):
    tracemalloc.start()
    try:
        with pytest.raises(AnnotationError, match=word) as caught:
            read(folder, name, data)
    finally:
        tracemalloc.stop()
    message = str(caught.value)
    assert "a.json" in message or "a.xml" in message
    assert len(message) < 600


def test_the_files_without_a_fault_are_read(folder):
    read(folder, "COCO: mask: sound", zoo_annotations._coco("images"))
    read(folder, "VOC", zoo_annotations.VOC.encode())
    assert len({case[0] for case in HOSTILE}) >= 40
