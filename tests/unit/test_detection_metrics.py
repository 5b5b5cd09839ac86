"""Average precision and mean IoU: exact on planted predictions, equal to pycocotools."""

import contextlib
import copy
import io
import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from pycocotools.mask import encode

from fastmoco.detection.annotations import Instance, Scene, SceneSet
from fastmoco.detection.masks import instance_mask
from fastmoco.detection.metrics import Measurement
from fastmoco.detection.scenes import CLASSES, KEYPOINTS, draw_scene, run_lengths
from fastmoco.detection.settings import AnnotationFormat, DetectConfig, DetectionTask
from fastmoco.detection.voc_metric import (
    Found,
    Truth,
    average_precision,
    overlaps,
    voc_average_precision,
)

VOC = DetectConfig(layout=AnnotationFormat.voc)


def drawn_set(count: int = 6, *, crowds: bool = False) -> SceneSet:
    """Scenes in memory; with `crowds` the first object of every other one is ignored."""
    scenes = []
    for index in range(count):
        instances = [
            Instance(
                box=tuple(float(v) for v in one.box),
                label=one.label,
                ignored=crowds and place == 0 and index % 2 == 0,
                mask={"size": list(one.mask.shape), "counts": run_lengths(one.mask)},
                area=float(one.mask.sum()),
                keypoints=[(x, y, 2.0) for x, y in one.keypoints],
            )
            for place, one in enumerate(draw_scene("test", index)[1])
        ]
        path = Path(f"{index}.jpg")
        scenes.append(Scene(image=path, height=160, width=160, source="x", instances=instances))
    return SceneSet(name="drawn", classes=CLASSES, scenes=scenes, keypoint_names=KEYPOINTS)


def perfect(scene: Scene) -> dict[str, torch.Tensor]:
    """What a detector without fault sees: every object that is not ignored."""
    kept = [one for one in scene.instances if not one.ignored]
    return {
        "boxes": torch.tensor([one.box for one in kept]).reshape(-1, 4),
        "labels": torch.tensor([one.label for one in kept], dtype=torch.int64),
        "scores": torch.ones(len(kept)),
        "masks": torch.tensor(np.array([instance_mask(o, scene) for o in kept]))[:, None].float(),
        "keypoints": torch.tensor([one.keypoints for one in kept]),
    }


def measured(data: SceneSet, cfg: DetectConfig, predictions) -> dict:
    measurement = Measurement(data, cfg)
    for scene, prediction in zip(data.scenes, predictions, strict=True):
        measurement.add(scene, prediction)
    return measurement.result()


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize(
    "task", [DetectionTask.boxes, DetectionTask.masks, DetectionTask.keypoints]
)
def test_a_detector_without_fault_has_all_of_it(task, crowds):
    data = drawn_set(crowds=crowds)
    cfg = DetectConfig(layout=AnnotationFormat.coco, task=task)
    result = measured(data, cfg, [perfect(scene) for scene in data.scenes])
    figures = {name: value for name, value in result.items() if name != "per_class"}
    assert len(figures) == (3 if task is DetectionTask.boxes else 6)
    assert figures == pytest.approx(dict.fromkeys(figures, 100.0))
    seen = {CLASSES[i.label - 1] for s in data.scenes for i in s.instances if not i.ignored}
    assert result["per_class"] == pytest.approx(dict.fromkeys(seen, 100.0))


def one_class(instances_by_image) -> SceneSet:
    scenes = [
        Scene(image=Path(str(i)), height=100, width=100, source="x", instances=instances)
        for i, instances in enumerate(instances_by_image)
    ]
    return SceneSet(name="planted", classes=("cat",), scenes=scenes)


