"""What `pipeline.name=auto` takes: a rule of image size, cores and DALI; the reason is said."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from fastmoco.data.beton import BetonFile
from fastmoco.errors import UsageError
from fastmoco.pipelines import build, choose
from fastmoco.pipelines.build import build_loader, resolve_loader
from fastmoco.pipelines.choose import choose_loader
from fastmoco.pipelines.contract import EpochPlan
from fastmoco.ranks import Ranks
from fastmoco.train import trainer
from fastmoco.train.settings import TrainConfig
from fastmoco.train.trainer import Trainer
from tests.loader_data import training, write_beton

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLAN = EpochPlan(seed=0, epoch=0, num_samples=8, global_batch_size=4)


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[BetonFile]:
    with write_beton(tmp_path, 8) as beton:
        yield beton


@pytest.fixture
def large(dataset: BetonFile) -> BetonFile:
    """Photographs of ImageNet's size, by their index."""
    dataset.heights, dataset.widths = (np.full(8, side, np.int32) for side in (375, 500))
    return dataset


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """A GPU of 16 GB with so many cores, DALI, and what was found of DALI's pixels."""
    machine = SimpleNamespace(cores=8, fault="", installed=True, free=1 << 34)
    properties = SimpleNamespace(total_memory=1 << 34)
    monkeypatch.setattr(choose.os, "sched_getaffinity", lambda _: range(machine.cores))
    monkeypatch.setattr(choose, "is_installed", lambda _: machine.installed)
    monkeypatch.setattr(choose, "recall", lambda *_: machine.fault)
    monkeypatch.setattr(choose, "free_bytes", lambda _: machine.free)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    return machine


def never(name: str) -> None:
    raise AssertionError(f"{name} was opened")


class OneBatch:
    """A loader that gives a batch, and is closed."""

    def __init__(self, name: str) -> None:
        assert name == "dali"

    def __next__(self) -> object:
        return object()

    def close(self) -> None:
        pass


def test_small_sets_are_kept_decoded(dataset: BetonFile, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = choose_loader(dataset, CPU, never)
    assert choice.name == "resident"
    assert "fit on cpu" in choice.reason
    monkeypatch.setattr(choose, "free_bytes", lambda _: 1000)
    choice = choose_loader(dataset, CPU, never)
    assert (choice.name, choice.reason.split()[-3:]) == ("beton", ["much", "for", "cpu"])


def test_on_a_gpu_its_memory_decides_and_not_what_others_have_left(dataset, gpu) -> None:
    needed = choose.resident_bytes(dataset)
    for gpu.free in (1 << 34, 2 * needed):
        assert choose_loader(dataset, CUDA, never).name == "resident"
    gpu.free = 2 * needed - 1
    assert choose_loader(dataset, CUDA, never) == ("beton", "of cuda only 0.0 GB are free")


def test_large_images_on_the_cpu_come_from_the_file(large: BetonFile) -> None:
    assert choose_loader(large, CPU, never).name == "beton"


@pytest.mark.parametrize(("cores", "name"), [(8, "dali"), (9, "beton"), (64, "beton")])
def test_the_cpu_decodes_where_a_gpu_has_cores_enough(large, gpu, cores, name) -> None:
    gpu.cores = cores
    choice = choose_loader(large, CUDA, OneBatch)
    assert choice.name == name
    assert f"{cores} cores a GPU decode about" in choice.reason


def test_cores_are_shared_by_the_gpus_of_a_machine(large, gpu, monkeypatch) -> None:
    for name, value in {"WORLD_SIZE": "8", "RANK": "1", "LOCAL_WORLD_SIZE": "8"}.items():
        monkeypatch.setenv(name, value)
    for gpu.cores, name in ((64, "dali"), (72, "beton")):
        assert choose_loader(large, CUDA, OneBatch).name == name


def test_smaller_images_need_fewer_cores(large, gpu) -> None:
    """As docs/devices.md says: 4 for 256 x 256."""
    large.heights, large.widths = (np.full(8, 256, np.int32) for _ in range(2))
    for gpu.cores, name in ((3, "dali"), (4, "beton")):
        assert choose_loader(large, CUDA, OneBatch).name == name


@pytest.mark.usefixtures("gpu")
def test_files_with_raw_pixels_are_not_for_dali(large) -> None:
    large.modes = np.append(large.modes[1:], 1 - large.modes[0])
    assert choose_loader(large, CUDA, never) == ("beton", "not all images are JPEGs")


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ({"installed": False}, "DALI is not installed"),
        ({"fault": None}, "not checked here yet, fastmoco doctor does it"),
        ({"fault": "pixels differ"}, r"DALI was found wrong here (pixels differ)"),
    ],
)
def test_dali_is_taken_only_where_its_pixels_were_found_right(large, gpu, found, words) -> None:
    vars(gpu).update(found)
    choice = choose_loader(large, CUDA, never)
    assert choice.name == "beton"
    assert words in choice.reason


