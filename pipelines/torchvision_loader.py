"""The reference loader: PIL and torchvision, one image after the other, nothing ahead.

What it gives is right by inspection; every other loader is held against it. It trades all speed
for that: no threads, no prefetch, no reuse of buffers.
"""

import io
import time
from collections.abc import Iterator
from typing import Self

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resized_crop

from fastmoco.data.beton_format import MODE_RAW
from fastmoco.data.dataset import Dataset
from fastmoco.pipelines.contract import Batch, EpochPlan, LoaderSpec
from fastmoco.pipelines.crops import INT32, BatchRequest, batch_requests


class TorchvisionLoader:
    """Makes each batch when it is asked for; see `contract.ViewLoader`."""

    decode_device = "cpu"

    def __init__(
        self,
        dataset: Dataset,
        view_size: int,
        device: torch.device,
        requests: Iterator[BatchRequest],
    ) -> None:
        """Make a loader of the requested batches."""
        self._dataset = dataset
        self._view_size = view_size
        self._device = device
        self._requests = requests

    def __iter__(self) -> Self:
        """Return self: a loader is consumed once."""
        return self

    def __next__(self) -> Batch:
        """Return the next batch."""
        start = time.perf_counter()
        request = next(self._requests)
        shape = (*request.boxes.shape[:2], self._view_size, self._view_size, 3)
        crops = np.empty(shape, np.uint8)
        for row, sample_id in enumerate(request.sample_id.tolist()):
            crops[row] = self._views(sample_id, request.boxes[row])
        return Batch(
            crops=torch.from_numpy(crops).to(self._device),
            boxes=torch.from_numpy(request.boxes).to(self._device),
            sample_id=torch.from_numpy(request.sample_id).to(self._device),
            draw_key=torch.from_numpy(request.draw_key).to(self._device),
            label=torch.from_numpy(request.label).to(self._device),
            data_wait_seconds=time.perf_counter() - start,
        )

    def close(self) -> None:
        """End the iteration."""
        self._requests = iter(())

    def _views(self, sample_id: int, boxes: INT32) -> npt.NDArray[np.uint8]:
        """The crops of one image, ``(V, H, W, 3)`` uint8."""
        image = self._decode(sample_id)
        size = [self._view_size, self._view_size]
        views = [
            resized_crop(image, *box, size, InterpolationMode.BILINEAR, antialias=True)
            for box in boxes.tolist()
        ]
        return np.stack([np.asarray(view) for view in views])

    def _decode(self, sample_id: int) -> Image.Image:
        """The image as PIL sees it, RGB."""
        blob = self._dataset.blob(sample_id)
        if self._dataset.modes[sample_id] == MODE_RAW:
            shape = (self._dataset.heights[sample_id], self._dataset.widths[sample_id], 3)
            return Image.fromarray(np.frombuffer(blob, np.uint8).reshape(shape))
        try:
            return Image.open(io.BytesIO(blob)).convert("RGB")
        except OSError as error:
            raise ValueError(
                f"{self._dataset.name(sample_id)}: cannot be decoded: {error}"
            ) from error


def build(
    dataset: Dataset, plan: EpochPlan, spec: LoaderSpec, stop_epoch: int, device: torch.device
) -> TorchvisionLoader:
    """The loader of `build_loader`'s arguments."""
    requests = batch_requests(dataset, plan, spec, stop_epoch)
    return TorchvisionLoader(dataset, spec.view_size, device, requests)
