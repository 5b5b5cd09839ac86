"""Sets of many shards elsewhere: the order of reading, and which shards are here meanwhile."""

import errno
import os
import resource
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal

from fastmoco.addresses import Address
from fastmoco.cli import main
from fastmoco.data.beton import BetonError
from fastmoco.data.beton_format import HEAD
from fastmoco.data.beton_set import BetonSet
from fastmoco.data.convert import ConvertConfig, convert
from fastmoco.data.dataset import open_dataset
from fastmoco.data.remote import arrivals, fetch, opening, storage
from fastmoco.data.remote import cache as cache_module
from fastmoco.data.remote import index as index_module
from fastmoco.data.remote.cache import FOLDER_VARIABLE, LIMIT_VARIABLE
from fastmoco.data.remote.plan import NEVER, ReadingPlan
from fastmoco.data.remote.storage import RemoteError, UnreachableError
from fastmoco.data.remote.streamed import StreamedSet
from fastmoco.draws import host
from fastmoco.draws.host import NUM_STREAMS, streamed_order
from fastmoco.draws.streams import INT64, Draw
from fastmoco.errors import UsageError
from fastmoco.pipelines import choose, contract, reads
from fastmoco.pipelines.build import build_loader, resolve_loader
from fastmoco.pipelines.contract import EpochPlan, LoaderSpec, streamed_shards
from fastmoco.pipelines.policies import POLICIES
from fastmoco.ranks import Ranks
from fastmoco.train.settings import TrainConfig
from fastmoco.train.trainer import Trainer
from fastmoco.visualize.crop_figure import first_batch
from tests.limits import HANG_SECONDS
from tests.object_server import Served, served_files, serving
from tests.optional import require
from tests.pictures import write_class_folders
from tests.steps import make_trainer
from tests.unit.test_draws import absorb_twin, key_twin

SHARDS, STREAMS, BATCH = 8, 4, 8
CPU = torch.device("cpu")


# ---------------------------------------------------------------- the order


def hash_twin(seed: int, epoch: int, number: int, what: Draw) -> int:
    return absorb_twin(key_twin(seed, epoch, number), what << 32)


