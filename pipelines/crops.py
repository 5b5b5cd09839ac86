"""Draws of the samples of each batch and of their crop boxes, the same for every loader."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fastmoco.data.dataset import Dataset
from fastmoco.draws.host import draw_keys, random_resized_crop_boxes
from fastmoco.draws.streams import INT64
from fastmoco.pipelines.contract import EpochPlan, LoaderSpec

INT32 = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class BatchRequest:
    """Contents of a batch except its pixels; fields as in `contract.Batch`."""

    sample_id: INT64
    draw_key: INT64
    label: INT64
    boxes: INT32


def central_boxes(heights: INT64, widths: INT64, share: float) -> INT32:
    """Compute central squares of ``share`` times the short side: resize and center crop in one.

    Args:
        heights: Heights of the images, ``(N,)``, pixels.
        widths: Widths of the images, ``(N,)``, pixels.
        share: Fraction in (0, 1]; 0.875 is resize to 256, center crop of 224.

    Returns:
        ``(N, 1, 4)`` int32: top, left, height, width, in pixels, inside the image.
    """
    side = np.maximum(np.rint(share * np.minimum(heights, widths)).astype(np.int64), 1)
    boxes = np.stack([(heights - side) // 2, (widths - side) // 2, side, side], axis=1)
    return boxes[:, None].astype(np.int32)


def batch_requests(
    dataset: Dataset, plan: EpochPlan, spec: LoaderSpec, stop_epoch: int
) -> Iterator[BatchRequest]:
    """Yield every batch from the plan's start to the end of epoch ``stop_epoch - 1``."""
    for epoch in plan.epochs(stop_epoch):
        for sample_id in epoch.batches():
            yield _draw(dataset, epoch, spec, sample_id)


def epoch_request(dataset: Dataset, plan: EpochPlan, spec: LoaderSpec) -> BatchRequest:
    """Draw the rest of the plan's epoch, from its start batch, as one long batch."""
    return _draw(dataset, plan, spec, plan.remaining())


def _draw(dataset: Dataset, plan: EpochPlan, spec: LoaderSpec, sample_id: INT64) -> BatchRequest:
    return request_of(dataset, sample_id, draw_keys(plan.seed, plan.epoch, sample_id), spec)


def request_of(dataset: Dataset, sample_id: INT64, keys: INT64, spec: LoaderSpec) -> BatchRequest:
    """The batch of given samples and draw keys, ``(N,)`` each."""
    heights = dataset.heights[sample_id].astype(np.int64)
    widths = dataset.widths[sample_id].astype(np.int64)
    if spec.policy is None:
        boxes = central_boxes(heights, widths, spec.center_crop)
    else:
        boxes = random_resized_crop_boxes(
            keys,
            heights,
            widths,
            scale=spec.policy.crop_scale,
            ratio=spec.policy.crop_ratio,
            num_views=spec.num_views,
        )
    return BatchRequest(sample_id, keys, dataset.labels[sample_id], boxes)
