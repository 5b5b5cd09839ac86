"""Specs, boxes, and how the beton loader treats its memory."""

import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmoco.data.beton import BetonFile
from fastmoco.errors import UsageError
from fastmoco.pipelines import choose
from fastmoco.pipelines.beton_loader import BetonLoader
from fastmoco.pipelines.build import DISTRIBUTIONS, build_loader
from fastmoco.pipelines.choose import is_installed
from fastmoco.pipelines.contract import EpochPlan, LoaderSpec, ViewLoader
from fastmoco.pipelines.crops import central_boxes
from tests.limits import HANG_SECONDS
from tests.loader_data import evaluation, training, use_decode, write_beton

CPU = torch.device("cpu")
NUM_SAMPLES, BATCH = 22, 4


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BetonFile]:
    with write_beton(tmp_path_factory.mktemp("set"), NUM_SAMPLES) as beton:
        yield beton


def open_loader(
    dataset: BetonFile, spec: LoaderSpec, stop_epoch: int = 1, name: str = "beton", **values
) -> ViewLoader:
    settings = {"seed": 3, "epoch": 0, "num_samples": NUM_SAMPLES, "global_batch_size": BATCH}
    plan = EpochPlan(**settings | values)
    return build_loader(dataset, plan, spec=spec, stop_epoch=stop_epoch, device=CPU, name=name)


class CountedDecode:
    """Counts decodes; `reached` waits for a number of them."""

    def __init__(self, dataset: BetonFile) -> None:
        self.decode = dataset.decode
        self.sample_ids: list[int] = []
        self.changed = threading.Condition()

    def __call__(self, sample_id: int) -> np.ndarray:
        image = self.decode(sample_id)
        with self.changed:
            self.sample_ids.append(sample_id)
            self.changed.notify_all()
        return image

    def reached(self, count: int, timeout: float = HANG_SECONDS) -> bool:
        with self.changed:
            return self.changed.wait_for(lambda: len(self.sample_ids) >= count, timeout)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("view_size", 0),
        ("center_crop", 0.0),
        ("center_crop", 1.01),
        ("num_threads", -1),
        ("prefetch_batches", 0),
        ("hw_decoder_load", 1.5),
    ],
)
def test_spec_refuses_what_no_loader_can_serve(name: str, value: float) -> None:
    values = {"view_size": 32, "policy": None, name: value}
    with pytest.raises(ValueError, match=rf"pipeline\.{name} must be .*, got {value}$"):
        LoaderSpec(**values)


@pytest.mark.parametrize(("name", "package"), [("dali", "nvidia.dali"), ("ffcv", "ffcv")])
def test_a_loader_that_is_not_installed_is_refused_with_the_extra(
    dataset: BetonFile, monkeypatch: pytest.MonkeyPatch, name: str, package: str
) -> None:
    plan = EpochPlan(seed=0, epoch=0, num_samples=8, global_batch_size=4)
    spec = LoaderSpec(view_size=32, policy=None)
    arguments = {"spec": spec, "stop_epoch": 1, "device": torch.device("cpu"), "name": name}
    monkeypatch.setitem(sys.modules, f"fastmoco.pipelines.{name}_loader", None)  # cannot be loaded
    if is_installed(package):
        with pytest.raises(UsageError, match=rf"pipeline\.name={name} cannot be loaded .*=beton"):
            build_loader(dataset, plan, **arguments)
    monkeypatch.setattr(choose, "is_installed", lambda _: False)
    with pytest.raises(
        UsageError, match=f"needs {package}, .*pip install {DISTRIBUTIONS[name]}, or set pip"
    ):
        build_loader(dataset, plan, **arguments)
    assert not is_installed("no_such_parent.module")


def test_unknown_loader_is_refused_with_the_allowed_names(dataset: BetonFile) -> None:
    plan = EpochPlan(seed=0, epoch=0, num_samples=8, global_batch_size=4)
    with pytest.raises(ValueError, match=r"pipeline\.name=betno.*auto, beton, .*torchvision"):
        build_loader(dataset, plan, spec=training(), stop_epoch=1, device=CPU, name="betno")


def test_plan_of_more_samples_than_there_are_is_refused(dataset: BetonFile) -> None:
    with pytest.raises(ValueError, match="23 samples"):
        open_loader(dataset, training(), num_samples=NUM_SAMPLES + 1)


def test_auto_is_the_beton_loader(dataset: BetonFile) -> None:
    loader = open_loader(dataset, training())
    assert isinstance(loader, BetonLoader)
    assert loader.decode_device == "cpu"
    loader.close()


