"""Errors, interruptions and early ends: raised, ended, freed, and never a hang."""

import functools
import gc
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from fastmoco.data.beton import BetonError, BetonFile
from fastmoco.pipelines import background, prefetch, reads
from fastmoco.pipelines.build import build_loader
from fastmoco.pipelines.contract import EpochPlan, ViewLoader
from tests.limits import HANG_SECONDS
from tests.loader_data import loader_threads, training, use_decode, write_beton

NUM_SAMPLES, BATCH = 24, 4
PLAN = EpochPlan(seed=0, epoch=0, num_samples=NUM_SAMPLES, global_batch_size=BATCH)
ORDER = PLAN.order().tolist()
NAMES = ["beton", "resident", "torchvision"]


@pytest.fixture
def dataset(set_path: Path) -> Iterator[BetonFile]:
    with BetonFile.open(set_path) as beton:
        yield beton


@pytest.fixture(scope="module")
def set_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    with write_beton(tmp_path_factory.mktemp("set"), NUM_SAMPLES) as beton:
        return beton.path


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    yield
    for thread in loader_threads():
        thread.join(10)
    assert loader_threads() == []


def open_loader(
    dataset: BetonFile, *, name: str = "beton", stop_epoch: int = 50, **values: int
) -> ViewLoader:
    spec = training(**{"num_threads": 2} | values)
    device = torch.device("cpu")
    return build_loader(dataset, PLAN, spec=spec, stop_epoch=stop_epoch, device=device, name=name)


def break_decode(
    monkeypatch: pytest.MonkeyPatch, dataset: BetonFile, faults: dict[int, BaseException]
) -> None:
    intact = dataset.decode

    def decode(sample_id: int) -> np.ndarray:
        if sample_id in faults:
            raise faults[sample_id]
        return intact(sample_id)

    use_decode(monkeypatch)
    monkeypatch.setattr(dataset, "decode", decode)


class Gate:
    """A decoder that stands still until it is opened."""

    def __init__(self, dataset: BetonFile) -> None:
        self.decode = dataset.decode
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self, sample_id: int) -> np.ndarray:
        self.entered.set()
        assert self.opened.wait(30)
        return self.decode(sample_id)


@pytest.fixture
def gate(dataset: BetonFile, monkeypatch: pytest.MonkeyPatch) -> Iterator[Gate]:
    gate = Gate(dataset)
    use_decode(monkeypatch)
    monkeypatch.setattr(dataset, "decode", gate)
    yield gate
    gate.opened.set()


