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

from benchmarks.pictures import write_photographs
from fastmoco.data.beton import BetonFile
from fastmoco.data.convert import ConvertConfig, Statistics, convert
from fastmoco.doctor.dali_pixels import SPEC, Load, compare, difference
from fastmoco.pipelines.build import build_loader
from fastmoco.pipelines.contract import EpochPlan
from tests.optional import require

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
NUM_SAMPLES, EPOCHS = 2_500, 4  # 10,000 images, the crops of which differ


def write_set(folder: Path, count: int) -> BetonFile:
    write_photographs(folder / "images", count)
    options = ConvertConfig(statistics=Statistics.none)
    convert(str(folder / "images"), folder / "set.beton", options)
    return BetonFile.open(folder / "set.beton")


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BetonFile]:
    with write_set(tmp_path_factory.mktemp("few"), 8) as dataset:
        yield dataset


@pytest.mark.gpu
@pytest.mark.parametrize("hw_decoder_load", [0.0, 0.65, 1.0])
def test_ten_thousand_images_under_load(tmp_path: Path, hw_decoder_load: float) -> None:
    require("nvidia.dali")
    spec = replace(SPEC, hw_decoder_load=hw_decoder_load)
    with write_set(tmp_path, NUM_SAMPLES) as dataset:
        assert compare(dataset, CUDA, "dali", EPOCHS, spec) == ""


def test_the_comparison_itself_runs_on_a_cpu(few: BetonFile) -> None:
    require("nvidia.dali")
    for reference in ("dali", "beton"):
        assert compare(few, CPU, reference, 2) == ""


def test_the_comparison_notices_damage(few: BetonFile) -> None:
    require("nvidia.dali")
    plan = EpochPlan(seed=1, epoch=0, num_samples=8, global_batch_size=8)
    loader = build_loader(few, plan, spec=SPEC, stop_epoch=1, device=CPU, name="dali")
    with closing(loader):
        crops = next(loader).crops.clone()
    ids = list(range(8))
    assert difference(crops, crops, ids) == ""
    swapped = crops.clone()
    swapped[[2, 5]] = crops[[5, 2]]
    assert difference(swapped, crops, ids).startswith("image of sample")
    spotted = crops.clone()
    spotted[3, 1, 40:60, 80:100] = 255 - spotted[3, 1, 40:60, 80:100] // 2
    assert difference(spotted, crops, ids).startswith("part of sample 3 differs by")


def test_overwritten_memory_is_noticed() -> None:
    load = Load(CPU)
    assert [load.step(), load.step()] == ["", ""]
    load.watched[4][0] = 0
    assert load.step() == "decoding changed memory that is in use"
