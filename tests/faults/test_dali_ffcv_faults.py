"""The loaders that run foreign code: damage, hangs, early ends; each in a process of its own.

One process a loader: FFCV's decoder takes seconds to compile, and a fault could end the process.
"""

import gc
import importlib
import json
import os
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from fastmoco.data.beton import BetonFile
from fastmoco.data.beton_format import MODE_RAW
from fastmoco.data.beton_set import BetonSet
from fastmoco.pipelines import background
from fastmoco.pipelines import build as loaders
from fastmoco.pipelines.contract import EpochPlan, ViewLoader
from tests.limits import HANG_SECONDS
from tests.loader_data import loader_threads, training, write_beton
from tests.optional import require

NUM_SAMPLES, BATCH = 24, 4
PLAN = EpochPlan(seed=0, epoch=0, num_samples=NUM_SAMPLES, global_batch_size=BATCH)
ORDER = PLAN.order().tolist()
PACKAGES = {"dali": "nvidia.dali", "ffcv": "ffcv"}
DISTRIBUTIONS = {"dali": "nvidia-dali-cuda130", "ffcv": "ffcv"}
MODULES = {"dali": "dali_loader", "ffcv": "ffcv_loader"}


def open_loader(name: str, dataset: BetonFile, stop_epoch: int = 50, **values) -> ViewLoader:
    module = loaders.importlib.import_module(loaders.LOADERS[name])
    spec, device = training(num_threads=2), torch.device("cpu")
    return module.build(dataset, PLAN, spec, stop_epoch, device, **values)


def raised(action: Callable[[], object]) -> str:
    """The exception's type and message, or ``nothing``."""
    try:
        action()
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def threads_left() -> list[str]:
    deadline = time.monotonic() + 10
    while loader_threads() and time.monotonic() < deadline:
        for thread in loader_threads():
            thread.join(0.1)
    return [thread.name for thread in loader_threads()]


def damaged_copy(path: Path, sample_id: int, change: Callable[[bytearray], None]) -> Path:
    """A copy of the file with a stored image changed."""
    data = bytearray(path.read_bytes())
    with BetonFile.open(path) as intact:
        blob = bytearray(intact.blob(sample_id))
    start = data.index(blob)
    change(blob)
    data[start : start + len(blob)] = blob
    copy = path.with_name("damaged.beton")
    copy.write_bytes(data)
    return copy


def flip_bit(blob: bytearray) -> None:
    blob[300] ^= 0x40


def wipe(blob: bytearray) -> None:
    blob[200:] = bytes(len(blob) - 200)


def damage(name: str, path: Path) -> dict[str, object]:
    with BetonFile.open(damaged_copy(path, ORDER[5], flip_bit)) as dataset:
        loader = open_loader(name, dataset)
        first = next(loader).sample_id.tolist()
        error = raised(loader.__next__)
        after = raised(loader.__next__)
    return {"first": first, "error": error, "after": after, "threads": threads_left()}


def undecodable(name: str, path: Path) -> dict[str, object]:
    """A wiped JPEG, as if checksum and header had been right: the decoder must tell."""
    bad = ORDER[6]
    with BetonFile.open(path) as intact:
        whole = bytearray(intact.blob(bad))
    wipe(wiped := whole.copy())
    shape = background.jpeg_shape
    with BetonFile.open(damaged_copy(path, bad, wipe)) as dataset:
        blob = dataset.blob
        dataset.blob = lambda i: memoryview(wiped) if i == bad else blob(i)
        background.jpeg_shape = lambda b: shape(bytes(whole if bytes(b) == wiped else b))
        loader = open_loader(name, dataset)
        first = next(loader).sample_id.tolist()
        error = raised(loader.__next__)
    background.jpeg_shape = shape
    return {"first": first, "error": error, "threads": threads_left()}


