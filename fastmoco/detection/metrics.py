"""Measure predictions: average precision, and mean IoU of class maps.

The rules are COCO's: torchmetrics on faster-coco-eval measures boxes and masks, faster-coco-eval
alone keypoints. VOC boxes are also measured by the devkit's rule (`voc_metric`), which the
published figures follow.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastmoco.detection.annotations import Scene, SceneSet
from fastmoco.detection.keypoint_metric import keypoint_precision
from fastmoco.detection.masks import UNKNOWN, instance_mask, read_class_map
from fastmoco.detection.samples import box_target, ignored_flags
from fastmoco.detection.settings import AnnotationFormat, DetectConfig, DetectionTask
from fastmoco.detection.voc_metric import Floats, Found, Truth, voc_average_precision
from fastmoco.errors import UsageError

Result = dict[str, Any]


def check_metrics(task: DetectionTask) -> None:
    """Check before training that the libraries for the measurement are installed.

    Raises:
        UsageError: If one is missing; names the extra.
    """
    try:
        import faster_coco_eval  # noqa: F401
        import torchmetrics  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"task={task.value} is measured by torchmetrics and faster-coco-eval ({error}); "
            "install them with pip install faster-coco-eval torchmetrics"
        ) from error


class Measurement:
    """Collects predictions image by image and computes the figures at the end.

    Masks are kept as run lengths, so a complete test set fits in memory. Only one rank measures:
    torchmetrics must not gather from the others.
    """

    def __init__(self, data: SceneSet, cfg: DetectConfig) -> None:
        """Start without predictions; `cfg` gives task, layout and the keypoints' tolerance."""
        self._data, self._cfg = data, cfg
        self._voc: list[tuple[dict[int, Truth], dict[int, Found]]] = []
        self._keypoints: list[tuple[Scene, dict[str, Tensor]]] = []
        self._metric: Any = None
        if cfg.task is DetectionTask.segment:
            from torchmetrics.classification import MulticlassJaccardIndex

            self._metric = MulticlassJaccardIndex(
                data.num_classes,
                average=None,
                ignore_index=UNKNOWN,
                zero_division=float("nan"),
                sync_on_compute=False,
            )
        else:
            from torchmetrics.detection import MeanAveragePrecision

            self._metric = MeanAveragePrecision(
                iou_type=("bbox", "segm") if cfg.task is DetectionTask.masks else "bbox",
                # COCO's own. torchmetrics rounds its defaults to float32; a recall or an overlap
                # equal to one then falls below it (up to 0.1 points of AP in the tests).
                iou_thresholds=np.linspace(0.5, 0.95, 10).tolist(),
                rec_thresholds=np.linspace(0, 1, 101).tolist(),
                class_metrics=True,
                backend="faster_coco_eval",
                sync_on_compute=False,
            )
            self._metric.warn_on_many_detections = False

    def add(self, scene: Scene, prediction: dict[str, Tensor]) -> None:
        """Add the prediction for one image.

        Args:
            scene: The image with its annotations.
            prediction: Output of `Detector.predict` or `Segmenter.predict`, on the CPU.
        """
        if self._cfg.task is DetectionTask.segment:
            assert scene.class_map is not None
            truth = read_class_map(scene.class_map, scene, self._data.num_classes)
            self._metric.update(prediction["classes"][None], torch.from_numpy(truth).long()[None])
            return
        target = _target(scene, masks=self._cfg.task is DetectionTask.masks)
        found = {name: prediction[name] for name in ("boxes", "labels", "scores")}
        if self._cfg.task is DetectionTask.masks:
            found["masks"] = prediction["masks"][:, 0] > 0.5
        self._metric.update([found], [target])
        if self._cfg.task is DetectionTask.keypoints:
            self._keypoints.append((scene, prediction))
        if self._cfg.layout is AnnotationFormat.voc:
            self._voc.append(_voc_pair(scene, prediction))

    def result(self) -> Result:
        """Figures in percent: ``ap``, ``ap50``, ``ap75`` and more; task=segment: ``mean_iou``."""
        if self._cfg.task is DetectionTask.segment:
            return _iou_result(self._metric.compute(), self._data.classes)
        values = self._metric.compute()
        masks = self._cfg.task is DetectionTask.masks
        result: Result = {f"ap{k}": _percent(values, "bbox" if masks else "", k) for k in _CUTS}
        if masks:
            result |= {f"mask_ap{k}": _percent(values, "segm", k) for k in _CUTS}
        result["per_class"] = _per_class(values, "bbox_" if masks else "", self._data.classes)
        if self._cfg.task is DetectionTask.keypoints:
            figures = keypoint_precision(self._data, self._keypoints, self._cfg)
            result |= {f"keypoint_ap{k}": v for k, v in zip(_CUTS, figures, strict=True)}
        if self._cfg.layout is AnnotationFormat.voc:
            truth, found = zip(*self._voc, strict=True)
            result["voc07"] = voc_average_precision(truth, found)
        return result


_CUTS = ("", "50", "75")


def _percent(values: dict[str, Tensor], kind: str, cut: str) -> float:
    name = "_".join(filter(None, (kind, "map", cut)))
    return max(0.0, 100 * float(values[name]))  # COCO gives -1 where there is no object


def _per_class(values: dict[str, Tensor], kind: str, names: Sequence[str]) -> dict[str, float]:
    """AP of the classes that occur in the test set, in percent."""
    labels = values["classes"].reshape(-1).tolist()
    scores = values[f"{kind}map_per_class"].reshape(-1).tolist()
    return {
        names[label - 1]: 100 * score
        for label, score in zip(labels, scores, strict=True)
        if score >= 0
    }


def _iou_result(fractions: Tensor, names: Sequence[str]) -> Result:
    """Mean over the classes that occur in truth or prediction, background included."""
    table = dict(zip(("background", *names), (100 * fractions).tolist(), strict=True))
    seen = {name: value for name, value in table.items() if not np.isnan(value)}
    return {"mean_iou": float(np.mean(list(seen.values()))), "per_class": seen}


def _target(scene: Scene, *, masks: bool) -> dict[str, Tensor]:
    target = box_target(scene, (scene.height, scene.width))
    target["iscrowd"] = ignored_flags(scene.instances)
    if masks:
        stack = [instance_mask(i, scene) for i in scene.instances]
        shape = (len(stack), scene.height, scene.width)
        target["masks"] = torch.from_numpy(np.array(stack, np.uint8).reshape(shape)).bool()
    return target


def _voc_pair(
    scene: Scene, prediction: dict[str, Tensor]
) -> tuple[dict[int, Truth], dict[int, Found]]:
    target = box_target(scene, (scene.height, scene.width))
    difficult = ignored_flags(scene.instances).bool().numpy()
    scores = prediction["scores"].double().numpy()
    truth = {k: Truth(boxes=b, difficult=difficult[i]) for k, b, i in _by_class(target)}
    found = {k: Found(boxes=b, scores=scores[i]) for k, b, i in _by_class(prediction)}
    return truth, found


def _by_class(items: dict[str, Tensor]) -> Iterator[tuple[int, Floats, npt.NDArray[np.bool_]]]:
    """Label and boxes of each class, and which of all boxes these are."""
    boxes, labels = items["boxes"].double().numpy(), items["labels"].numpy()
    for label in np.unique(labels):
        yield int(label), boxes[labels == label], labels == label