@pytest.mark.parametrize(
    ("height", "width", "share", "box"),
    [
        (256, 256, 0.875, [16, 16, 224, 224]),
        (256, 400, 0.875, [16, 88, 224, 224]),
        (400, 256, 0.5, [136, 64, 128, 128]),
        (32, 33, 1.0, [0, 0, 32, 32]),
        (1, 9, 0.1, [0, 4, 1, 1]),
    ],
)
def test_central_box(height: int, width: int, share: float, box: list[int]) -> None:
    assert central_boxes(np.array([height]), np.array([width]), share).tolist() == [[box]]


def test_evaluation_keeps_file_order_and_the_partial_batch(dataset: BetonFile) -> None:
    batches = [
        (batch.sample_id.tolist(), batch.label.tolist(), tuple(batch.crops.shape))
        for batch in open_loader(dataset, evaluation(), training=False)
    ]
    assert [i for ids, _, _ in batches for i in ids] == list(range(NUM_SAMPLES))
    assert [x for _, labels, _ in batches for x in labels] == dataset.labels.tolist()
    assert [shape for *_, shape in batches] == [(4, 1, 32, 32, 3)] * 5 + [(2, 1, 32, 32, 3)]


def test_rank_without_samples_of_a_partial_batch_gets_an_empty_one(dataset: BetonFile) -> None:
    values = {"training": False, "num_samples": 5, "rank": 1, "world_size": 2}
    shapes = [len(batch.crops) for batch in open_loader(dataset, evaluation(), **values)]
    assert shapes == [2, 0]


def test_nothing_to_load_ends_at_once(dataset: BetonFile) -> None:
    assert list(open_loader(dataset, training(), stop_epoch=0)) == []


def test_each_image_is_decoded_once(dataset: BetonFile, monkeypatch: pytest.MonkeyPatch) -> None:
    counted = CountedDecode(dataset)
    use_decode(monkeypatch)
    monkeypatch.setattr(dataset, "decode", counted)
    sample_ids = [i for b in open_loader(dataset, training()) for i in b.sample_id.tolist()]
    assert sorted(counted.sample_ids) == sorted(sample_ids)


def test_batch_stays_valid_while_the_next_ones_are_made(
    dataset: BetonFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = CountedDecode(dataset)
    use_decode(monkeypatch)
    monkeypatch.setattr(dataset, "decode", counted)
    loader = open_loader(dataset, training(num_threads=2, prefetch_batches=2), stop_epoch=3)
    for k in range(1, 6):
        batch = next(loader)
        before = [batch.crops.clone(), batch.boxes.clone(), batch.sample_id.clone()]
        assert counted.reached((k + 2) * BATCH), "prefetching stopped"
        assert all(map(torch.equal, before, [batch.crops, batch.boxes, batch.sample_id]))
        assert not counted.reached((k + 2) * BATCH + 1, timeout=0.02), "ran into the batch in use"
    loader.close()


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def warmed_up(dataset: BetonFile, name: str) -> ViewLoader:
    """A loader with 10 of 60 epochs behind it."""
    spec = training(num_threads=2, prefetch_batches=2)
    loader = open_loader(dataset, spec, stop_epoch=60, name=name)
    for _ in range(10 * 5):
        next(loader)
    return loader


@pytest.mark.parametrize("name", ["beton", "resident", "torchvision"])
def test_memory_is_flat_over_50_epochs(dataset: BetonFile, name: str) -> None:
    loader = warmed_up(dataset, name)
    before = resident_bytes()
    assert sum(1 for _ in loader) == 50 * 5
    assert resident_bytes() - before < 4 << 20


@pytest.mark.parametrize("name", ["beton", "resident"])
def test_batches_share_the_memory_of_three(dataset: BetonFile, name: str) -> None:
    assert len({batch.crops.data_ptr() for batch in warmed_up(dataset, name)}) <= 3


@pytest.fixture
def _five_torch_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(5)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("_five_torch_threads")
def test_loading_leaves_the_thread_count_of_torch_alone(dataset: BetonFile) -> None:
    assert len(list(open_loader(dataset, training(num_threads=3)))) == 5
    assert torch.get_num_threads() == 5


def test_waiting_is_measured(dataset: BetonFile) -> None:
    waits = [batch.data_wait_seconds for batch in open_loader(dataset, training())]
    assert all(0 <= wait < 30 for wait in waits)
    assert waits[0] > 0