def order_twin(seed: int, epoch: int, ends: list[int], batch: int) -> list[int]:
    """Batches of a streamed epoch, in plain Python."""
    count, shards = ends[-1], [*enumerate(pairwise([0, *ends]))]
    shards.sort(key=lambda one: hash_twin(seed, epoch, one[0], Draw.SHARD_ORDER))
    streams = []
    for stream in range(NUM_STREAMS):
        own = range(stream * count // NUM_STREAMS, (stream + 1) * count // NUM_STREAMS)
        ids: list[int] = []
        for _, (start, end) in shards:
            part = [one for one in range(start, end) if one in own]
            ids += sorted(part, key=lambda one: hash_twin(seed, epoch, one, Draw.ORDER))
        streams.append(iter(ids))
    each = batch // NUM_STREAMS
    return [next(ids) for _ in range(count // batch) for ids in streams for _ in range(each)]


@pytest.mark.parametrize(("seed", "epoch", "batch"), [(0, 0, 64), (3, 2, 128)])
def test_the_order_equals_plain_python(seed: int, epoch: int, batch: int) -> None:
    sizes = np.random.default_rng(0).integers(1, 12, 100)
    ends = np.cumsum(sizes)
    order = streamed_order(seed, epoch, ends, batch)
    expected = order_twin(seed, epoch, ends.tolist(), batch)
    assert order[: len(expected)].tolist() == expected
    assert sorted(order.tolist()) == [*range(ends[-1])]
    assert order.tolist() != streamed_order(seed, epoch + 1, ends, batch).tolist()


@pytest.mark.parametrize("world_size", [1, 2, 4, 64])
def test_ranks_share_global_batches_and_read_parts_of_the_shards(world_size: int) -> None:
    ends = np.cumsum(np.full(256, 5))
    settings = {"seed": 1, "epoch": 0, "num_samples": 1280, "global_batch_size": 128}
    plans = [
        EpochPlan(**settings, rank=rank, world_size=world_size, shard_ends=ends)
        for rank in range(world_size)
    ]
    together = [
        np.concatenate(parts) for parts in zip(*(one.batches() for one in plans), strict=True)
    ]
    alone = [*EpochPlan(**settings, shard_ends=ends).batches()]
    assert_array_equal(together, alone)
    read = [set(np.searchsorted(ends, one.remaining(), side="right")) for one in plans]
    assert [len(shards) for shards in read] == [256 // world_size] * world_size
    assert len(set.union(*read)) == 256  # no shard is read by two ranks


def test_a_batch_that_streams_cannot_share_equally() -> None:
    ends = np.cumsum(np.full(64, 5))
    with pytest.raises(UsageError, match=r"global_batch_size must be a multiple of 64 .* got 96"):
        EpochPlan(seed=0, epoch=0, num_samples=320, global_batch_size=96, shard_ends=ends)


# ---------------------------------------------------------------- what is read when


def test_the_plan_knows_when_each_shard_is_next() -> None:
    plan = ReadingPlan(iter(map(np.array, ([0, 2, 1, 3], [5, 0, 1], [2]))), np.array([2, 4, 6]))
    assert [plan.shards_within(count) for count in (1, 2, 4)] == [1, 2, 2]
    assert plan.needs().tolist() == [0, 1, 6]  # an epoch has the positions of six ids
    assert [plan.count(number) for number in (0, 2, 4, 1)] == [None, None, None, 0]
    assert plan.needs().tolist() == [7, 1, 6]  # the first shard is next in the second epoch
    assert [plan.count(number) for number in (0, 3)] == [None, 1]  # of the second, read early
    assert plan.needs().tolist() == [7, NEVER, 6]
    plan.go_on()
    assert plan.needs().tolist() == [1, 6, 0]
    assert [plan.count(number) for number in (1, 5, 2, 2)] == [0, 2, 1, None]


# ---------------------------------------------------------------- the set


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with eight shards of ten images, each of 4 MB."""
    require("aiohttp")
    folder = tmp_path_factory.mktemp("streamed")
    write_class_folders(folder / "images", classes=2, per_class=40)
    options = ConvertConfig(page_bytes=1 << 21, workers=1, shards=SHARDS)
    convert(str(folder / "images"), folder / "train.beton", options)
    return folder


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache; four streams, and failures are noticed and tried again at once."""
    for module in (arrivals, cache_module, contract, host):
        monkeypatch.setattr(module, "NUM_STREAMS", STREAMS)
    monkeypatch.setenv(FOLDER_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(fetch, "RETRY_SECONDS", 0.0)
    monkeypatch.setattr(arrivals, "RETRY_SECONDS", 0.01)
    monkeypatch.setattr(arrivals, "ROOM_SECONDS", 0.1)
    monkeypatch.setattr(arrivals, "REFUSAL_SECONDS", 0.0)
    monkeypatch.setattr(storage, "TIMEOUT_SECONDS", 5.0)
    return tmp_path / "cache"


@pytest.fixture
def shards(files: Path, cache: Path) -> Iterator[Served]:  # noqa: ARG001
    with serving(served_files(*sorted(files.glob("train-*.beton")))) as served:
        yield served


def pattern(served: Served) -> str:
    return f"{served.address}train-*-of-{SHARDS:05d}.beton"


def opened(served: Served) -> StreamedSet:
    found = open_dataset(pattern(served))
    assert isinstance(found, StreamedSet)
    return found


def here(cache: Path) -> list[Path]:
    return sorted(cache.glob("*/*.beton"))


def bytes_here(cache: Path) -> int:
    found = 0
    for path in cache.glob("*/*"):
        with suppress(FileNotFoundError):  # renamed or removed meanwhile
            found += 512 * path.stat().st_blocks
    return found


def limit_of(shards_kept: float, served: Served) -> str:
    """A limit of the cache, GB."""
    return str(shards_kept * max(map(len, served.objects.values())) / 1e9)


def fetched(served: Served) -> list[int]:
    """How often each shard was fetched; its index, which begins alike, was once."""
    starts = [[one.startswith("bytes=0-") for one in served.gets(name)] for name in served.objects]
    return [sum(each) - 1 for each in starts]


def plan_of(dataset: StreamedSet, **values: Any) -> EpochPlan:
    settings = {"seed": 0, "epoch": 0, "num_samples": len(dataset), "global_batch_size": BATCH}
    return EpochPlan(**settings | values, shard_ends=streamed_shards(dataset, BATCH))


SPEC = LoaderSpec(view_size=16, policy=POLICIES["moco_v2"], num_threads=2)


def batches(
    dataset: StreamedSet, plan: EpochPlan, epochs: int, between: Callable[[], object] = int
) -> list[INT64]:
    loader = build_loader(
        dataset, plan, spec=SPEC, stop_epoch=plan.epoch + epochs, device=CPU, name="beton"
    )
    found = []
    with closing(loader):
        for batch in loader:
            between()
            found.append(batch.sample_id.numpy().copy())
    return found


def test_only_indexes_are_read_until_an_image_is(shards: Served, files: Path, cache: Path) -> None:
    with opened(shards) as found, BetonSet.open(files / "train-*.beton") as wanted:
        assert not here(cache)
        assert bytes_here(cache) < 0.1 * sum(map(len, shards.objects.values()))
        assert found.fingerprint == wanted.fingerprint
        assert found.classes == wanted.classes
        for name in ("labels", "widths", "heights", "modes", "sizes"):
            assert_array_equal(getattr(found, name), getattr(wanted, name))
        every = range(len(wanted))
        assert [found.name(i) for i in every] == [wanted.name(i) for i in every]
        assert [found.checksum(i) for i in every] == [wanted.checksum(i) for i in every]
        assert_array_equal(found.decode(75), wanted.decode(75))
        assert [path.name for path in here(cache)] == ["train-00007-of-00008.beton"]
        assert all(bytes(found.blob(i)) == bytes(wanted.blob(i)) for i in every)
    assert [path.read_bytes() for path in here(cache)] == [*shards.objects.values()]
    assert fetched(shards) == [1] * SHARDS
    asked = len(shards.gets())
    with opened(shards) as found:
        assert found.decode(3).shape == (found.heights[3], found.widths[3], 3)
    assert len(shards.gets()) == asked


def test_a_run_goes_on_in_the_order_that_it_began_with(shards: Served, files: Path) -> None:
    """It may begin elsewhere and go on with the same files here, or the other way around."""
    words = ["experiment=cifar10_cpu", "model.width=4", "device=cpu", "data.train=shards"]
    words.append(f"global_batch_size={BATCH}")
    with opened(shards) as there, BetonSet.open(files / "train-*.beton") as here:
        begun = [make_trainer(words, dataset=found) for found in (there, here)]
        orders = [one.plan(epoch=1).order() for one in begun]
        assert_array_equal(orders[0], streamed_order(0, 1, there.shard_ends, BATCH))
        assert_array_equal(orders[1], host.epoch_order(0, 1, len(here)))
        for found, before, order in zip((here, there), begun, orders, strict=True):
            later = make_trainer(words, dataset=found)
            later.restore(before.checkpoint())
            assert_array_equal(later.plan(epoch=1).order(), order)
            assert later.checkpoint().facts["by_shard"] == before.checkpoint().facts["by_shard"]


def test_an_epoch_with_less_room_than_the_set(
    shards: Served, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, limit_of(6.2, shards))
    most: list[int] = []
    with opened(shards) as found:
        plan = plan_of(found)
        read = batches(found, plan, 3, lambda: most.append(bytes_here(cache)))
    wanted = [ids for one in plan.epochs(3) for ids in one.batches()]
    assert_array_equal(read, wanted)
    assert max(most) <= 6.2 * max(map(len, shards.objects.values()))
    assert max(fetched(shards)) <= 3
    assert sum(fetched(shards)) < 2.5 * SHARDS  # what is read soon again is kept


def test_the_shards_that_go_first(shards: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those read, not those of another rank; ahead of a reader none that is needed sooner."""
    with opened(shards) as found:
        known = found._arrivals
        monkeypatch.setattr(known, "_start", lambda: None)
        found.plan(iter([np.arange(60), np.arange(60)[::-1]]), 1)  # not the shards 6 and 7
        for number in range(20):
            known.count_read(number)
        known._here = {0, 1, 2, 3}
        assert [*known._victims(4, is_asked=True)] == [0, 1, 6, 7, 5, 3, 2]
        assert [*known._victims(4, is_asked=False)] == []  # two that are sooner are here: enough
        assert [*known._victims(3, is_asked=False)] == [0, 1, 6, 7, 5, 4]
        assert not known._remove(2)  # it was not here after all, so it is brought again
        assert known._here == {0, 1, 3}
        assert [*known._victims(4, is_asked=False)] == [0, 1, 6, 7, 5]
        assert known._next() == (2, False)
        known._left_out.add(2)
        assert known._next() == (4, False)
        known._asked.append(7)
        assert known._next() == (7, True)


def test_a_full_cache_is_seldom_looked_at_ahead_of_a_reader(
    shards: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(shards) as found:
        waits: list[float] = []
        monkeypatch.setattr(found._arrivals, "_bring", lambda *_, **__: False)
        monkeypatch.setattr(found._arrivals._changed, "wait", waits.append)
        for is_asked in (True, False):
            found._arrivals._do(0, is_asked)
    assert waits == pytest.approx([arrivals.RETRY_SECONDS, 10 * arrivals.RETRY_SECONDS])


@pytest.mark.parametrize("epochs", [1, 3])
def test_with_room_each_shard_is_fetched_once(shards: Served, epochs: int) -> None:
    with opened(shards) as found:
        assert len(batches(found, plan_of(found), epochs)) == 10 * epochs
    assert fetched(shards) == [1] * SHARDS


def test_room_for_a_reader_is_awaited_and_room_ahead_is_not(
    shards: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, lacking, asked = [0.0], [1, 0, 1, 1], []

    def make_room_in(_: Any, __: Any, num_bytes: int, ___: Any, *, of_all: bool) -> int:
        asked.append((num_bytes, of_all))
        return lacking[len(asked) - 1]

    monkeypatch.setattr(cache_module.DataCache, "make_room_in", make_room_in)
    monkeypatch.setattr(arrivals, "time", SimpleNamespace(monotonic=lambda: now[0]))
    with opened(shards) as found:
        known = found._arrivals._place.objects[0]
        found._arrivals._place.partial(known).write_bytes(bytes(1000))
        for now[0], is_asked, has_room in (
            (1.0, True, False),
            (2.0, True, True),
            (3.0, True, False),  # not since the first of them
            (9.0, False, False),
        ):
            assert found._arrivals._has_room(0, is_asked=is_asked) is has_room
        assert found._arrivals._lacks_room_since == np.inf
    num_bytes = len(shards.objects[known.address.name]) - 1000  # those are here
    # Shards of other sets go for a reader only.
    assert asked == [(num_bytes, of_all) for of_all in (True, True, True, False)]


def test_a_shard_that_another_process_removes_meanwhile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "train-00000-of-00008.beton"
    path.touch()
    monkeypatch.setattr(arrivals, "lock_descriptor", lambda *_, **__: path.unlink())
    assert arrivals._held(path, Address("https://host/train-00000-of-00008.beton")) is None


def test_an_index_comes_over_a_bad_connection(
    shards: Served, files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A request brings its first part only; the metadata are more than the first bytes."""
    real = storage.Storage.ranges

    def ranges(self: Any, address: Address, spans: Any) -> list[bytes]:
        return real(self, address, spans[:1])

    monkeypatch.setattr(storage.Storage, "ranges", ranges)
    monkeypatch.setattr(index_module, "FIRST_BYTES", HEAD.itemsize + 50)
    with opened(shards) as found, BetonSet.open(files / "train-*.beton") as wanted:
        assert found.fingerprint == wanted.fingerprint


def test_only_the_loader_of_a_run_plans_what_is_read(
    shards: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture, or a trial of DALI, takes one batch: its plan would replace the run's."""

    def tried(_: Any, __: Any, open_loader: Callable[[str], Any]) -> choose.Choice:
        with closing(open_loader("beton")) as loader:
            next(loader)
        return choose.Choice("beton", "")

    with opened(shards) as found:
        planned: list[Any] = []
        monkeypatch.setattr(found, "plan", lambda *given: planned.append(given))
        monkeypatch.setattr(choose, "choose_loader", tried)
        plan = plan_of(found, rank=0, world_size=4)
        assert all(found.blob(number) for number in plan.remaining())  # so that nothing is awaited
        resolve_loader(found, plan, spec=SPEC, device=CPU)
        with first_batch(found, plan, SPEC) as batch:
            assert_array_equal(batch.sample_id, next(plan.batches()))
        trainer: Any = SimpleNamespace(
            cfg=TrainConfig(), dataset=found, device=CPU, loader_name="beton"
        )
        trainer.steps_done, trainer.steps_per_epoch, trainer.plan = 0, 10, lambda **_: plan
        Trainer.open_loader(trainer, plan).close()
        assert not planned
        Trainer.open_loader(trainer).close()
        assert len(planned) == 1


def test_a_rank_fetches_the_shards_of_its_streams(shards: Served) -> None:
    with opened(shards) as found:
        batches(found, plan_of(found, rank=1, world_size=4), 2)
    assert fetched(shards) == [0, 0, 1, 1, 0, 0, 0, 0]


def test_ranks_share_a_small_cache(
    shards: Served, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each has a set of its own, as processes have; file locks know no threads, only open files."""
    monkeypatch.setenv(LIMIT_VARIABLE, limit_of(6.2, shards))
    most: list[int] = []

    def run(rank: int) -> list[INT64]:
        with opened(shards) as found:
            plan = plan_of(found, rank=rank, world_size=2)
            return batches(found, plan, 2, lambda: most.append(bytes_here(cache)))

    with ThreadPoolExecutor(2) as pool:
        parts = [*pool.map(run, range(2))]
    with opened(shards) as found:
        wanted = [ids for one in plan_of(found).epochs(2) for ids in one.batches()]
    assert_array_equal(np.concatenate(parts, axis=1), wanted)
    assert max(most) <= 6.2 * max(map(len, shards.objects.values()))


def test_a_limit_below_one_batch_is_one_line(
    shards: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, limit_of(5, shards))
    with opened(shards) as found:
        wanted = (
            r"sets: 6 shards are read at the same time, .* set FASTMOCO_DATA_CACHE_GB=1 or more"
        )
        with pytest.raises(RemoteError, match=wanted):
            batches(found, plan_of(found), 1)


def test_the_limit_holds_for_all_devices_of_a_machine(
    shards: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, limit_of(7.5, shards))
    monkeypatch.setattr(arrivals, "local_ranks", lambda: Ranks(0, 2))
    with opened(shards) as found, pytest.raises(RemoteError, match="8 shards are read at the same"):
        batches(found, plan_of(found, world_size=2), 1)


def test_an_unplanned_reader_finds_room(
    shards: Served, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, limit_of(2.2, shards))
    with opened(shards) as found:
        for number in np.random.default_rng(0).permutation(len(found))[:20].tolist():
            found.decode(number)
            assert len(here(cache)) <= 2


def test_shards_that_another_process_reads_stay(
    shards: Served, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with opened(shards) as first:
        monkeypatch.setenv(LIMIT_VARIABLE, limit_of(3.2, shards))
        with opened(shards) as second:
            check_that_shards_stay(first, second, cache)


def check_that_shards_stay(first: StreamedSet, second: StreamedSet, cache: Path) -> None:
    first.plan(iter([np.arange(30)]), 30)
    for number in range(0, 30, 10):
        first.decode(number)
    held = here(cache)
    assert len(held) == 3
    with pytest.raises(RemoteError, match=r"has no room for train-00003.*other processes use"):
        second.decode(35)
    assert here(cache) == held
    assert second.decode(12).size
    for number in range(30):
        first.decode(number)  # the plan has read them, so they may go
    assert second.decode(35).size


def test_a_set_that_is_open_is_not_removed_for_another(
    shards: Served, files: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only shards that nobody reads make room for it."""
    shards.objects["one.beton"] = (files / "train-00000-of-00008.beton").read_bytes()
    with opened(shards) as found:
        found.plan(iter([np.arange(30)]), 30)
        for number in (0, 10, 20):
            found.decode(number)
        monkeypatch.setenv(LIMIT_VARIABLE, limit_of(3.2, shards))
        with pytest.raises(RemoteError, match="the cache is full"):
            open_dataset(f"{shards.address}one.beton")
        assert len(here(cache)) == 3
        for number in range(1, 10):
            found.decode(number)  # the plan has read this shard
        open_dataset(f"{shards.address}one.beton").close()
        assert sorted(path.name[:11] for path in here(cache)) == [
            "one.beton",
            "train-00001",
            "train-00002",
        ]
        assert found.decode(3).size


@pytest.mark.parametrize("how", ["decode", "blob"])
def test_a_shard_that_was_read_is_let_go_until_it_is_read_again(shards: Served, how: str) -> None:
    with opened(shards) as found:
        read = getattr(found, how)
        found.plan(iter([np.arange(10), np.arange(10)]), 1)
        for number in range(10):
            assert [*found._arrivals._open] == [0] * (number > 0)
            read(number)
        assert not found._arrivals._open
        read(0)
        assert [*found._arrivals._open] == [0]
        with found._arrivals.shard(0):
            assert not found._arrivals._remove(0)
        assert found._arrivals._remove(0)


def test_shards_beyond_the_share_of_a_process_may_go(
    shards: Served, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that two streams share is read at two times, so more are begun than a batch needs."""
    monkeypatch.setenv(LIMIT_VARIABLE, limit_of(4.2, shards))
    with opened(shards) as first, opened(shards) as second:
        first.plan(iter([np.r_[0, 10, 20, 30, 1:10, 11, 21, 31]]), 1)
        for number in (0, 10, 20, 30):
            first.decode(number)
        assert [second.decode(number).size > 0 for number in (40, 50)] == [True, True]
        assert len(here(cache)) == 4
        assert first.decode(31).size


def test_a_run_that_continues_at_the_end_of_an_epoch(
    shards: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, limit_of(5, shards))
    with opened(shards) as found, pytest.raises(RemoteError, match="6 shards are read at the same"):
        batches(found, plan_of(found, start_batch=10), 2)


def test_the_ordinary_order_needs_room_for_all_shards(
    shards: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch that the streams cannot share, or a classifier, reads any shard at any time."""
    monkeypatch.setenv(LIMIT_VARIABLE, limit_of(7.5, shards))
    with opened(shards) as found:
        plan = EpochPlan(seed=0, epoch=0, num_samples=len(found), global_batch_size=2)
        with pytest.raises(RemoteError, match="8 shards are read at the same time"):
            batches(found, plan, 1)
        evaluation = EpochPlan(
            seed=0, epoch=0, num_samples=len(found), global_batch_size=2, training=False
        )
        assert len(batches(found, evaluation, 1)) == 40


def test_a_second_set_finds_room_beside_one_that_fills_the_cache(
    shards: Served, files: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So does a test set beside a training set, in one process or two."""
    monkeypatch.setenv(LIMIT_VARIABLE, limit_of(6.6, shards))
    for path in sorted(files.glob("train-*.beton")):
        shards.objects[path.name.replace("train", "test")] = path.read_bytes()
    with opened(shards) as first, open_dataset(pattern(shards).replace("train", "test")) as second:
        for number in range(0, 60, 10):
            first.decode(number)
        assert second.decode(5).size
        assert len(here(cache)) == 6


def test_beginnings_that_kills_left_make_room(
    shards: Served, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(LIMIT_VARIABLE, limit_of(3.2, shards))
    with opened(shards) as found:
        (folder,) = {path.parent for path in cache.glob("*/*.index")}
        for number in (4, 5, 6):
            name = f"train-{number:05d}-of-00008.beton"
            (folder / f"{name}.partial").write_bytes(shards.objects[name][:-5000])
        assert found.decode(0).size
        asked = len(shards.gets())
        assert found.decode(60).size
    starts = [one.partition("-")[0] for one in shards.gets()[asked:]]
    assert f"bytes={len(shards.objects[name]) - 5000}" in starts  # it continues its own
    assert "bytes=0" not in starts


def test_a_broken_connection_is_an_error_of_who_waits(shards: Served) -> None:
    with opened(shards) as found:
        found.decode(0)
        shards.status = 503
        with pytest.raises(UnreachableError, match=r"train-00001.*cannot be read \(HTTP 503\)"):
            found.decode(10)
        assert found.decode(1).size
        shards.status, shards.drops = 200, 3
        assert found.decode(10).size


def test_a_broken_connection_ahead_of_the_reads_waits_for_a_reader(shards: Served) -> None:
    with opened(shards) as found:
        found.decode(0)
        shards.status = 503
        found.plan(iter([np.arange(20)]), 1)
        changed = found._arrivals._changed
        with changed:
            assert changed.wait_for(lambda: found._arrivals._left_out == {1}, HANG_SECONDS)
        assert [found.decode(number).size > 0 for number in range(10)]
        shards.status = 200
        assert found.decode(10).size
        thread = found._arrivals._thread
    assert thread is not None
    thread.join(HANG_SECONDS)
    assert not found._arrivals._left_out  # later epochs bring it ahead again


def test_a_lost_connection_takes_one_round_of_attempts(
    shards: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every shard, and every image of a batch, would wait for six attempts otherwise."""
    monkeypatch.setattr(arrivals, "REFUSAL_SECONDS", 60.0)
    with opened(shards) as found:
        shards.status = 503
        asked = len(shards.asked)
        for number in range(0, 80, 5):
            with pytest.raises(UnreachableError, match="HTTP 503"):
                found.decode(number)
        # An attempt asks up to four times: for its state and for a part, by HEAD and by GET.
        assert len(shards.asked) - asked <= 4 * fetch.ATTEMPTS


def test_a_damaged_shard_is_fetched_once_not_for_each_of_its_images(
    shards: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(arrivals, "REFUSAL_SECONDS", 60.0)
    name = "train-00001-of-00008.beton"
    sound = shards.objects[name]
    place = sound.index(b"\xff\xd8", 1 << 21) + 200
    shards.objects[name] = sound[:place] + bytes(4) + sound[place + 4 :]
    with opened(shards) as found:
        for number in range(10, 20):
            with pytest.raises(BetonError, match=rf"{name}: .*checksum") as caught:
                found.decode(number)
            caught.value.add_note("of this image only")
            assert len(caught.value.__notes__) == 1
        assert found.decode(20).size
    assert fetched(shards)[1] == 1


def test_a_failure_is_of_those_that_waited_for_it(shards: Served) -> None:
    """Not of a later read: a reader that others wake must not ask for its shard twice."""
    with opened(shards) as found:
        shards.status = 503
        with ThreadPoolExecutor(8) as pool:
            failed = [
                pool.submit(found.decode, number) for number in (0, 1, 10, 11, 20, 21, 30, 31)
            ]
            assert all(isinstance(one.exception(HANG_SECONDS), UnreachableError) for one in failed)
        shards.status = 200
        assert [found.decode(number).size > 0 for number in (0, 10, 20, 30)] == [True] * 4


def test_a_plan_that_fails_is_an_error_of_who_waits(shards: Served) -> None:
    def epochs() -> Iterator[INT64]:
        yield np.arange(10)
        yield np.arange(10)
        raise MemoryError("no memory for the third epoch")

    with opened(shards) as found:
        found.plan(epochs(), 10)
        for number in range(10):
            found.decode(number)
        thread = found._arrivals._thread
        assert thread is not None
        thread.join(HANG_SECONDS)
        with pytest.raises(MemoryError, match="no memory for the third epoch"):
            found.decode(20)


def test_closing_waits_for_no_reader_and_closes_no_file_under_it(shards: Served) -> None:
    with opened(shards) as found:
        reader = found._arrivals.shard(0)
        handle = reader.__enter__()
    assert handle.read(0, 2) == shards.objects["train-00000-of-00008.beton"][:2]
    reader.__exit__(None, None, None)
    assert handle.descriptor == -1


def test_closing_ends_a_download(shards: Served, cache: Path) -> None:
    with opened(shards) as found:
        shards.stalls, shards.sound_gets = 1, len(shards.gets())
        found.plan(iter([np.arange(10)]), 1)
        assert shards.stalled.wait(HANG_SECONDS)
        thread = found._arrivals._thread
        assert thread is not None
    shards.ended.set()  # the server continues
    thread.join(HANG_SECONDS)
    assert not thread.is_alive()
    assert not here(cache)


def test_a_change_and_damage_elsewhere_are_one_line(shards: Served) -> None:
    name = "train-00001-of-00008.beton"
    sound = shards.objects[name]
    with opened(shards) as found:
        shards.objects[name] = sound[:-1] + b"x"
        with pytest.raises((RemoteError, BetonError), match=rf"{name}: (changed while|byte)"):
            found.decode(10)
        place = sound.index(b"\xff\xd8", 1 << 21) + 200
        shards.objects[name] = sound[:place] + b"\0\0\0\0" + sound[place + 4 :]
        with pytest.raises((RemoteError, BetonError), match=rf"{name}: (changed|.*checksum)"):
            found.decode(10)
    for damaged, words in (
        (b"<html>Please log in</html>" * 200, "is damaged there, or is no dataset file"),
        (b"\xff" * 5000, "is damaged there, or is no dataset file"),
        (sound[:100], "its index is removed here"),
    ):
        shards.objects[name] = damaged
        with pytest.raises((RemoteError, BetonError), match=f"{name}: .*{words}"):
            open_dataset(pattern(shards))
    shards.objects[name] = sound
    with opened(shards) as found:
        assert found.decode(10).size


def test_a_damaged_index_is_removed(shards: Served, cache: Path) -> None:
    opened(shards).close()
    index = sorted(cache.glob("*/*.index"))[2]
    with index.open("r+b") as file:
        file.seek(-3, os.SEEK_END)
        file.write(b"xyz")
    with pytest.raises(
        RemoteError, match=r"train-00002-of-00008\.beton: .*removed here; give the same"
    ):
        open_dataset(pattern(shards))
    opened(shards).close()


def test_a_copy_that_the_disk_damaged_is_named(shards: Served, cache: Path) -> None:
    with opened(shards) as found:
        found.decode(0)
        (copy,) = here(cache)
        sound = copy.read_bytes()
        place = sound.index(b"\xff\xd8", 1 << 21) + 200
        copy.write_bytes(sound[:place] + bytes(4) + sound[place + 4 :])
        with pytest.raises(BetonError, match=rf"checksum .*; remove {copy} and give the same"):
            [found.decode(number) for number in range(10)]


def test_a_complete_set_in_a_folder_of_somebody_else(
    shards: Served, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shards.has_ranges = False  # so that it is complete
    opened(shards).close()

    def denied(*_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "access", lambda *_: False)
    for module in (cache_module, opening):
        monkeypatch.setattr(module, "locked", denied, raising=False)
    with opened(shards) as found:
        wanted = found.decode(75)
    for index in cache.glob("*/*.index"):  # as an older version left it
        index.unlink()
    with opened(shards) as found:
        assert_array_equal(found.decode(75), wanted)


def test_a_server_that_sends_no_parts(shards: Served, files: Path, cache: Path) -> None:
    shards.has_ranges = False
    with opened(shards) as found, BetonSet.open(files / "train-*.beton") as wanted:
        assert len(here(cache)) == SHARDS
        assert found.fingerprint == wanted.fingerprint
        assert_array_equal(found.decode(75), wanted.decode(75))
        assert streamed_shards(found, BATCH) is not None  # the order is that of other servers


def test_a_full_disk_is_one_line(shards: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    with opened(shards) as found:
        real = os.write

        def full(descriptor: int, data: Any) -> int:
            if len(data) > 1000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return real(descriptor, data)

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", full)
            with pytest.raises(RemoteError, match="no space left on device; free some space"):
                found.decode(0)
        assert found.decode(0).size


def test_waiting_for_a_shard_is_no_hung_read(
    shards: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = {"limit_seconds": 0.2, "advice": ""}
    monkeypatch.setattr(reads.Reads.__init__, "__kwdefaults__", limits)
    real = fetch.fetch

    def slow(*arguments: Any) -> None:
        threading.Event().wait(0.7)
        real(*arguments)

    monkeypatch.setattr(arrivals, "fetch", slow)
    with opened(shards) as found:
        assert len(batches(found, plan_of(found, rank=0, world_size=4), 1)) == 10


def test_closing_ends_those_that_wait(shards: Served) -> None:
    shards.stalls, shards.sound_gets = 9, len(shards.objects) * 2 + 1
    with ThreadPoolExecutor(1) as pool:
        with opened(shards) as found:
            reader = pool.submit(found.decode, 0)
            assert shards.stalled.wait(HANG_SECONDS)
        with pytest.raises(BetonError, match="is closed; open it again"):
            reader.result(HANG_SECONDS)


def test_commands_take_a_set_of_many_shards(
    shards: Served, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command, answer, count in (("info", "80", 0), ("verify", "of 80 images", SHARDS)):
        assert main([command, pattern(shards)]) == 0
        assert answer in capsys.readouterr().out
        assert len(here(cache)) == count


def test_more_shards_than_files_may_be_open(files: Path) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {int(name) for name in os.listdir("/proc/self/fd")}
    free = [number for number in range(len(taken) + 4) if number not in taken]
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (free[3] + 1, hard))  # four more, of eight
        with BetonSet.open(files / "train-*.beton") as found:
            assert len(found) == 80
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