def prediction(*rows) -> dict[str, torch.Tensor]:
    """Rows of ``(score, x1, y1, x2, y2)``, of class 1."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    labels = torch.ones(len(table), dtype=torch.int64)
    return {"boxes": table[:, 1:], "labels": labels, "scores": table[:, 0]}


def test_planted_hits_and_misses_give_the_figures_of_the_rule():
    box = (10.0, 10.0, 50.0, 50.0)
    data = one_class([[Instance(box=box, label=1)], [Instance(box=box, label=1)]])
    # By falling score: a false one, a hit of IoU 0.8, and nothing on the second image.
    found = [prediction((0.9, 60, 60, 90, 90), (0.8, 10, 10, 42, 50)), prediction()]
    result = measured(data, VOC, found)
    # Recall 1/2 at precision 1/2: 51 of 101 recalls, 6 of 11, at the 7 overlaps up to 0.8.
    assert result["ap50"] == result["ap75"] == pytest.approx(100 * 51 / 101 / 2)
    assert result["ap"] == pytest.approx(100 * 51 / 101 / 2 * 7 / 10)
    assert result["voc07"]["ap50"] == pytest.approx(100 * 6 / 11 / 2)
    assert result["voc07"]["ap"] == pytest.approx(100 * 6 / 11 / 2 * 7 / 10)


def test_difficult_objects_are_neither_missed_nor_wrong():
    box, other = (10.0, 10.0, 50.0, 50.0), (60.0, 60.0, 90.0, 90.0)
    data = one_class([[Instance(box=box, label=1), Instance(box=other, label=1, ignored=True)]])
    for found in ([(0.5, *box)], [(0.9, *other), (0.5, *box)], [(0.9, *other), (0.5, *box)]):
        result = measured(data, VOC, [prediction(*found)])
        assert result["ap50"] == result["voc07"]["ap50"] == pytest.approx(100.0)
    result = measured(data, VOC, [prediction((0.9, 0, 0, 9, 9), (0.5, *box))])
    assert result["ap50"] == result["voc07"]["ap50"] == pytest.approx(50.0)


def test_nothing_found_and_nothing_there():
    data = one_class([[Instance(box=(1.0, 1.0, 9.0, 9.0), label=1)]])
    result = measured(data, VOC, [prediction()])
    assert (result["ap"], result["ap50"], result["voc07"]["ap50"]) == (0, 0, 0)
    result = measured(one_class([[]]), VOC, [prediction((0.9, 1, 1, 9, 9))])
    assert (result["ap"], result["voc07"]["ap"]) == (0, 0)


def noisy_predictions(data: SceneSet, seed: int = 0):
    """Objects moved, missed, found twice, of another class, or invented, with random scores."""
    random = np.random.default_rng(seed)
    for scene in data.scenes:
        rows = []
        for one in scene.instances * 2:
            if random.random() < 0.2:
                continue
            shift = random.normal(0, 3, 4)
            box = np.clip(np.array(one.box) + shift, 0, 160)
            label = one.label if random.random() < 0.8 else 1 + random.integers(len(CLASSES))
            points = np.array(one.keypoints)
            points[:, :2] += random.normal(0, 3, 2)
            mask = np.zeros((160, 160), np.uint8)
            x1, y1, x2, y2 = box.round().astype(int)
            mask[y1:y2, x1:x2] = instance_mask(one, scene)[y1:y2, x1:x2]
            rows.append((box, label, random.random(), mask, points))
        for _ in range(3):
            x, y = random.random(2) * 100
            mask = np.zeros((160, 160), np.uint8)
            mask[int(y) : int(y) + 40, int(x) : int(x) + 40] = 1
            points = random.random((3, 3)) * 100
            box = np.array([x, y, x + 40, y + 40])
            rows.append((box, 1 + random.integers(len(CLASSES)), random.random(), mask, points))
        boxes, labels, scores, masks, points = map(np.array, zip(*rows, strict=True))
        yield {
            "boxes": torch.tensor(boxes, dtype=torch.float32),
            "labels": torch.tensor(labels.astype(np.int64)),
            "scores": torch.tensor(scores, dtype=torch.float32),
            "masks": torch.tensor(masks)[:, None].float(),
            "keypoints": torch.tensor(points, dtype=torch.float32),
        }


def pycocotools_figures(data: SceneSet, predictions, kind: str) -> list[float]:
    """AP, AP50, AP75 in percent by the reference's own code."""
    annotations, results = [], []
    for number, (scene, found) in enumerate(zip(data.scenes, predictions, strict=True), start=1):
        for one in scene.instances:
            x1, y1, x2, y2 = one.box
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": one.label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": one.area,
                    "iscrowd": int(one.ignored),
                    "segmentation": encode(np.asfortranarray(instance_mask(one, scene))),
                    "keypoints": list(itertools.chain(*one.keypoints)),
                    "num_keypoints": 3,
                }
            )
        for i in range(len(found["labels"])):
            x1, y1, x2, y2 = found["boxes"][i].tolist()
            result = {
                "image_id": number,
                "category_id": int(found["labels"][i]),
                "score": float(found["scores"][i]),
            }
            what = {
                "bbox": ("bbox", [x1, y1, x2 - x1, y2 - y1]),
                "segm": (
                    "segmentation",
                    encode(np.asfortranarray(found["masks"][i, 0].numpy().astype(np.uint8))),
                ),
                "keypoints": ("keypoints", found["keypoints"][i].reshape(-1).tolist()),
            }
            result |= [what[kind]]
            results.append(result)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "images": [{"id": i + 1, "height": 160, "width": 160} for i in range(len(data.scenes))],
            "annotations": annotations,
            "categories": [{"id": i, "name": n} for i, n in enumerate(CLASSES, start=1)],
        }
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(results), kind)
        if kind == "keypoints":
            evaluation.params.kpt_oks_sigmas = np.full(3, 0.05)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return [100 * float(value) for value in evaluation.stats[:3]]