def test_error_of_a_worker_is_raised_in_its_turn_with_the_name(
    dataset: BetonFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = ORDER[2 * BATCH + 1]
    break_decode(monkeypatch, dataset, {bad: RuntimeError("no luck")})
    loader = open_loader(dataset)
    assert [next(loader).sample_id.tolist() for _ in range(2)] == [ORDER[:4], ORDER[4:8]]
    with pytest.raises(RuntimeError, match="no luck") as caught:
        next(loader)
    assert dataset.name(bad) in caught.value.__notes__[0]
    assert loader_threads() == []
    with pytest.raises(StopIteration):
        next(loader)


@pytest.mark.parametrize("num_threads", [1, 4])
def test_of_two_errors_the_first_in_order_is_raised(
    dataset: BetonFile, monkeypatch: pytest.MonkeyPatch, num_threads: int
) -> None:
    monkeypatch.setattr(prefetch, "CHUNK_ROWS", 1)
    faults = {ORDER[1]: ValueError("first"), ORDER[3]: ValueError("second")}
    break_decode(monkeypatch, dataset, faults)
    with pytest.raises(ValueError, match="first"):
        next(open_loader(dataset, num_threads=num_threads))


def test_even_an_exit_in_a_worker_reaches_the_consumer(
    dataset: BetonFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    break_decode(monkeypatch, dataset, {ORDER[0]: SystemExit(3)})
    loader = open_loader(dataset)
    with pytest.raises(SystemExit):
        next(loader)
    loader.close()


def test_error_in_drawing_a_batch_is_raised(
    dataset: BetonFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    use_decode(monkeypatch)
    monkeypatch.setattr(dataset, "heights", dataset.heights[:3])
    with pytest.raises(IndexError):
        list(open_loader(dataset))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("fault", [RuntimeError("no luck"), OSError("disk")], ids=repr)
def test_error_of_the_disk_is_raised_by_all(
    dataset: BetonFile, monkeypatch: pytest.MonkeyPatch, name: str, fault: Exception
) -> None:
    intact, bad = dataset.blob, ORDER[5]

    def blob(sample_id: int) -> memoryview:
        if sample_id == bad:
            raise fault
        return intact(sample_id)

    use_decode(monkeypatch)
    monkeypatch.setattr(dataset, "blob", blob)
    with pytest.raises(type(fault), match=str(fault)):
        list(open_loader(dataset, name=name))
    assert loader_threads() == []


@pytest.mark.parametrize("name", NAMES)
def test_damaged_sample_is_raised_by_name(set_path: Path, tmp_path: Path, name: str) -> None:
    damaged = bytearray(set_path.read_bytes())
    with BetonFile.open(set_path) as intact:
        at = damaged.index(bytes(intact.blob(ORDER[5])))
    damaged[at + 300] ^= 0x40
    path = tmp_path / "damaged.beton"
    path.write_bytes(damaged)
    with BetonFile.open(path) as beton:
        with pytest.raises(BetonError, match=f"sample {ORDER[5]}"):  # resident: at once
            list(open_loader(beton, name=name))


@pytest.mark.parametrize("name", NAMES)
def test_close_in_the_middle_ends_it_and_may_be_repeated(dataset: BetonFile, name: str) -> None:
    loader = open_loader(dataset, name=name)
    batch = next(loader)
    kept = batch.crops.clone()
    loader.close()
    assert loader_threads() == []
    loader.close()
    assert torch.equal(batch.crops, kept)
    with pytest.raises(StopIteration):
        next(loader)


@pytest.mark.parametrize("name", NAMES)
def test_break_and_drop_leaves_no_thread(dataset: BetonFile, name: str) -> None:
    loader = open_loader(dataset, name=name)
    for _ in loader:
        break
    assert bool(loader_threads()) == (name != "torchvision")
    del loader, _
    gc.collect()
    assert loader_threads() == []


def test_loader_in_a_reference_cycle_is_collected(dataset: BetonFile) -> None:
    holder = {"loader": open_loader(dataset)}
    holder["self"] = holder
    next(holder["loader"])
    del holder
    gc.collect()
    for thread in loader_threads():  # a worker may have collected it, and cannot wait for itself
        thread.join(10)
    assert loader_threads() == []


@pytest.mark.parametrize("name", NAMES)
def test_end_of_the_last_epoch_leaves_no_thread(dataset: BetonFile, name: str) -> None:
    assert len(list(open_loader(dataset, name=name, stop_epoch=2))) == 2 * NUM_SAMPLES // BATCH
    assert loader_threads() == []


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


@pytest.mark.parametrize("name", NAMES)
def test_a_hundred_loaders_leave_nothing(dataset: BetonFile, name: str) -> None:
    files, threads = open_files(), threading.active_count()
    for i in range(100):
        loader = open_loader(dataset, name=name, num_threads=1 + i % 4)
        if i % 3:
            next(loader)
        loader.close()
    assert threading.active_count() == threads
    assert open_files() == files


@pytest.mark.parametrize("prefetch_batches", [1, 3])
def test_close_with_workers_that_wait_for_a_free_slot(
    dataset: BetonFile, prefetch_batches: int
) -> None:
    loader = open_loader(dataset, num_threads=8, prefetch_batches=prefetch_batches)
    for _ in range(3):
        next(loader)
    loader.close()
    assert loader_threads() == []


def test_close_does_not_wait_for_a_stuck_worker(
    dataset: BetonFile, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "STOP_SECONDS", 0.1)
    loader = open_loader(dataset)
    assert gate.entered.wait(10)
    with pytest.warns(UserWarning, match="threads are stuck"):
        loader.close()
    with pytest.raises(StopIteration):
        next(loader)


@pytest.mark.parametrize("name", ["beton", "resident"])
def test_a_hung_read_is_named_after_the_limit(
    dataset: BetonFile, gate: Gate, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    assert reads.LIMIT_SECONDS == 120
    init = reads.Reads.__init__
    short = functools.partialmethod(init, limit_seconds=0.05)
    monkeypatch.setattr(reads.Reads, "__init__", short)
    monkeypatch.setattr(background, "STOP_SECONDS", 0.05)
    first = 0 if name == "resident" else ORDER[0]  # which decodes all, in the order of the file
    words = rf"reading sample {first} of .*{re.escape(dataset.name(first))}.* more than 0.05 s"
    with pytest.warns(UserWarning, match="stuck"), pytest.raises(reads.HungReadError, match=words):
        next(open_loader(dataset, name=name, num_threads=1))
    gate.opened.set()


def test_many_slow_reads_are_no_hung_one(dataset: BetonFile) -> None:
    noted, changed, ticks = reads.Reads(dataset, limit_seconds=0.02), threading.Condition(), []
    place = noted.begin(range(11))

    def another_image() -> bool:
        place[0] += 1 if len(ticks) < 10 else 0
        if len(ticks) >= 10:
            noted.begin([0])
        ticks.append(1)
        return len(ticks) == 20

    with changed:
        noted.wait(changed, another_image)  # looks 20 times, at another image each time
    assert len(ticks) == 20


def test_of_several_images_the_hung_one_is_named(dataset: BetonFile) -> None:
    noted, changed = reads.Reads(dataset, limit_seconds=0.02), threading.Condition()
    noted.begin([3, 4, 5])[0] = 2
    with changed, pytest.raises(reads.HungReadError, match=r"reading sample 5 of .* 0.02 s"):
        noted.wait(changed, lambda: False)


def test_close_from_another_thread_ends_a_waiting_next(
    dataset: BetonFile, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(background, "STOP_SECONDS", 10)
    loader = open_loader(dataset)
    batches: list[object] = []
    consumer = threading.Thread(target=lambda: batches.extend(loader))
    consumer.start()
    assert gate.entered.wait(10)
    closer = threading.Thread(target=loader.close)
    closer.start()
    consumer.join(5)  # while the workers still stand still
    assert not consumer.is_alive()
    gate.opened.set()
    closer.join(10)
    assert batches == []


@pytest.mark.usefixtures("interruptible")
def test_interrupt_while_waiting_loses_no_batch(dataset: BetonFile, gate: Gate) -> None:
    loader = open_loader(dataset)
    assert gate.entered.wait(10)
    interrupt = threading.Timer(0.1, os.kill, [os.getpid(), signal.SIGINT])
    interrupt.start()
    with pytest.raises(KeyboardInterrupt):
        next(loader)
    interrupt.join()
    gate.opened.set()
    assert next(loader).sample_id.tolist() == ORDER[:BATCH]
    loader.close()


def test_interpreter_ends_with_a_loader_open(set_path: Path) -> None:
    script = f"""
from fastmoco.data.beton import BetonFile
from tests.faults.test_loader_faults import open_loader
loader = open_loader(BetonFile.open({str(set_path)!r}))
print(len(next(loader).crops))
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{BATCH}\n", "")
