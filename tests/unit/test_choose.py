"""What `pipeline.name=auto` takes: the reason is said, and a trial that fails is no end."""

from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmoco.data.beton import BetonFile
from fastmoco.pipelines import choose
from fastmoco.pipelines.build import build_loader, resolve_loader
from fastmoco.pipelines.choose import choose_loader
from fastmoco.pipelines.contract import Batch, EpochPlan
from tests.loader_data import training, write_beton

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
PLAN = EpochPlan(seed=0, epoch=0, num_samples=8, global_batch_size=4)


@pytest.fixture
def dataset(tmp_path: Path) -> Iterator[BetonFile]:
    with write_beton(tmp_path, 8) as beton:
        yield beton


@pytest.fixture
def large(dataset: BetonFile) -> BetonFile:
    dataset.heights = np.full(8, 400, np.int32)
    return dataset


class Trial:
    """A loader that gives so many images a second, by a clock that it moves itself."""

    def __init__(self, clock: list[float], rate: float) -> None:
        self.clock, self.rate = clock, rate

    def __iter__(self) -> "Trial":
        return self

    def __next__(self) -> Batch:
        self.clock[0] += 64 / self.rate
        return Batch(torch.zeros(64, 2, 1, 1, 3), *[torch.zeros(64)] * 4, data_wait_seconds=0.0)

    def close(self) -> None:
        self.clock[0] += 100  # closing is not the loader's speed


def never(name: str) -> Trial:
    raise AssertionError(f"{name} was tried")


def test_small_sets_are_kept_decoded(dataset: BetonFile, monkeypatch: pytest.MonkeyPatch) -> None:
    choice = choose_loader(dataset, CPU, never)
    assert choice.name == "resident"
    assert "fit on cpu" in choice.reason
    monkeypatch.setattr(choose, "free_bytes", lambda _: 1000)
    choice = choose_loader(dataset, CPU, never)
    assert (choice.name, choice.reason.split()[-3:]) == ("beton", ["much", "for", "cpu"])


def test_large_images_on_the_cpu_come_from_the_file(large: BetonFile) -> None:
    assert choose_loader(large, CPU, never).name == "beton"


@pytest.mark.parametrize(("dali", "beton", "best"), [(900, 300, "dali"), (300, 900, "beton")])
def test_a_gpu_takes_the_faster_decoder(
    large: BetonFile, monkeypatch: pytest.MonkeyPatch, dali: float, beton: float, best: str
) -> None:
    clock, rates = [0.0], {"dali": dali, "beton": beton}
    monkeypatch.setattr(choose, "free_bytes", lambda _: 1 << 40)
    monkeypatch.setattr(choose, "find_spec", lambda _: object())
    monkeypatch.setattr(choose.time, "perf_counter", lambda: clock[0])
    choice = choose_loader(large, CUDA, lambda name: Trial(clock, rates[name]))
    assert choice.name == best
    assert choice.reason == f"tried, images/s: dali {dali}, beton {beton}"


@pytest.mark.parametrize("error", [ImportError, RuntimeError, TimeoutError])
def test_a_decoder_that_fails_is_not_taken(
    large: BetonFile, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    monkeypatch.setattr(choose, "free_bytes", lambda _: 1 << 40)
    monkeypatch.setattr(choose, "find_spec", lambda _: object())
    monkeypatch.setattr(choose, "TRIAL_SECONDS", 0.01)

    def open_loader(name: str) -> Trial:
        if name == "dali":
            raise error("no such decoder here")
        return Trial([0.0], 100)

    assert choose_loader(large, CUDA, open_loader).name == "beton"


def test_of_two_that_cannot_be_told_apart_the_cpu_decodes(
    large: BetonFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor does a trial without a second batch take a decoder that has not run at all."""
    monkeypatch.setattr(choose, "free_bytes", lambda _: 1 << 40)
    monkeypatch.setattr(choose, "find_spec", lambda _: object())
    monkeypatch.setattr(choose, "_try", lambda *_: 0.0)
    assert choose_loader(large, CUDA, never).name == "beton"


def test_a_trial_does_not_end_with_the_epoch_of_a_small_set(
    dataset: BetonFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = []

    def choose_by_counting(_dataset, _device, open_loader):
        with closing(open_loader("beton")) as loader:
            counts.append(sum(1 for _ in islice(loader, 50)))
        return choose.Choice("beton", "counted")

    monkeypatch.setattr(choose, "choose_loader", choose_by_counting)
    resolve_loader(dataset, PLAN, spec=training(), device=CPU)
    assert counts == [50]


def test_without_dali_the_cpu_decodes(large: BetonFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choose, "free_bytes", lambda _: 1 << 40)
    monkeypatch.setattr(choose, "find_spec", lambda _: None)
    choice = choose_loader(large, CUDA, never)
    assert (choice.name, "DALI is not installed" in choice.reason) == ("beton", True)


def test_what_is_asked_for_is_taken(dataset: BetonFile) -> None:
    spec = training()
    asked = resolve_loader(dataset, PLAN, spec=spec, device=CPU, name="torchvision")
    assert asked == ("torchvision", "as asked")
    with pytest.raises(ValueError, match=r"pipeline\.name=betno is unknown"):
        resolve_loader(dataset, PLAN, spec=spec, device=CPU, name="betno")
    loader = build_loader(dataset, PLAN, spec=spec, stop_epoch=1, device=CPU)
    assert len(list(loader)) == 2