@pytest.mark.parametrize("error", [ImportError, AttributeError, RuntimeError, TimeoutError])
@pytest.mark.usefixtures("gpu")
def test_a_dali_that_gives_no_batch_ends_in_beton(large, error) -> None:
    def open_loader(_: str) -> None:
        raise error("no such decoder\nmore")

    choice = choose_loader(large, CUDA, open_loader)
    assert choice.name == "beton"
    assert choice.reason.endswith("DALI cannot be used here (no such decoder)")


def test_a_resumed_run_keeps_its_loader_unless_dali_has_gone(dataset, monkeypatch) -> None:
    def before(name: str) -> tuple[str, str]:
        return resolve_loader(dataset, PLAN, spec=training(), device=CPU, before=name)

    assert before("ffcv") == ("ffcv", "as before")
    assert before("resident") == ("resident", "as before")
    monkeypatch.setattr(build.choose, "free_bytes", lambda _: 10)
    name, reason = before("resident")
    assert name == "beton"
    assert reason.startswith("before it was resident; ")
    monkeypatch.setattr(build.choose, "is_installed", lambda _: False)
    name, reason = before("dali")
    assert name == "beton"
    assert reason.startswith("before it was dali; DALI cannot be used here (pipeline.name=dali nee")


def test_what_is_asked_for_is_taken(dataset: BetonFile) -> None:
    spec = training()
    asked = resolve_loader(dataset, PLAN, spec=spec, device=CPU, name="torchvision")
    assert asked == ("torchvision", "as asked")
    with pytest.raises(UsageError, match=r"pipeline\.name=betno is unknown"):
        resolve_loader(dataset, PLAN, spec=spec, device=CPU, name="betno")
    loader = build_loader(dataset, PLAN, spec=spec, stop_epoch=1, device=CPU)
    assert len(list(loader)) == 2


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        (["dali", "dali"], ("dali", "of rank 0")),
        (["dali", "beton"], ("beton", "of rank 1")),
        (["beton", "resident"], ("beton", "of rank 0")),
    ],
)
def test_all_ranks_use_beton_if_one_must(monkeypatch, found, chosen) -> None:
    reasons = iter([found, ["of rank 0", "of rank 1"]])
    monkeypatch.setattr(trainer, "of_all", lambda *_: next(reasons))
    monkeypatch.setattr(trainer, "resolve_loader", lambda *_, **__: ("", ""))
    monkeypatch.setattr(trainer, "build_loader", lambda *_, **__: None)
    one = SimpleNamespace(
        cfg=TrainConfig(), loader_name="", _loader_before="", steps_done=0, steps_per_epoch=1
    )
    vars(one).update(dataset=None, device=CPU, ranks=Ranks(1, 2))
    Trainer.open_loader(one, PLAN)
    assert (one.loader_name, one.loader_reason) == chosen
