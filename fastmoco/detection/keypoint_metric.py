"""Average precision of keypoints, by COCO's object keypoint similarity (faster-coco-eval)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from fastmoco.detection.annotations import Scene, SceneSet
from fastmoco.detection.settings import DetectConfig

COCO_KEYPOINTS = 17  # faster-coco-eval has their tolerances


def keypoint_precision(
    data: SceneSet, pairs: Sequence[tuple[Scene, dict[str, Tensor]]], cfg: DetectConfig
) -> list[float]:
    """AP, AP50 and AP75 of keypoints in percent."""
    from faster_coco_eval import COCO, COCOeval_faster

    truth, found = COCO(_keypoint_truth(data, pairs)), _keypoint_results(pairs)
    count = len(data.keypoint_names)
    sigmas = None if count == COCO_KEYPOINTS else [cfg.model.keypoint_sigma] * count
    evaluation = COCOeval_faster(
        truth,
        truth.loadRes(found),
        "keypoints",
        kpt_oks_sigmas=sigmas,
        print_function=lambda *_: None,
    )
    evaluation.run()
    return [max(0.0, 100 * float(value)) for value in evaluation.stats[:3]]


def _keypoint_truth(data: SceneSet, pairs: Sequence[tuple[Scene, Any]]) -> dict[str, Any]:
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number, (scene, _) in enumerate(pairs, start=1):
        images.append({"id": number, "height": scene.height, "width": scene.width})
        for one in scene.instances:
            x1, y1, x2, y2 = one.box
            points = one.keypoints or []
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": number,
                    "category_id": one.label,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": one.area or (x2 - x1) * (y2 - y1),
                    "iscrowd": int(one.ignored),
                    "keypoints": [value for point in points for value in point],
                    "num_keypoints": sum(point[2] > 0 for point in points),
                }
            )
    categories = [{"id": i, "name": name} for i, name in enumerate(data.classes, start=1)]
    return {"images": images, "annotations": annotations, "categories": categories}


def _keypoint_results(pairs: Sequence[tuple[Scene, dict[str, Tensor]]]) -> list[dict[str, Any]]:
    return [
        {
            "image_id": number,
            "category_id": int(label),
            "keypoints": points.reshape(-1).tolist(),
            "score": float(score),
        }
        for number, (_, prediction) in enumerate(pairs, start=1)
        for label, score, points in zip(
            prediction["labels"], prediction["scores"], prediction["keypoints"], strict=True
        )
    ]