def hang(name: str, path: Path) -> dict[str, object]:
    """The reader stands still: a `next` ends all the same, and so does the rest."""
    background.STOP_SECONDS = 0.2
    gate = threading.Event()
    with BetonFile.open(path) as dataset:
        blob = dataset.blob
        dataset.blob = lambda sample_id: gate.wait(30) and blob(sample_id)
        loader = open_loader(name, dataset, timeout_seconds=0.2)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            error = raised(loader.__next__)
        after = raised(loader.__next__)
        gate.set()
        left = threads_left()
    stuck = [str(w.message) for w in caught if "stuck" in str(w.message)]
    return {"error": error, "after": after, "threads": left, "stuck": stuck}


def early_ends(name: str, path: Path) -> dict[str, object]:
    """Closed unused, closed in the middle, twice, dropped, and again and again."""
    with BetonFile.open(path) as dataset:
        open_loader(name, dataset).close()
        closed_unused = threads_left()
        loader = open_loader(name, dataset)
        kept = next(loader).crops
        copy = kept.clone()
        start = time.perf_counter()
        loader.close()
        seconds = time.perf_counter() - start
        loader.close()
        closed, valid = threads_left(), torch.equal(kept, copy)
        after = raised(loader.__next__)
        del loader
        for _ in open_loader(name, dataset):
            break
        gc.collect()
        dropped = threads_left()
        repeated = repeat(name, dataset)
    return {
        "closed_unused": closed_unused,
        "closed": closed,
        "seconds": seconds,
        "valid": valid,
        "after": after,
        "dropped": dropped,
    } | repeated


def repeat(name: str, dataset: BetonFile) -> dict[str, object]:
    """What 100 loaders leave behind."""

    def held() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), threading.active_count()

    before, crops = held(), []
    for i in range(100):
        loader = open_loader(name, dataset)
        crops.append(next(loader).crops.clone())
        for _ in range(i % 3):
            next(loader)
        loader.close()
    gc.collect()
    leaves = [after - was for after, was in zip(held(), before, strict=True)]
    return {"leaves": leaves, "same": all(torch.equal(c, crops[0]) for c in crops)}


