"""Children that are kept: they run only while they are asked, and leave nothing behind."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from benchmarks.child import KeptChild, Unavailable
from benchmarks.harness import again, measure_streams
from benchmarks.memory import SAMPLE_SECONDS, pause_seconds
from benchmarks.rates import measure_rate, on_all_cpus

STREAM = ("itertools:repeat", {"object": 2.0})


def process_of(child: KeptChild) -> Path:
    assert child._process is not None
    return Path("/proc", str(child._process.pid))


def state(process: Path) -> str:
    return (process / "stat").read_text().rpartition(")")[2].split()[0]


def test_a_kept_child_counts_images_and_is_frozen_in_between() -> None:
    with closing(KeptChild(*STREAM)) as child:
        first, second = (child.measure(0.01) for _ in range(2))
        process = process_of(child)
        assert state(process) == "T"
        for done in (first, second):
            assert done.value["images"] > 0
            assert done.value["images"] % 2 == 0
            assert 0.01 <= done.value["seconds"] < 1
    assert not process.exists() or state(process) == "Z"


def test_a_kept_child_that_fails_says_why() -> None:
    with (
        closing(KeptChild("absent:function", {})) as child,
        pytest.raises(Unavailable, match="No module named 'absent'"),
    ):
        child.measure(0.01)


def test_a_kept_child_that_hangs_is_killed() -> None:
    hangs = ("subprocess:call", {"args": ["sleep", "61"]})
    with (
        closing(KeptChild(*hangs, timeout_seconds=0.2)) as child,
        pytest.raises(Unavailable, match=r"more than 0\.2 s"),
    ):
        child.measure(0.01)


def test_streams_take_turns_and_the_repeated_one_has_a_child_of_its_own() -> None:
    targets = {"ours": STREAM, "absent": ("absent:function", {})}
    found, reasons = measure_streams(targets, "ours", rounds=2, seconds=0.01)
    assert set(found) == {"ours", again("ours")}
    assert all(len(runs) == 2 for runs in found.values())
    assert found["ours"] != found[again("ours")]
    assert all(run["peak_bytes"] >= 0 for runs in found.values() for run in runs)
    assert reasons == {"absent": "ModuleNotFoundError: No module named 'absent'"}


def test_looking_at_memory_takes_the_same_small_share_from_all() -> None:
    assert pause_seconds(0.001) == SAMPLE_SECONDS
    assert pause_seconds(0.035) == pytest.approx(0.7)


def test_memory_is_looked_at_a_last_time_at_the_end() -> None:
    """However long the pauses: a child that is frozen still holds what it worked with."""
    with closing(KeptChild(*STREAM)) as child:
        assert child.measure(0.001).peak_bytes > 1e6


def test_warm_up_is_not_counted() -> None:
    sizes = iter([100.0, 100.0, *[1.0] * 10_000_000])
    assert measure_rate(sizes, 0.001, warm_up_batches=2)["images"] < 1e7
    assert next(sizes) == 1.0


def test_work_on_all_cpus_goes_around() -> None:
    seen = list[int]()
    batches: Iterator[int] = on_all_cpus(3, seen.append)
    assert sum(next(batches) for _ in range(4)) == 32
    assert set(seen) == {0, 1, 2}