@pytest.mark.parametrize("crowds", [False, True])
@pytest.mark.parametrize(
    ("task", "kind", "name"),
    [
        (DetectionTask.boxes, "bbox", "ap"),
        (DetectionTask.masks, "segm", "mask_ap"),
        (DetectionTask.keypoints, "keypoints", "keypoint_ap"),
    ],
)
def test_figures_equal_those_of_pycocotools(task, kind, name, crowds):
    data = drawn_set(12, crowds=crowds)
    predictions = list(noisy_predictions(data))
    cfg = DetectConfig(layout=AnnotationFormat.coco, task=task)
    result = measured(data, cfg, copy.deepcopy(predictions))
    ours = [result[f"{name}{cut}"] for cut in ("", "50", "75")]
    theirs = pycocotools_figures(data, predictions, kind)
    assert 5 < theirs[0] < theirs[1] < 95
    # Boxes pass through float32 in torchmetrics.
    assert ours == pytest.approx(theirs, abs=1e-4)


def brute_force_voc(truth, found, overlap: float) -> float:
    """The devkit's rule word by word: one detection after the other, every recall level anew."""
    entries = sorted(
        ((s, i, b) for i, f in found for s, b in zip(f.scores, f.boxes, strict=True)),
        key=lambda entry: -entry[0],
    )
    total = sum(1 for t in truth.values() for d in t.difficult if not d)
    used, points, right, wrong = set(), [], 0, 0
    for _, image, box in entries:
        best, best_place = 0.0, None
        for place, other in enumerate(truth[image].boxes if image in truth else []):
            width = min(box[2], other[2]) - max(box[0], other[0])
            height = min(box[3], other[3]) - max(box[1], other[1])
            if width > 0 and height > 0:
                area = (box[2] - box[0]) * (box[3] - box[1])
                area += (other[2] - other[0]) * (other[3] - other[1])
                share = width * height / (area - width * height)
                if share > best:
                    best, best_place = share, place
        if best >= overlap and truth[image].difficult[best_place]:
            continue
        if best >= overlap and (image, best_place) not in used:
            used.add((image, best_place))
            right += 1
        else:
            wrong += 1
        points.append((right / total, right / (right + wrong)))
    levels = np.arange(0, 1.1, 0.1)  # 0.30000000000000004 and the like, as everyone has them
    return sum(max((p for r, p in points if r >= level), default=0) for level in levels) / 11


@pytest.mark.parametrize("seed", range(6))
def test_the_devkits_rule_equals_brute_force(seed):
    random = np.random.default_rng(seed)
    truth, found = {}, []
    for image in range(8):
        corners = random.integers(0, 60, (4, 2)).astype(float)
        boxes = np.concatenate([corners, corners + random.integers(10, 40, (4, 2))], axis=1)
        if image != 3:
            truth[image] = Truth(boxes=boxes, difficult=random.random(4) < 0.3)
        moved = np.repeat(boxes, 2, axis=0) + random.normal(0, 4, (8, 4))
        found.append((image, Found(boxes=moved, scores=random.random(8))))
    for overlap in (0.5, 0.75):
        expected = brute_force_voc(truth, found, overlap)
        assert 0.001 < expected < 0.99
        assert average_precision(truth, found, overlap) == pytest.approx(expected, abs=1e-12)


def test_the_devkits_mean_is_over_classes_with_objects():
    box = np.array([[0.0, 0.0, 10.0, 10.0]])
    truth = [
        {1: Truth(boxes=box, difficult=np.array([False]))},
        {
            2: Truth(boxes=box, difficult=np.array([True])),
            3: Truth(boxes=box, difficult=np.array([False])),
        },
    ]
    found = [{1: Found(boxes=box, scores=np.ones(1))}, {4: Found(boxes=box, scores=np.ones(1))}]
    figures = voc_average_precision(truth, found)
    assert figures == pytest.approx({"ap": 50.0, "ap50": 50.0, "ap75": 50.0})
    others = np.array([[5.0, 0.0, 15.0, 10.0], [20.0, 0.0, 30.0, 9.0]])
    assert overlaps(box[0], others).tolist() == pytest.approx([1 / 3, 0.0])


def test_mean_iou_is_over_all_pixels_and_leaves_unknown_ones_out(tmp_path):
    from PIL import Image

    truth = np.zeros((2, 4, 6), np.uint8)
    truth[0, :, 3:] = 1
    truth[1, :2] = 2
    truth[1, 3] = 255
    guess = truth.astype(np.int64)
    guess[0, :, 2] = 1  # 4 pixels of the background taken for class 1
    guess[1, 0] = 0  # 6 of class 2 for the background
    guess[1, 3] = 3  # unknown: does not count
    scenes = []
    for index, one in enumerate(truth):
        path = tmp_path / f"{index}.png"
        Image.fromarray(one).save(path)
        scenes.append(Scene(image=path, height=4, width=6, source="x", class_map=path))
    data = SceneSet(name="maps", classes=("a", "b", "c"), scenes=scenes)
    cfg = replace(VOC, task=DetectionTask.segment)
    result = measured(data, cfg, [{"classes": torch.tensor(one)} for one in guess])
    background = (8 + 6) / (8 + 6 + 4 + 6)
    shares = {"background": background, "a": 12 / 16, "b": 6 / 12}
    assert result["per_class"] == pytest.approx({k: 100 * v for k, v in shares.items()})
    assert result["mean_iou"] == pytest.approx(100 * np.mean(list(shares.values())))
