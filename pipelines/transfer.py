"""Batches of crops that lie in a foreign decoder's memory, on the host or on the device.

Trade-off: on a device the crops are copied once more, on a stream of its own, so that the decoder
can have its memory back although the consumer's work is only queued.
"""

from typing import Any

import torch
from torch import Tensor

from fastmoco.pipelines.buffers import FACTS, CudaUploader, empty_batch, first
from fastmoco.pipelines.contract import Batch
from fastmoco.pipelines.crops import BatchRequest


class Handover:
    """Joins crops with the rest of their batch, and brings both to the device."""

    def __init__(
        self, max_count: int, num_views: int, view_size: int, device: torch.device
    ) -> None:
        """Allocate what a batch of ``max_count`` images needs on a GPU; on the CPU nothing."""
        self._crops: Tensor | None = None  # what is being copied
        self._uploader: CudaUploader | None = None
        if device.type == "cuda":
            shapes = empty_batch(max_count, num_views, view_size, device=torch.device("meta"))
            self._uploader = CudaUploader(shapes, device)
            self._pinned = empty_batch(max_count, num_views, 1, pinned=True)

    def wait(self) -> None:
        """Wait until the crops of the last batch have been copied, and let go of them."""
        if self._uploader is not None:
            self._uploader.wait()
        self._crops = None

    def batch(self, request: BatchRequest, crops: Tensor, data_wait_seconds: float) -> Batch:
        """The batch, on the device.

        Args:
            request: The rest of the batch, on the host.
            crops: ``(N, V, H, W, 3)`` uint8, finished; in pinned memory or on the device, or
                anywhere if the device is the CPU.
            data_wait_seconds: As of the batch.
        """
        facts: dict[str, Any] = {name: torch.from_numpy(getattr(request, name)) for name in FACTS}
        if self._uploader is None:
            return Batch(crops=crops, **facts, data_wait_seconds=data_wait_seconds)
        batch = first(self._pinned, len(crops), data_wait_seconds)
        batch.crops = self._crops = crops
        for name, values in facts.items():
            getattr(batch, name).copy_(values)
        return self._uploader.upload(batch)
