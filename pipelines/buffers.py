"""Memory of batches: allocated once, filled again and again, on the host and on the device.

Trade-off: a batch is valid only until the next one is asked for; in return no batch costs an
allocation, a page fault or the pinning of memory.
"""

from typing import Any

import torch
from torch import Tensor

from fastmoco.pipelines.contract import Batch
from fastmoco.pipelines.crops import BatchRequest

FACTS = ("boxes", "sample_id", "draw_key", "label")
"""Tensors of a batch other than its pixels."""


def request_facts(request: BatchRequest, device: torch.device | str = "cpu") -> dict[str, Any]:
    """Convert the arrays of a request to the tensors `FACTS` of its batch, by name."""
    return {name: torch.from_numpy(getattr(request, name)).to(device) for name in FACTS}


def empty_batch(
    count: int,
    num_views: int,
    view_size: int,
    *,
    device: torch.device | None = None,
    pinned: bool = False,
) -> Batch:
    """Allocate an unfilled batch of ``count`` images with ``num_views`` square views each."""

    def empty(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
        return torch.empty(shape, dtype=dtype, device=device, pin_memory=pinned)

    return Batch(
        crops=empty(count, num_views, view_size, view_size, 3, dtype=torch.uint8),
        boxes=empty(count, num_views, 4, dtype=torch.int32),
        sample_id=empty(count),
        draw_key=empty(count),
        label=empty(count),
        data_wait_seconds=0.0,
    )


def batch_rows(batch: Batch, rows: slice, data_wait_seconds: float = 0.0) -> Batch:
    """Select images of a batch, as views of its tensors."""
    facts = {name: getattr(batch, name)[rows] for name in FACTS}
    return Batch(crops=batch.crops[rows], **facts, data_wait_seconds=data_wait_seconds)


class CudaUploader:
    """Copies pinned batches to two alternating device buffers, on a stream of its own.

    Batch k overwrites batch k - 2. So its copy waits only for the work that the consumer had queued
    when it asked for batch k - 1, and overlaps with the step on batch k - 1. The consumer must work
    on the stream that is current when it asks for a batch.
    """

    def __init__(self, like: Batch, device: torch.device) -> None:
        """Allocate two batches of the shape of ``like`` on the device."""
        count, num_views, view_size = like.crops.shape[:3]
        self._buffers = [empty_batch(count, num_views, view_size, device=device) for _ in range(2)]
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        # Blocking: a waiting thread sleeps, because the decoders need the cores.
        self._copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
        self._queued = torch.cuda.current_stream(device).record_event()

    def upload(self, host: Batch) -> Batch:
        """Queue the copy of a pinned batch; work queued later sees it, the host does not wait."""
        consumer = torch.cuda.current_stream(self._device)
        self._stream.wait_event(self._queued)
        self._queued = consumer.record_event()
        self._buffers.reverse()
        target = batch_rows(self._buffers[0], slice(len(host.crops)), host.data_wait_seconds)
        with torch.cuda.stream(self._stream):
            for field in ("crops", *FACTS):
                getattr(target, field).copy_(getattr(host, field), non_blocking=True)
        self._copied.record(self._stream)
        consumer.wait_event(self._copied)
        return target

    def wait(self) -> None:
        """Wait until the last batch has been copied from its pinned memory.

        A host that runs ahead waits here until the device has begun the last step but one, so the
        device never idles for it.
        """
        self._copied.synchronize()
