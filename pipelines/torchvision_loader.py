"""The reference loader: PIL and torchvision, one image after the other, nothing ahead.

It is correct by inspection, and every other loader is compared with it. It trades all speed for
that: no threads, no prefetch, no reuse of buffers.
"""

import io
import time
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import resized_crop

from fastmoco.data.beton_format import MODE_RAW
from fastmoco.data.dataset import Dataset
from fastmoco.pipelines.buffers import request_facts
from fastmoco.pipelines.contract import Batch, EpochPlan, LoaderSpec, ViewLoader
from fastmoco.pipelines.crops import INT32, BatchRequest, batch_requests


@dataclass(eq=False)
class TorchvisionLoader(ViewLoader):
    """Loader that makes each batch when it is asked for."""

    dataset: Dataset
    view_size: int
    device: torch.device
    requests: Iterator[BatchRequest]
    decode_device = "cpu"

    def __next__(self) -> Batch:
        start = time.perf_counter()
        request = next(self.requests)
        shape = (*request.boxes.shape[:2], self.view_size, self.view_size, 3)
        crops = np.empty(shape, np.uint8)
        for row, sample_id in enumerate(request.sample_id.tolist()):
            crops[row] = self._views(sample_id, request.boxes[row])
        return Batch(
            crops=torch.from_numpy(crops).to(self.device),
            **request_facts(request, self.device),
            data_wait_seconds=time.perf_counter() - start,
        )

    def close(self) -> None:
        """End the iteration."""
        self.requests = iter(())

    def _views(self, sample_id: int, boxes: INT32) -> npt.NDArray[np.uint8]:
        """Make the crops of one image, ``(V, H, W, 3)`` uint8."""
        image = self._decode(sample_id)
        size = [self.view_size, self.view_size]
        views = [
            resized_crop(image, *box, size, InterpolationMode.BILINEAR, antialias=True)
            for box in boxes.tolist()
        ]
        return np.stack([np.asarray(view) for view in views])

    def _decode(self, sample_id: int) -> Image.Image:
        """Decode the image to RGB by PIL."""
        blob = self.dataset.blob(sample_id)
        if self.dataset.modes[sample_id] == MODE_RAW:
            shape = (self.dataset.heights[sample_id], self.dataset.widths[sample_id], 3)
            return Image.fromarray(np.frombuffer(blob, np.uint8).reshape(shape))
        try:
            return Image.open(io.BytesIO(blob)).convert("RGB")
        except OSError as error:
            raise ValueError(
                f"{self.dataset.name(sample_id)}: cannot decode it: {error}"
            ) from error


def build(
    dataset: Dataset, plan: EpochPlan, spec: LoaderSpec, stop_epoch: int, device: torch.device
) -> TorchvisionLoader:
    """Build the loader; the arguments are those of `build_loader`."""
    requests = batch_requests(dataset, plan, spec, stop_epoch)
    return TorchvisionLoader(dataset, spec.view_size, device, requests)
