"""Loaders on a played device, where memory and copies are real, and kernels are not launched."""

import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from fastmoco.data.dataset import Dataset
from fastmoco.pipelines import resident_loader
from fastmoco.pipelines.beton_loader import crop_and_resize
from fastmoco.pipelines.buffers import FACTS, CudaUploader
from fastmoco.pipelines.build import build_loader
from fastmoco.pipelines.contract import Batch, EpochPlan, LoaderSpec
from fastmoco.pipelines.crops import batch_requests
from fastmoco.pipelines.transfer import CropTransfer
from tests.loader_data import training, write_beton
from tests.played_cuda.step import Watch

CPU, GPU = torch.device("cpu"), torch.device("cuda:1")
BATCHES = 6
FOREIGN = "foreign"
"""Name of `_foreign`."""


def run(names: list[str]) -> dict[str, dict[str, Any]]:
    """What is seen of some batches of each loader: of the device, of pixels and of memory."""
    torch.cuda.set_device(GPU)
    with tempfile.TemporaryDirectory() as folder, write_beton(Path(folder), 14) as dataset:
        return {name: _seen(dataset, name) for name in names}


def _seen(dataset: Dataset, name: str) -> dict[str, Any]:
    faults: list[str] = []
    uploads: list[bool] = []
    with _watched(faults, uploads), closing(_open(dataset, name, GPU)) as loader:
        batches, allocated = [], []
        for _ in range(BATCHES):
            batch = next(loader)
            batches.append((batch.crops.data_ptr(), *_on_host(batch)))
            faults += _elsewhere(batch)
            allocated.append(torch.cuda.memory_allocated())
    with closing(_open(dataset, name, CPU)) as loader:
        expected = [_on_host(next(loader)) for _ in range(BATCHES)]
    equal = [_equal(found[1:], one) for found, one in zip(batches, expected, strict=True)]
    return {
        "faults": sorted(set(faults)),
        "pixels": all(pixels for pixels, _ in equal),
        "facts": all(facts for _, facts in equal),
        "addresses": len({address for address, *_ in batches}),
        "pinned": all(uploads),
        "uploads": len(uploads),
        "growth": allocated[-1] - allocated[2],
    }


def _open(dataset: Dataset, name: str, device: torch.device) -> Any:
    plan = EpochPlan(seed=1, epoch=0, num_samples=len(dataset), global_batch_size=4)
    spec = training(num_threads=1)
    if name == FOREIGN:
        return _foreign(dataset, plan, spec, device)
    return build_loader(dataset, plan, spec=spec, stop_epoch=9, device=device, name=name)


def _foreign(
    dataset: Dataset, plan: EpochPlan, spec: LoaderSpec, device: torch.device
) -> Iterator[Batch]:
    """Crops in memory of somebody else, as DALI's and FFCV's are, brought by `CropTransfer`."""
    size, on_gpu = spec.view_size, device.type == "cuda"
    transfer = CropTransfer(plan.max_count, spec.num_views, size, device)
    for request in batch_requests(dataset, plan, spec, 9):
        transfer.wait()
        shape = (*request.boxes.shape[:2], size, size, 3)
        crops = torch.empty(shape, dtype=torch.uint8, pin_memory=on_gpu)
        for row, sample_id in enumerate(request.sample_id.tolist()):
            crop_and_resize(dataset.decode(sample_id), request.boxes[row], crops[row].numpy())
        yield transfer.batch(request, crops, 0.0)


def _on_host(batch: Batch) -> tuple[Tensor, ...]:
    return batch.crops.cpu().clone(), *(getattr(batch, name).cpu().clone() for name in FACTS)


def _equal(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> tuple[bool, bool]:
    same = [torch.equal(one, other) for one, other in zip(found, expected, strict=True)]
    return same[0], all(same[1:])


def _elsewhere(batch: Batch) -> list[str]:
    tensors = {name: getattr(batch, name) for name in ("crops", *FACTS)}
    return [f"{name} is on {t.device}" for name, t in tensors.items() if t.device != GPU]


@contextmanager
def _watched(faults: list[str], uploads: list[bool]) -> Iterator[None]:
    """Note whether uploads come from pinned memory; look at the crops that a device cuts."""
    upload, cut = CudaUploader.upload, resident_loader.crop_and_resize

    def noted(self: CudaUploader, host: Batch) -> Batch:
        uploads.append(all(getattr(host, name).is_pinned() for name in ("crops", *FACTS)))
        return upload(self, host)

    def looked_at(images: Tensor, boxes: Tensor, size: int) -> Tensor:
        with FakeTensorMode() as mode, Watch(GPU) as watch:
            cropped = cut(mode.from_tensor(images), mode.from_tensor(boxes), size)
        faults.extend(watch.faults)
        return torch.empty(cropped.shape, dtype=cropped.dtype, device=cropped.device)

    with (
        mock.patch.object(CudaUploader, "upload", noted),
        mock.patch.object(resident_loader, "crop_and_resize", looked_at),
    ):
        yield
