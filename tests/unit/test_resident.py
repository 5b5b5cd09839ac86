"""The resident loader: it resizes as PIL does, refuses what does not fit, leaves nothing behind."""

import threading
import weakref
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fastmoco.data.beton import BetonError, BetonFile
from fastmoco.pipelines import resident_loader
from fastmoco.pipelines.build import build_loader
from fastmoco.pipelines.contract import EpochPlan, LoaderSpec, ViewLoader
from fastmoco.pipelines.device_crops import crop_and_resize
from fastmoco.train.acceleration import GraphedStep
from tests.loader_data import evaluation, loader_threads, training, write_beton
from tests.recording import TapeRecording
from tests.steps import differing, make_step, tensors_of

CPU = torch.device("cpu")
PLAN = EpochPlan(seed=0, epoch=0, num_samples=20, global_batch_size=4)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BetonFile]:
    with write_beton(tmp_path_factory.mktemp("set"), 20) as beton:
        yield beton


def boxes_within(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Any boxes, also of one pixel and of the whole image."""
    sizes = rng.integers(1, [height + 1, width + 1], (count, 2))
    sizes[0], sizes[1] = (1, 1), (height, width)
    corners = rng.integers(0, [height, width] - sizes + 1)
    return np.concatenate([corners, sizes], axis=1).astype(np.int32)


@pytest.mark.parametrize("size", [1, 7, 32, 64])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 23), (1, 50)])
def test_noise_is_resized_as_pil_does(size: int, height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, height, width, 3), dtype=np.uint8)
    boxes = boxes_within(rng, 24, height, width).reshape(12, 2, 4)
    crops = crop_and_resize(torch.from_numpy(images), torch.from_numpy(boxes), size)
    assert crops.shape == (12, 2, size, size, 3)
    assert crops.is_contiguous()
    for image, views, ours in zip(images, boxes, crops, strict=True):
        for (top, left, h, w), crop in zip(views, ours, strict=True):
            cut = Image.fromarray(image[top : top + h, left : left + w])
            expected = np.asarray(cut.resize((size, size), Image.Resampling.BILINEAR))
            assert np.abs(crop.numpy().astype(int) - expected.astype(int)).max() <= 1


def test_even_colors_stay_as_they_are() -> None:
    rng = np.random.default_rng(1)
    levels = torch.arange(256, dtype=torch.uint8)[:, None, None, None].expand(256, 19, 26, 3)
    boxes = torch.from_numpy(boxes_within(rng, 256, 19, 26))[:, None]
    crops = crop_and_resize(levels.contiguous(), boxes, 13)
    assert (crops == levels[:, None, :13, :13]).all()


def test_a_crop_does_not_depend_on_the_rest_of_its_batch() -> None:
    rng = np.random.default_rng(2)
    images = torch.from_numpy(rng.integers(0, 256, (64, 33, 41, 3), dtype=np.uint8))
    boxes = torch.from_numpy(boxes_within(rng, 128, 33, 41).reshape(64, 2, 4))
    together = crop_and_resize(images, boxes, 32)
    for i in range(0, 64, 7):
        assert torch.equal(crop_and_resize(images[i : i + 1], boxes[i : i + 1], 32)[0], together[i])


def test_a_set_that_does_not_fit_is_refused(
    dataset: BetonFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = resident_loader.resident_bytes(dataset)
    monkeypatch.setattr(resident_loader, "free_bytes", lambda _: 2 * needed - 1)
    with pytest.raises(
        ValueError, match=r"pipeline.name=resident needs .* set pipeline.name=beton"
    ):
        build_loader(dataset, PLAN, spec=training(), stop_epoch=1, device=CPU, name="resident")
    monkeypatch.setattr(resident_loader, "free_bytes", lambda _: 2 * needed)
    build_loader(dataset, PLAN, spec=training(), stop_epoch=1, device=CPU, name="resident").close()


def test_free_memory_is_plausible() -> None:
    assert 1 << 20 < resident_loader.free_bytes(CPU) < 1 << 50


def test_a_damaged_image_is_named(dataset: BetonFile, tmp_path: Path) -> None:
    path = tmp_path / "x.beton"
    data = bytearray(dataset.path.read_bytes())
    place = data.index(bytes(dataset.blob(7)))
    data[place + 200] ^= 1
    path.write_bytes(data)
    with (
        BetonFile.open(path) as damaged,
        pytest.raises(BetonError, match=rf"sample 7 \({dataset.name(7)}\)"),
    ):
        build_loader(damaged, PLAN, spec=training(), stop_epoch=1, device=CPU, name="resident")


@pytest.mark.parametrize("on_device", [False, True])
def test_nothing_is_left_behind(dataset: BetonFile, on_device: bool) -> None:
    before = threading.active_count()
    images = resident_loader.resident_set(dataset, 1, CPU)
    for number in range(100):
        loader: ViewLoader
        if on_device:
            loader = resident_loader.build_on_device(images, dataset, PLAN, training(), 50)
        else:
            loader = build_loader(
                dataset, PLAN, spec=training(), stop_epoch=50, device=CPU, name="resident"
            )
        batches = list(islice(loader, number % 3))
        loader.close()
        loader.close()
        assert all(batch.crops.shape == (4, 2, 32, 32, 3) for batch in batches)
        with pytest.raises(StopIteration):
            next(loader)
    assert loader_threads() == []
    assert threading.active_count() == before


def test_evaluation_keeps_the_last_partial_batch(dataset: BetonFile) -> None:
    plan = EpochPlan(seed=0, epoch=0, num_samples=20, global_batch_size=8, training=False)
    loader = build_loader(
        dataset, plan, spec=evaluation(), stop_epoch=1, device=CPU, name="resident"
    )
    assert [len(batch.crops) for batch in loader] == [8, 8, 4]


def test_open_loaders_of_a_set_share_its_images(
    dataset: BetonFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded, decode = [], resident_loader._decode_set
    monkeypatch.setattr(
        resident_loader, "_decode_set", lambda *given: decoded.append(1) or decode(*given)
    )

    def first(opened: BetonFile, spec: LoaderSpec) -> tuple[ViewLoader, torch.Tensor]:
        plan = replace(PLAN, training=spec.policy is not None)
        loader = build_loader(opened, plan, spec=spec, stop_epoch=1, device=CPU, name="resident")
        return loader, next(loader).crops.clone()

    with BetonFile.open(dataset.path) as again:  # as the monitor opens it
        kept, _ = first(dataset, training())
        other, shared = first(again, evaluation())
        assert len(decoded) == 1
        opened = weakref.ref(resident_loader.resident_set(again, 1, CPU))
        assert opened() is not None
        for loader in (kept, other):
            loader.close()
        del kept, other, loader
        assert opened() is None  # freed with the last loader
        alone, crops = first(again, evaluation())
        alone.close()
    assert len(decoded) == 2
    assert torch.equal(shared, crops)


def test_a_closed_loader_frees_its_set_on_the_device(dataset: BetonFile) -> None:
    resident = resident_loader.resident_set(dataset, 1, CPU)
    freed = weakref.ref(resident.images)
    loader = resident_loader.build_on_device(resident, dataset, PLAN, training(), 50)
    batch = next(loader)
    assert batch.data_wait_seconds > 0  # for the draws of the epoch
    assert next(loader).data_wait_seconds == 0  # the crops are the device's own work
    loader.close()
    del resident
    assert freed() is None


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_recorded_step_cuts_the_crops_that_the_loader_would(
    dataset: BetonFile, accumulate: int
) -> None:
    resident = resident_loader.resident_set(dataset, 1, CPU)
    steps = [make_step(accumulate=accumulate) for _ in range(2)]
    recording = TapeRecording(lambda: tensors_of(steps[1]).values())
    found = []
    for step, in_step in ((steps[0], False), (GraphedStep(steps[1], recording), True)):
        spec = training(cut_in_step=in_step)
        loader = resident_loader.build_on_device(resident, dataset, PLAN, spec, 2)
        with closing(loader):
            found.append(torch.stack([step(batch, 0.03).clone() for batch in loader]))
    assert recording.replays == 7
    assert torch.equal(*found)
    assert differing(*steps) == []
