"""Batches whose crops are in a foreign decoder's memory, on the host or on the device.

Trade-off: on a device the crops are copied once more, on a stream of its own, so that the decoder
gets its memory back while the consumer's work is still queued.
"""

import torch
from torch import Tensor

from fastmoco.pipelines.buffers import CudaUploader, batch_rows, empty_batch, request_facts
from fastmoco.pipelines.contract import Batch
from fastmoco.pipelines.crops import BatchRequest


class CropTransfer:
    """Joins crops with the rest of their batch, and copies both to the device."""

    def __init__(
        self, max_count: int, num_views: int, view_size: int, device: torch.device
    ) -> None:
        """Allocate memory for a batch of ``max_count`` images on a GPU; on the CPU, none."""
        self._crops: Tensor | None = None  # kept alive while it is being copied
        self._uploader: CudaUploader | None = None
        if device.type == "cuda":
            shapes = empty_batch(max_count, num_views, view_size, device=torch.device("meta"))
            self._uploader = CudaUploader(shapes, device)
            self._pinned = empty_batch(max_count, num_views, 1, pinned=True)

    def wait(self) -> None:
        """Wait until the crops of the last batch have been copied, and release them."""
        if self._uploader is not None:
            self._uploader.wait()
        self._crops = None

    def batch(self, request: BatchRequest, crops: Tensor, data_wait_seconds: float) -> Batch:
        """Join the crops with their request, and queue the copy of both to the device.

        Args:
            request: The rest of the batch, on the host.
            crops: ``(N, V, H, W, 3)`` uint8, finished; in pinned memory or on the device, or
                anywhere if the device is the CPU.
            data_wait_seconds: Time that the consumer waited for this batch.
        """
        facts = request_facts(request)
        if self._uploader is None:
            return Batch(crops=crops, **facts, data_wait_seconds=data_wait_seconds)
        batch = batch_rows(self._pinned, slice(len(crops)), data_wait_seconds)
        batch.crops = self._crops = crops
        for name, values in facts.items():
            getattr(batch, name).copy_(values)
        return self._uploader.upload(batch)
