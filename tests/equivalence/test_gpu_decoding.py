"""A GPU's pixels against the CPU's, while the device works and its memory is watched.

nvJPEG's hardware decoder has been seen to overwrite live memory (pytorch/vision #9606), so the
mean over all images says little: each part of each image is compared.
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d

from benchmarks.pictures import write_photographs
from fastmoco.data.beton import BetonFile
from fastmoco.data.convert import ConvertConfig, Statistics, convert
from fastmoco.pipelines.build import build_loader
from fastmoco.pipelines.contract import EpochPlan, LoaderSpec
from fastmoco.pipelines.policies import Policy
from tests.optional import require

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NUM_SAMPLES, BATCH, EPOCHS = 2_500, 50, 4  # 10,000 images, the crops of which differ
VIEW_SIZE, TILE = 224, 16
IMAGE_LEVELS, TILE_LEVELS = 2.0, 16.0
"""Allowed mean differences, of 255: rounding, chroma and inverse DCT differ between decoders."""


class Load:
    """Work for the device beside decoding, and memory that must stay as it is."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        size = 4096 if device.type == "cuda" else 16
        self.factor = torch.randn(size, size, device=device)
        self.stream = torch.cuda.Stream() if device.type == "cuda" else None
        self.watched: list[Tensor] = []

    def step(self, number: int) -> None:
        """Queue work, look at the memory watched so far, and watch other parts of it."""
        with torch.cuda.stream(self.stream) if self.stream else torch.no_grad():
            for _ in range(8):
                self.factor = (self.factor @ self.factor).tanh()
        for place, memory in enumerate(self.watched):
            assert (memory == place + 1).all(), f"memory was overwritten before batch {number}"
        sizes = [(number * 7919 + 104729 * i) % 4_000_000 + 1 for i in range(16)]
        self.watched = [
            torch.full((size,), i + 1, dtype=torch.uint8, device=self.device)
            for i, size in enumerate(sizes)
        ]


def assert_same_pixels(ours: Tensor, expected: Tensor, sample_ids: list[int]) -> None:
    """Each image in the mean, and each tile of it; crops ``(N, V, H, W, 3)`` on the host."""
    difference = (ours.int() - expected.int()).abs().float()
    tiles = avg_pool2d(difference.flatten(0, 1).mean(3), TILE).unflatten(0, ours.shape[:2])
    for what, found, allowed in (
        ("image", difference.mean((1, 2, 3, 4)), IMAGE_LEVELS),
        ("part", tiles.amax((1, 2, 3)), TILE_LEVELS),
    ):
        worst = int(found.argmax())
        assert found[worst] < allowed, f"{what} of sample {sample_ids[worst]}: {found[worst]:.1f}"


def compare(dataset: BetonFile, device: torch.device, spec: LoaderSpec, epochs: int) -> int:
    """How many images were decoded and found equal."""
    count = min(BATCH, len(dataset))
    plan = EpochPlan(seed=1, epoch=0, num_samples=len(dataset), global_batch_size=count)
    loaders = [
        build_loader(dataset, plan, spec=spec, stop_epoch=epochs, device=place, name="dali")
        for place in (device, CPU)
    ]
    load, images = Load(device), 0
    with closing(loaders[0]), closing(loaders[1]):
        for number, (ours, expected) in enumerate(zip(*loaders, strict=True)):
            load.step(number)
            assert ours.crops.device.type == device.type
            assert_same_pixels(ours.crops.cpu(), expected.crops, expected.sample_id.tolist())
            images += len(expected.crops)
    return images


def write_set(folder: Path, count: int) -> BetonFile:
    write_photographs(folder / "images", count)
    options = ConvertConfig(statistics=Statistics.none)
    convert(str(folder / "images"), folder / "set.beton", options)
    return BetonFile.open(folder / "set.beton")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BetonFile]:
    with write_set(tmp_path_factory.mktemp("few"), 8) as dataset:
        yield dataset


SPEC = LoaderSpec(view_size=VIEW_SIZE, policy=Policy())


@pytest.mark.gpu
@pytest.mark.parametrize("hw_decoder_load", [0.0, 0.65, 1.0])
def test_ten_thousand_images_under_load(tmp_path: Path, hw_decoder_load: float) -> None:
    require("nvidia.dali")
    spec = replace(SPEC, hw_decoder_load=hw_decoder_load)
    with write_set(tmp_path, NUM_SAMPLES) as dataset:
        assert compare(dataset, CUDA, spec, EPOCHS) == NUM_SAMPLES * EPOCHS


def test_the_comparison_itself_runs_on_a_cpu(few: BetonFile) -> None:
    require("nvidia.dali")
    assert compare(few, CPU, SPEC, 2) == 16


def test_the_comparison_notices_damage(few: BetonFile) -> None:
    require("nvidia.dali")
    plan = EpochPlan(seed=1, epoch=0, num_samples=8, global_batch_size=8)
    loader = build_loader(few, plan, spec=SPEC, stop_epoch=1, device=CPU, name="dali")
    with closing(loader):
        crops = next(loader).crops.clone()
    ids = list(range(8))
    assert_same_pixels(crops, crops, ids)
    swapped = crops.clone()
    swapped[[2, 5]] = crops[[5, 2]]
    with pytest.raises(AssertionError, match="image of sample"):
        assert_same_pixels(swapped, crops, ids)
    spotted = crops.clone()
    spotted[3, 1, 40:60, 80:100] = 255 - spotted[3, 1, 40:60, 80:100] // 2
    with pytest.raises(AssertionError, match="part of sample 3"):
        assert_same_pixels(spotted, crops, ids)


def test_overwritten_memory_is_noticed() -> None:
    load = Load(CPU)
    load.step(0)
    load.step(1)
    load.watched[4][0] = 0
    with pytest.raises(AssertionError, match="overwritten before batch 2"):
        load.step(2)