def many_epochs(name: str, path: Path) -> dict[str, object]:
    """By how much 50 epochs raise the resident memory, after ten of warm-up."""

    def held() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    with BetonFile.open(path) as dataset:
        loader = open_loader(name, dataset, stop_epoch=60)
        for _ in range(10 * NUM_SAMPLES // BATCH):
            next(loader)
        before = held()
        batches = sum(1 for _ in loader)
    return {"batches": batches, "growth_bytes": held() - before, "threads": threads_left()}


def two_at_once(name: str, path: Path) -> dict[str, object]:
    with BetonFile.open(path) as dataset:
        pair = [open_loader(name, dataset, stop_epoch=2) for _ in range(2)]
        same = all(
            torch.equal(a.crops, b.crops) and torch.equal(a.boxes, b.boxes)
            for a, b in zip(*pair, strict=True)
        )
    return {"same": same, "threads": threads_left()}


def dead_thread(name: str, path: Path) -> dict[str, object]:
    """FFCV's thread dies of what is no StopIteration, and says nothing."""
    if name != "ffcv":
        return {}
    memory = sys.modules["fastmoco.pipelines.ffcv_runtime"].Memory
    intact, threading.excepthook = memory.start_batch, lambda _: None
    memory.start_batch = lambda self, batch: intact(self, batch) if batch < 1 else 1 / 0
    with BetonFile.open(path) as dataset:
        loader = open_loader(name, dataset)
        next(loader)
        error = raised(loader.__next__)
    memory.start_batch, threading.excepthook = intact, threading.__excepthook__
    return {"error": error, "threads": threads_left()}


def refused(name: str, path: Path) -> dict[str, object]:
    """What a loader does not read."""
    with BetonFile.open(path) as dataset:
        if name == "ffcv":
            return {"error": raised(lambda: open_loader(name, BetonSet(path, [dataset, dataset])))}
        dataset.modes = dataset.modes.copy()
        dataset.modes[0] = MODE_RAW
        return {"error": raised(lambda: open_loader(name, dataset))}


SCENARIOS = [damage, undecodable, hang, early_ends, many_epochs, two_at_once, dead_thread, refused]


def main(name: str, path: str) -> None:
    """Run all scenarios of a loader, and leave one open at the end."""
    results = {scenario.__name__: scenario(name, Path(path)) for scenario in SCENARIOS}
    left_open = open_loader(name, BetonFile.open(path))
    next(left_open)
    print(json.dumps(results))


@pytest.fixture(scope="module")
def set_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with write_beton(tmp_path_factory.mktemp("set"), NUM_SAMPLES) as beton:
        return beton.path


@pytest.fixture(scope="module", params=[pytest.param("ffcv", marks=pytest.mark.full), "dali"])
def results(request: pytest.FixtureRequest, set_path: Path) -> dict[str, dict]:
    require(PACKAGES[request.param])
    script = f"from {__name__} import main; main({request.param!r}, {str(set_path)!r})"
    script = script.replace(__name__, "tests.faults.test_dali_ffcv_faults")
    top = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=top,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_damaged_sample_is_raised_by_name_in_its_turn(results: dict[str, dict]) -> None:
    found = results["damage"]
    assert found["first"] == ORDER[:BATCH]
    assert found["error"].startswith("BetonError")
    assert f"sample {ORDER[5]}" in found["error"]
    assert "checksum" in found["error"]
    assert found["after"].startswith("StopIteration")
    assert found["threads"] == []


def test_image_that_the_decoder_refuses_is_raised_by_name(results: dict[str, dict]) -> None:
    found = results["undecodable"]
    assert found["first"] == ORDER[:BATCH]
    assert found["error"].startswith("BetonError")
    assert f"sample {ORDER[6]}" in found["error"]
    assert found["threads"] == []


def test_hang_is_a_timeout_that_says_what_to_do(results: dict[str, dict]) -> None:
    found = results["hang"]
    assert found["error"].startswith("HungReadError: reading sample ")
    assert "has taken more than 0.2 s" in found["error"]
    assert "pipeline.name=beton" in found["error"]
    assert found["after"].startswith("StopIteration")
    assert len(found["stuck"]) == 1
    assert found["threads"] == []


def test_early_ends_leave_nothing(results: dict[str, dict]) -> None:
    found = results["early_ends"]
    assert found["closed_unused"] == found["closed"] == found["dropped"] == []
    assert found["seconds"] < 4
    assert found["valid"]
    assert found["after"].startswith("StopIteration")
    assert found["leaves"] == [0, 0]
    assert found["same"]


def test_memory_is_flat_over_50_epochs(results: dict[str, dict]) -> None:
    found = results["many_epochs"]
    assert found["batches"] == 50 * NUM_SAMPLES // BATCH
    assert found["growth_bytes"] < 8 << 20
    assert found["threads"] == []


def test_two_loaders_at_once_disturb_each_other_not(results: dict[str, dict]) -> None:
    assert results["two_at_once"] == {"same": True, "threads": []}


def test_thread_that_dies_silently_is_reported(results: dict[str, dict]) -> None:
    if found := results["dead_thread"]:
        assert found == {"error": "RuntimeError: FFCV's thread ended early", "threads": []}


def test_what_cannot_be_read_is_refused_with_the_loader_to_take(results: dict[str, dict]) -> None:
    error = results["refused"]["error"]
    assert error.startswith("UsageError")
    assert error.endswith("set pipeline.name=beton")


@pytest.mark.parametrize("name", PACKAGES)
def test_missing_package_is_one_line_with_the_extra(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = f"fastmoco.pipelines.{MODULES[name]}"
    package, ours = PACKAGES[name].split(".")[0], f"fastmoco.pipelines.{name}_"
    for loaded in [key for key in sys.modules if key.split(".")[0] == package or ours in key]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.setitem(sys.modules, PACKAGES[name], None)
    with pytest.raises(ImportError) as caught:
        importlib.import_module(module)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(f"pipeline.name={name} needs")
    assert f"pip install {DISTRIBUTIONS[name]}" in line
