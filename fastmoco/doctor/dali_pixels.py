"""DALI's pixels against those of `beton_loader`, while the GPU is busy.

The hardware unit of nvJPEG has been seen to overwrite memory that was in use (pytorch/vision
#9606), and only under load. So matrix products run beside the decoder, and tensors with known
values must keep them. Left out: images of other sizes and codings, which a dataset may have.
"""

import tempfile
from collections.abc import Sequence
from contextlib import closing, nullcontext
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from fastmoco.data.dataset import Dataset, open_dataset
from fastmoco.data.images import encode_jpeg
from fastmoco.pipelines.build import build_loader
from fastmoco.pipelines.choose import is_installed
from fastmoco.pipelines.contract import EpochPlan, LoaderSpec
from fastmoco.pipelines.policies import Policy

IMAGES, BATCH, EPOCHS = 64, 16, {"cuda": 25, "cpu": 1}
"""On a GPU 1,600 decodes: the fault of #9606 showed in 134 of 200 iterations."""
SIDES = ((375, 500), (500, 375), (333, 500), (480, 640))
"""Height and width of the images, in turn."""
TILE = 16
IMAGE_LEVELS, TILE_LEVELS = 2.0, 16.0
"""Largest mean differences of an image and of a tile, of 255: rounding, chroma and inverse DCT
differ between decoders."""
SPEC = LoaderSpec(view_size=224, policy=Policy())


def dali_fault(device: torch.device) -> str:
    """What is wrong with DALI's pixels on a device; "" if nothing is."""
    if not is_installed("nvidia.dali"):
        return "DALI is not installed"
    with tempfile.TemporaryDirectory(prefix="fastmoco-doctor-") as folder:
        write_images(Path(folder))
        with open_dataset(folder) as dataset:
            return compare(dataset, device, "beton", EPOCHS[device.type])


def write_images(folder: Path) -> None:
    """Write JPEGs as detailed as photographs: waves of many lengths, with noise."""
    rng = np.random.default_rng(0)
    for i in range(IMAGES):
        height, width = SIDES[i % len(SIDES)]
        rows, columns = np.mgrid[0:height, 0:width]
        waves = [np.sin(rows / rng.uniform(3, 60) + columns / rng.uniform(3, 60)) for _ in range(3)]
        pixels = 128 + 90 * np.stack(waves, axis=2) + rng.normal(0, 8, (height, width, 3))
        blob = encode_jpeg(pixels.clip(0, 255).astype(np.uint8), 90)
        (folder / f"{i:03d}.jpg").write_bytes(blob)


def compare(
    dataset: Dataset, device: torch.device, reference: str, epochs: int, spec: LoaderSpec = SPEC
) -> str:
    """Compare DALI on a busy device with another loader on the CPU; "" if no pixel is wrong.

    Args:
        dataset: JPEGs.
        device: Device of DALI.
        reference: Name of the other loader.
        epochs: Passes over the dataset, each with other crops.
        spec: Settings of both loaders.
    """
    plan = EpochPlan(
        seed=1, epoch=0, num_samples=len(dataset), global_batch_size=min(BATCH, len(dataset))
    )
    loaders = [
        build_loader(dataset, plan, spec=spec, stop_epoch=epochs, device=place, name=name)
        for place, name in ((device, "dali"), (torch.device("cpu"), reference))
    ]
    load = Load(device)
    with closing(loaders[0]), closing(loaders[1]):
        for number, (ours, expected) in enumerate(zip(*loaders, strict=True)):
            ids = expected.sample_id.tolist()
            fault = load.step() or difference(ours.crops.cpu(), expected.crops, ids)
            if fault:
                return f"batch {number}: {fault}"
    return ""


class Load:
    """Work for the device beside decoding, and memory that must stay as it is."""

    def __init__(self, device: torch.device) -> None:
        """Start with nothing to watch."""
        self._device, self._steps = device, 0
        size = 4096 if device.type == "cuda" else 16
        self._factor = torch.randn(size, size, device=device)
        self._stream = torch.cuda.Stream() if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self.watched: list[Tensor] = []

    def step(self) -> str:
        """Queue work, look at the memory watched so far, and watch other parts of it."""
        with torch.cuda.stream(self._stream) if self._stream else nullcontext():
            for _ in range(8):
                self._factor = (self._factor @ self._factor).tanh()
        if any(bool((one != value).any()) for value, one in enumerate(self.watched)):
            return "decoding changed memory that is in use"
        self._steps += 1
        sizes = [(self._steps * 7919 + 104_729 * i) % 4_000_000 + 1 for i in range(16)]
        self.watched = [
            torch.full((size,), value, dtype=torch.uint8, device=self._device)
            for value, size in enumerate(sizes)
        ]
        return ""


def difference(ours: Tensor, expected: Tensor, sample_ids: Sequence[int]) -> str:
    """Compare each image in the mean, and each tile of it; "" if two decoders may differ so.

    Args:
        ours: Crops, ``(N, V, H, W, 3)`` uint8, on the host.
        expected: Those of the other decoder.
        sample_ids: N ids, to name the worst.
    """
    levels = (ours.int() - expected.int()).abs().float()
    tiles = avg_pool2d(levels.flatten(0, 1).mean(3), TILE)
    tiles = tiles.view(*ours.shape[:2], *tiles.shape[1:])  # (N, V, H / TILE, W / TILE)
    for what, found, allowed in (
        ("image", levels.mean((1, 2, 3, 4)), IMAGE_LEVELS),
        ("part", tiles.amax((1, 2, 3)), TILE_LEVELS),
    ):
        worst = int(found.argmax())
        if not found[worst] < allowed:
            return f"{what} of sample {sample_ids[worst]} differs by {found[worst]:.1f} levels"
    return ""
