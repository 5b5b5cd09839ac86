"""The beton and resident loaders against the reference, themselves, and the draws."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import center_crop, resize

from fastmoco.data.beton import BetonFile
from fastmoco.data.convert import Encoding
from fastmoco.draws.host import draw_keys, epoch_order, random_resized_crop_boxes
from fastmoco.pipelines import resident_loader
from fastmoco.pipelines.build import build_loader
from fastmoco.pipelines.contract import Batch, EpochPlan, LoaderSpec
from fastmoco.pipelines.torchvision_loader import TorchvisionLoader
from tests.loader_data import evaluation, training, write_beton

CPU = torch.device("cpu")
NUM_SAMPLES, BATCH, SEED = 44, 8, 5
ON_DEVICE = "resident, cropped on the device"  # as it would be on a GPU
FAST = pytest.mark.parametrize("name", ["beton", "resident", ON_DEVICE])
ALL = pytest.mark.parametrize("name", ["beton", "resident", ON_DEVICE, "torchvision"])
TENSORS = ("crops", "boxes", "sample_id", "draw_key", "label")


@pytest.fixture(scope="module", params=[Encoding.jpeg, Encoding.raw])
def dataset(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BetonFile]:
    folder = tmp_path_factory.mktemp("set")
    with write_beton(folder, NUM_SAMPLES, encoding=request.param) as beton:
        yield beton


def load(
    dataset: BetonFile,
    spec: LoaderSpec,
    *,
    name: str = "beton",
    stop_epoch: int = 1,
    device: torch.device = CPU,
    **values,
) -> list[Batch]:
    """All batches, copied out of the loader's buffers."""
    settings = {"seed": SEED, "epoch": 0, "num_samples": NUM_SAMPLES, "global_batch_size": BATCH}
    plan = EpochPlan(**settings | values)
    if name == ON_DEVICE:
        resident = resident_loader.resident_set(dataset, 1, device)
        loader = resident_loader.build_on_device(resident, dataset, plan, spec, stop_epoch)
    else:
        loader = build_loader(
            dataset, plan, spec=spec, stop_epoch=stop_epoch, device=device, name=name
        )
    return [
        Batch(**{field: getattr(batch, field).clone() for field in TENSORS}, data_wait_seconds=0)
        for batch in loader
    ]


def assert_equal(ours: list[Batch], expected: list[Batch], fields: tuple[str, ...] = TENSORS):
    assert len(ours) == len(expected) > 0
    for a, b in zip(ours, expected, strict=True):
        for field in fields:
            assert torch.equal(getattr(a, field), getattr(b, field)), field


def mean_difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.int() - b.int()).abs().float().mean().item()


@ALL
def test_order_keys_and_boxes_are_those_of_the_draws(dataset: BetonFile, name: str) -> None:
    batches = load(dataset, training(), name=name, epoch=2, stop_epoch=3)
    ids = epoch_order(SEED, 2, NUM_SAMPLES)[: NUM_SAMPLES // BATCH * BATCH]
    keys = draw_keys(SEED, 2, ids)
    sizes = dataset.heights[ids], dataset.widths[ids]
    boxes = random_resized_crop_boxes(
        keys, *sizes, scale=(0.2, 1), ratio=(3 / 4, 4 / 3), num_views=2
    )
    for field, expected in [("sample_id", ids), ("draw_key", keys), ("boxes", boxes)]:
        assert np.array_equal(torch.cat([getattr(b, field) for b in batches]), expected)
    assert np.array_equal(torch.cat([b.label for b in batches]), dataset.labels[ids])


@FAST
@pytest.mark.parametrize("spec", [training(), evaluation()], ids=["training", "evaluation"])
def test_pixels_are_those_of_pil(dataset: BetonFile, spec: LoaderSpec, name: str) -> None:
    is_training = spec.policy is not None
    ours = load(dataset, spec, training=is_training, name=name)
    reference = load(dataset, spec, training=is_training, name="torchvision")
    assert_equal(ours, reference, ("boxes", "sample_id", "draw_key", "label"))
    a, b = (torch.cat([batch.crops for batch in x]).int() for x in (ours, reference))
    difference = (a - b).abs().float()
    assert difference.mean() < 0.5  # the contract allows 1
    assert torch.quantile(difference.flatten()[: 2**24], 0.999) <= 2  # the contract allows 16


def test_resident_on_the_cpu_gives_the_bits_of_beton(dataset: BetonFile) -> None:
    assert_equal(load(dataset, training(), name="resident"), load(dataset, training()))


def test_evaluation_is_resize_and_center_crop(dataset: BetonFile) -> None:
    crops = torch.cat([b.crops for b in load(dataset, evaluation(), training=False)])[:, 0]
    reference = TorchvisionLoader(dataset, 32, CPU, iter(()))
    images = [reference._decode(i) for i in range(NUM_SAMPLES)]
    small = [resize(image, 36, InterpolationMode.BILINEAR) for image in images]  # 32 / 0.875
    expected = torch.stack([torch.from_numpy(np.array(center_crop(x, 32))) for x in small])
    # Cut before and cut after resizing may be half a pixel apart; one pixel is too much.
    assert mean_difference(crops, expected) < 8
    assert mean_difference(torch.roll(crops, 1, 1), expected) > 16


@ALL
@pytest.mark.parametrize("num_threads", [2, 8])
def test_any_number_of_threads_gives_the_same_bits(
    dataset: BetonFile, name: str, num_threads: int
) -> None:
    one = load(dataset, training(num_threads=1), name=name, stop_epoch=3)
    assert_equal(load(dataset, training(num_threads=num_threads), name=name, stop_epoch=3), one)


@ALL
def test_restart_in_the_middle_of_an_epoch_gives_the_same_bits(
    dataset: BetonFile, name: str
) -> None:
    whole = load(dataset, training(), name=name, stop_epoch=2)
    assert len(whole) == 10
    assert_equal(load(dataset, training(), name=name, stop_epoch=2, start_batch=3), whole[3:])
    assert_equal(load(dataset, training(), name=name, stop_epoch=2, start_batch=5), whole[5:])


@ALL
def test_epochs_in_one_go_are_the_epochs_one_by_one(dataset: BetonFile, name: str) -> None:
    single = [
        b for e in range(3) for b in load(dataset, training(), name=name, epoch=e, stop_epoch=e + 1)
    ]
    assert_equal(load(dataset, training(), name=name, stop_epoch=3), single)
    assert not torch.equal(single[0].crops, single[5].crops)


@ALL
def test_two_ranks_together_give_the_same_bits(dataset: BetonFile, name: str) -> None:
    whole = load(dataset, training(), name=name)
    ranks = [load(dataset, training(), name=name, rank=rank, world_size=2) for rank in range(2)]
    for batch, *parts in zip(whole, *ranks, strict=True):
        for field in TENSORS:
            together = torch.cat([getattr(part, field) for part in parts])
            assert torch.equal(getattr(batch, field), together), field


@pytest.mark.gpu
def test_batches_on_cuda_are_those_on_the_cpu(dataset: BetonFile) -> None:
    cuda = torch.device("cuda")
    host = load(dataset, training(), stop_epoch=20)
    on_device = load(dataset, training(), stop_epoch=20, device=cuda)
    assert on_device[0].crops.device.type == "cuda"
    back = [
        Batch(**{f: getattr(b, f).cpu() for f in TENSORS}, data_wait_seconds=0) for b in on_device
    ]
    assert_equal(back, host)
