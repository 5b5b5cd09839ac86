"""The FFCV loader against the reference and against itself; FFCV runs in a process of its own."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fastmoco.data.beton import BetonFile
from fastmoco.data.convert import Encoding
from fastmoco.pipelines.contract import Batch
from tests.equivalence.test_loaders import NUM_SAMPLES, TENSORS, assert_equal, load
from tests.limits import HANG_SECONDS
from tests.loader_data import evaluation, training, write_beton
from tests.optional import require


@pytest.fixture(scope="module", autouse=True)
def ffcv() -> None:
    require("ffcv")


pytestmark = pytest.mark.full

SMALL = {"training": False, "num_samples": 9, "world_size": 2}
CASES = {
    "epochs": (training(), {"stop_epoch": 3}),
    "second epoch": (training(), {"epoch": 1, "stop_epoch": 2}),
    "restart": (training(), {"start_batch": 3, "stop_epoch": 3}),
    "restart at the end": (training(), {"start_batch": 5, "stop_epoch": 2}),
    "one thread": (training(num_threads=1, prefetch_batches=1), {}),
    "rank 0": (training(), {"rank": 0, "world_size": 2}),
    "rank 1": (training(), {"rank": 1, "world_size": 2}),
    "evaluation": (evaluation(), {"training": False, "stop_epoch": 2}),
    "empty": (evaluation(), SMALL | {"rank": 1, "stop_epoch": 2}),
}
SCRIPT = """
import sys
import torch
from fastmoco.data.beton import BetonFile
from tests.equivalence.test_ffcv_loader import CASES, load

torch.set_num_threads(2)
with BetonFile.open(sys.argv[1]) as dataset:
    loaded = {
        name: load(dataset, spec, name="ffcv", **values) for name, (spec, values) in CASES.items()
    }
assert torch.get_num_threads() == 2, torch.get_num_threads()
torch.save(loaded, sys.argv[2])
"""


@pytest.fixture(scope="module", params=[Encoding.jpeg, Encoding.raw])
def dataset(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[BetonFile]:
    folder = tmp_path_factory.mktemp("set")
    with write_beton(folder, NUM_SAMPLES, encoding=request.param) as beton:
        yield beton


@pytest.fixture(scope="module")
def loaded(dataset: BetonFile) -> dict[str, list[Batch]]:
    """What FFCV's loader gave in each of `CASES`."""
    saved = dataset.path.parent / "loaded.pt"
    command = [sys.executable, "-c", SCRIPT, str(dataset.path), str(saved)]
    top = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=top, capture_output=True, text=True, timeout=HANG_SECONDS)
    assert done.returncode == 0, done.stderr
    return torch.load(saved, weights_only=False)


@pytest.mark.parametrize("case", CASES)
def test_batches_are_those_of_the_reference(
    dataset: BetonFile, loaded: dict[str, list[Batch]], case: str
) -> None:
    spec, values = CASES[case]
    expected = load(dataset, spec, name="torchvision", **values)
    ours = loaded[case]
    assert_equal(ours, expected, ("boxes", "sample_id", "draw_key", "label"))
    a, b = (torch.cat([batch.crops for batch in x]).int() for x in (ours, expected))
    difference = (a - b).abs().float()
    # Measured: mean 2.2 for JPEGs, by FFCV's fast inverse DCT; 0.8 for pixels, by its area filter.
    assert difference.mean() < 4
    assert difference.flatten().quantile(0.999) <= 16
    assert (a.roll(1, 2) - b).abs().float().mean() > 5  # one pixel off is seen


def test_restart_gives_the_same_bits(loaded: dict[str, list[Batch]]) -> None:
    assert len(loaded["epochs"]) == 15
    assert_equal(loaded["restart"], loaded["epochs"][3:])
    assert_equal(loaded["restart at the end"], loaded["epochs"][5:10])


def test_an_epoch_is_the_same_alone(loaded: dict[str, list[Batch]]) -> None:
    assert_equal(loaded["second epoch"], loaded["epochs"][5:10])


def test_any_number_of_threads_gives_the_same_bits(loaded: dict[str, list[Batch]]) -> None:
    assert_equal(loaded["one thread"], loaded["epochs"][:5])


def test_two_ranks_together_are_the_whole(loaded: dict[str, list[Batch]]) -> None:
    ranks = loaded["rank 0"], loaded["rank 1"]
    for batch, *parts in zip(loaded["epochs"][:5], *ranks, strict=True):
        for field in TENSORS:
            together = torch.cat([getattr(part, field) for part in parts])
            assert torch.equal(getattr(batch, field), together), field


def test_evaluation_keeps_the_partial_batch_and_an_empty_one(
    loaded: dict[str, list[Batch]],
) -> None:
    assert [len(batch.crops) for batch in loaded["evaluation"]] == [8, 8, 8, 8, 8, 4] * 2
    assert [len(batch.crops) for batch in loaded["empty"]] == [4, 0, 4, 0]
