"""Annotations as VOC and COCO have them, and what is drawn from them for training."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from fastmoco.detection.annotations import AnnotationError
from fastmoco.detection.coco import read_coco
from fastmoco.detection.masks import instance_mask, read_class_map
from fastmoco.detection.samples import (
    flipped,
    read_image,
    step_places,
    training_batches,
    training_sample,
)
from fastmoco.detection.scenes import CLASSES, KEYPOINTS, draw_scene
from fastmoco.detection.settings import DetectConfig, DetectionTask
from fastmoco.detection.voc import VOC_CLASSES, read_voc
from fastmoco.draws.host import draw_keys
from fastmoco.errors import UsageError
from fastmoco.ranks import ALONE, Ranks
from tests.detection_data import write_small_scenes

IMAGES = "VOCdevkit/VOC2007/JPEGImages"
ANNOTATIONS = "VOCdevkit/VOC2007/Annotations"
FIRST = "1100000"


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    return write_small_scenes(tmp_path_factory.mktemp("scenes"), train=5, test=3)


def read_scenes_voc(folder: Path, **options):
    options = {"years": "07", "split": "trainval", "classes": CLASSES, **options}
    return read_voc(folder / "VOCdevkit", **options)


def read_scenes_coco(folder: Path, split: str = "trainval"):
    path = folder / f"annotations/instances_{split}.json"
    return read_coco(path, images=folder / IMAGES, option="data.train_images")


def test_voc_and_coco_of_the_same_scenes_are_equal_and_as_drawn(scenes):
    voc, coco = read_scenes_voc(scenes), read_scenes_coco(scenes)
    assert voc.classes == coco.classes == CLASSES
    assert coco.keypoint_names == KEYPOINTS
    for index, (one, other) in enumerate(zip(voc.scenes, coco.scenes, strict=True)):
        _, drawn = draw_scene("trainval", index)
        assert [i.box for i in one.instances] == [i.box for i in other.instances]
        assert [i.box for i in one.instances] == [o.box for o in drawn]
        assert [i.label for i in one.instances] == [o.label for o in drawn]
        for instance, thing in zip(other.instances, drawn, strict=True):
            np.testing.assert_array_equal(instance_mask(instance, other), thing.mask)
            x1, y1, x2, y2 = thing.box
            assert thing.mask[y1:y2, x1:x2].any(axis=0).all()
            assert thing.mask[y1:y2, x1:x2].any(axis=1).all()
            assert thing.mask.sum() == thing.mask[y1:y2, x1:x2].sum()


def test_a_class_map_has_the_classes_where_they_were_drawn(scenes):
    data = read_scenes_voc(scenes, segment=True)
    for index, scene in enumerate(data.scenes):
        _, drawn = draw_scene("trainval", index)
        classes = read_class_map(scene.class_map, scene, data.num_classes)
        for thing in drawn:
            assert (classes[thing.mask] == thing.label).all()
        assert (classes > 0).sum() == sum(thing.mask.sum() for thing in drawn)


def test_voc_counts_from_one_and_marks_what_is_difficult(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("ImageSets/Main", "Annotations", "JPEGImages"):
        (root / name).mkdir(parents=True)
    (root / "ImageSets/Main/val.txt").write_text("a\n\n")
    Image.new("RGB", (50, 40)).save(root / "JPEGImages/a.jpg")
    things = "".join(
        f"<object><name>{name}</name><difficult>{difficult}</difficult><bndbox><xmin>1</xmin>"
        "<ymin>2</ymin><xmax>50</xmax><ymax>40</ymax></bndbox></object>"
        for name, difficult in (("person", 0), ("dog", 1))
    )
    (root / "Annotations/a.xml").write_text(
        f"<annotation><size><width>50</width><height>40</height></size>{things}</annotation>"
    )
    data = read_voc(tmp_path / "VOCdevkit", years="12", split="val")
    (scene,) = data.scenes
    assert [i.box for i in scene.instances] == [(0, 1, 50, 40)] * 2
    assert [VOC_CLASSES[i.label - 1] for i in scene.instances] == ["person", "dog"]
    assert [i.ignored for i in scene.instances] == [False, True]
    assert [len(data.to_learn_from(ignored_too=k).scenes[0].instances) for k in (0, 1)] == [1, 2]


def test_several_years_follow_each_other(scenes, tmp_path):
    shutil.copytree(scenes / "VOCdevkit", tmp_path / "VOCdevkit")
    shutil.copytree(tmp_path / "VOCdevkit/VOC2007", tmp_path / "VOCdevkit/VOC2012")
    both = read_scenes_voc(tmp_path, years="07+12")
    assert [s.image.parts[-3] for s in both.scenes] == ["VOC2007"] * 5 + ["VOC2012"] * 5
    with pytest.raises(UsageError, match=r"VOC2008 is missing.*data\.train_years"):
        read_scenes_voc(tmp_path, years="08")
    with pytest.raises(UsageError, match=r"trainvall\.txt is missing; did you mean trainval"):
        read_scenes_voc(tmp_path, split="trainvall")


def break_voc(folder: Path, how: str) -> None:
    path = folder / ANNOTATIONS / f"{FIRST}.xml"
    tree = ElementTree.parse(path)
    thing = tree.find("object")
    if how == "cut":
        path.write_text(path.read_text()[:-30])
        return
    if how == "no image":
        (folder / IMAGES / f"{FIRST}.jpg").unlink()
    elif how == "no annotation":
        path.unlink()
        return
    elif how == "class":
        thing.find("name").text = "stripe"
    elif how == "outside":
        thing.find("bndbox/xmax").text = "170"
    elif how == "upside down":
        thing.find("bndbox/ymin").text = "150"
    elif how == "no number":
        thing.find("bndbox/xmin").text = "left"
    elif how == "no box":
        thing.remove(thing.find("bndbox"))
    tree.write(path)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("cut", ["Annotations", FIRST, "is not valid XML"]),
        ("no image", ["JPEGImages", FIRST, "is missing"]),
        ("no annotation", ["Annotations", FIRST, "is missing"]),
        ("class", [FIRST, "'stripe' is none of the 6", "did you mean stripes", "data.classes"]),
        ("outside", [FIRST, "170", "not inside the image of 160 x 160"]),
        ("upside down", [FIRST, "not inside"]),
        ("no number", [FIRST, "<bndbox><xmin> is 'left'"]),
        ("no box", [FIRST, "<bndbox><xmin> is missing"]),
    ],
)
def test_broken_voc_is_one_line_that_names_the_file(tmp_path, scenes, how, words):
    shutil.copytree(scenes, tmp_path / "s")
    break_voc(tmp_path / "s", how)
    with pytest.raises(AnnotationError) as caught:
        read_scenes_voc(tmp_path / "s")
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda c: c.pop("images"), ["not in COCO's", "KeyError: 'images'"]),
        (
            lambda c: c["annotations"][0].update(bbox=[150, 0, 20, 5]),
            ["annotation 1", "not inside"],
        ),
        (lambda c: c["annotations"][0].update(category_id=9), ["annotation 1", "category_id 9"]),
        (lambda c: c["annotations"][0].update(image_id=9), ["annotation 1", "image_id 9"]),
        (lambda c: c["annotations"][0].update(keypoints=[1, 2]), ["annotation 1", "3 x 3"]),
        (lambda c: c["annotations"][0].pop("bbox"), ["not in COCO's", "KeyError: 'bbox'"]),
        (lambda c: c["images"][0].update(file_name="no.jpg"), ["no.jpg is missing"]),
        (lambda c: c.update(images=[], annotations=[]), ["lists no image"]),
    ],
)
def test_broken_coco_is_one_line_that_names_the_file(tmp_path, scenes, change, words):
    content = json.loads((scenes / "annotations/instances_trainval.json").read_text())
    change(content)
    path = tmp_path / "broken_trainval.json"
    path.write_text(json.dumps(content))
    with pytest.raises(AnnotationError) as caught:
        read_coco(path, images=scenes / IMAGES, option="data.train_images")
    for word in [*words, "broken_trainval.json"]:
        assert word in str(caught.value)


def test_other_files_than_coco_are_refused(tmp_path, scenes):
    cut = tmp_path / "annotations" / "cut_train.json"
    cut.parent.mkdir()
    cut.write_text('{"images": [')
    with pytest.raises(AnnotationError, match=r"cut_train\.json is not valid JSON"):
        read_coco(cut, images=None, option="data.train_images")
    with pytest.raises(UsageError, match="is a folder; with layout=coco give the annotation file"):
        read_coco(tmp_path, images=None, option="data.train_images")
    cut.write_text((scenes / "annotations/instances_test.json").read_text())
    with pytest.raises(UsageError, match=r"train is not a folder; set data\.train_images"):
        read_coco(cut, images=None, option="data.train_images")


def test_sets_without_boxes_and_images_of_another_size_are_refused(scenes):
    data = read_scenes_coco(scenes)
    empty = replace(data, scenes=[replace(scene, instances=[]) for scene in data.scenes])
    with pytest.raises(UsageError, match=r"instances_trainval\.json has no box to learn from"):
        empty.to_learn_from(ignored_too=False)
    with pytest.raises(AnnotationError, match=r"has 160 x 160 pixels, .* says 120 x 160"):
        read_image(replace(data.scenes[0], width=120))


def test_masks_that_cannot_be_read_are_refused(scenes):
    scene = read_scenes_coco(scenes).scenes[0]
    for mask in ([], None, [[1.0, 2.0]], {"size": [160, 160], "counts": "!!!"}, {"size": [9, 9]}):
        with pytest.raises(AnnotationError, match="mask"):
            instance_mask(replace(scene.instances[0], mask=mask), scene)
    for far in (1e9, torch.nan, -torch.inf):  # the library would walk there, pixel by pixel
        mask = [[10.0, 20.0, 30.0, far, 30.0, 50.0]]
        with pytest.raises(AnnotationError, match="far outside the image"):
            instance_mask(replace(scene.instances[0], mask=mask), scene)
    huge = {"size": [100_000, 100_000], "counts": [10**10]}
    with pytest.raises(AnnotationError, match=r"its run lengths are of \[100000, 100000\], not"):
        instance_mask(replace(scene.instances[0], mask=huge), scene)
    square = replace(scene.instances[0], mask=[[10.0, 20.0, 30.0, 20.0, 30.0, 50.0, 10.0, 50.0]])
    assert instance_mask(square, scene).sum() == 20 * 30


def sample_of(data, place, cfg, epoch=0):
    key = torch.from_numpy(draw_keys(cfg.seed, epoch, np.array([place])))
    return training_sample(data.scenes[place], data, key, cfg)


def test_a_view_moves_boxes_masks_and_keypoints_with_the_image(scenes):
    data = read_scenes_coco(scenes)
    flips = set()
    for epoch in range(4):
        for task in (DetectionTask.masks, DetectionTask.keypoints):
            cfg = DetectConfig(task=task, train_sizes=[80, 120], max_size=500)
            sample = sample_of(data, 1, cfg, epoch)
            height, width = sample.image.shape[1:]
            assert height == width
            assert height in (80, 120)
            boxes = sample.target["boxes"]
            scale = width / 160
            original = torch.tensor([i.box for i in data.scenes[1].instances]) * scale
            mirrored = not torch.allclose(boxes, original)
            flips.add(mirrored)
            if mirrored:
                original[:, [0, 2]] = width - original[:, [2, 0]]
            torch.testing.assert_close(boxes, original)
            if task is DetectionTask.masks:
                for box, mask in zip(boxes, sample.target["masks"], strict=True):
                    columns, rows = mask.any(0).nonzero()[:, 0], mask.any(1).nonzero()[:, 0]
                    found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
                    torch.testing.assert_close(torch.stack(found).float(), box, atol=1, rtol=0)
            else:
                points = sample.target["keypoints"]
                torch.testing.assert_close(points[:, 1, 0], boxes[:, 0])  # left_end stays left
                torch.testing.assert_close(points[:, 2, 0], boxes[:, 2])
    assert flips == {False, True}


def test_a_segment_crop_keeps_pixels_and_classes_together(scenes):
    data = read_scenes_voc(scenes, segment=True)
    cfg = DetectConfig(task=DetectionTask.segment, crop_size=200, scale_range=[1.0, 1.0])
    sample = sample_of(data, 2, cfg)
    image, classes = sample.image, sample.target["classes"]
    assert image.shape == (3, 200, 200)
    assert classes.shape == (200, 200)
    known = classes != 255
    assert known.sum() == 160 * 160
    original = read_image(data.scenes[2])
    inside = image[:, known].reshape(3, 160, 160)
    assert torch.equal(inside, original) or torch.equal(inside.flip(-1), original)
    small = sample_of(data, 2, replace(cfg, crop_size=64, scale_range=[0.5, 2.0]))
    assert small.image.shape == (3, 64, 64)
    assert small.target["classes"].dtype == torch.int64


def test_flipping_twice_changes_nothing():
    torch.manual_seed(0)
    image, target = torch.rand(3, 8, 12), {"boxes": torch.tensor([[1.0, 2.0, 5.0, 6.0]])}
    target["keypoints"] = torch.tensor([[[1.0, 2.0, 2.0], [0.0, 0.0, 0.0], [3.0, 4.0, 1.0]]])
    names = ("nose", "left_eye", "right_eye")
    once = flipped(image, target, names)
    assert once[1]["boxes"].tolist() == [[7.0, 2.0, 11.0, 6.0]]
    assert once[1]["keypoints"][0].tolist() == [[11, 2, 2], [9, 4, 1], [0, 0, 0]]
    twice = flipped(*once, names)
    assert torch.equal(twice[0], image)
    assert all(torch.equal(twice[1][name], target[name]) for name in target)


def test_the_stream_of_images_is_one_shuffled_pass_after_the_other():
    options = {"seed": 3, "num_images": 7, "global_batch_size": 4}
    places = [place for step in range(7) for place in step_places(step, **options)]
    assert [epoch for epoch, _ in places] == [p // 7 for p in range(28)]
    for epoch in range(4):
        assert sorted(image for e, image in places if e == epoch) == list(range(7))
    assert len({tuple(places[7 * e : 7 * e + 7]) for e in range(4)}) == 4
    halves = [step_places(2, **options, ranks=Ranks(rank, 2)) for rank in range(2)]
    assert halves[0] + halves[1] == step_places(2, **options)


def test_a_batch_is_the_same_from_any_start_and_number_of_threads(scenes):
    data = read_scenes_voc(scenes).to_learn_from(ignored_too=False)
    cfg = DetectConfig(train_sizes=[64, 96], max_size=200, global_batch_size=3)
    whole = list(training_batches(data, cfg, start=0, stop=5, num_threads=3, ranks=ALONE))
    late = list(training_batches(data, cfg, start=3, stop=5, num_threads=1, ranks=ALONE))
    assert len(whole) == 5
    for batch, other in zip(whole[3:], late, strict=True):
        for one, two in zip(batch, other, strict=True):
            assert torch.equal(one.image, two.image)
            assert torch.equal(one.target["boxes"], two.target["boxes"])
    assert len({s.image.shape for batch in whole for s in batch}) == 2
