"""The benchmark harness on a fake clock with recorded noise, and its child processes."""

import io
import json
from collections.abc import Callable, Iterator
from itertools import cycle, islice
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console

from benchmarks.child import Unavailable, call_in_child
from benchmarks.document import document, tables
from benchmarks.harness import (
    CPU_PLAN,
    GPU_PLAN,
    Plan,
    Summary,
    again,
    alternate,
    host_timer,
    is_shown,
    measure_blocks,
    random_images,
    speedup,
    summarize,
)
from benchmarks.report import Report, Row, beside, show

# Seconds over their median of one step after another: four 300 x 300 float64 matrix products of
# NumPy, 2.8 ms, on one thread of a two-core virtual machine. The first list is of two calm
# stretches, one at slower clocks; during the second, other work took the core for whole steps.
CALM = """
1.036 .930 .956 .992 .948 .954 .956 1.012 .940 .953 .938 .999 .975 .932 1.013 .961 .963 .932 .993
.926 .951 .953 .973 .953 .957 .936 .987 .979 .931 .977 .992 .927 .951 1.000 1.027 .931 1.069 1.106
1.051 1.035 1.065 1.095 1.054 1.036 1.093 1.058 1.058 1.055 1.058 1.057 1.003 1.003 .996 .929 .966
1.082 1.055 1.039 1.077 .966 .933 .960 .987 .931 .954 .998 .939 .963 .964 .997 .955 .961 .933 .990
.952 .932 .979 1.007 .961
"""
BUSY = """
.955 .934 5.315 2.415 .981 2.442 1.755 2.516 2.447 .998 2.435 1.862 2.433 2.481 .960 2.441 2.426
.943 3.292 .946 2.437 2.424 .983 2.268 1.780 2.479 .932 2.472 .970 2.422 1.040 2.438 2.484 .953
2.441 2.427 .945 2.469 2.427 .982 3.110 .992 2.429 1.863 .988 2.424 .949 2.427 2.426 .975 2.442
2.467 .945 3.760 2.474 .942 2.428 2.421 .946 2.465 2.423 .978 2.419 2.433 .936 1.173 2.402 .939
2.440 2.428 .971 .933 2.469 .966 .966 2.439 .971 .960 2.439 .992 .936 .957 2.432 .948 .970 2.472
.985
"""


class FakeClock:
    """Moves only when work is done; each step takes its cost times the next recorded ratio."""

    def __init__(self, noise: str, first: int = 0) -> None:
        self.seconds = 0.0
        self._ratios: Iterator[float] = islice(cycle(map(float, noise.split())), first, None)

    def __call__(self) -> float:
        return self.seconds

    def work(self, cost_seconds: float) -> Callable[[], None]:
        def step() -> None:
            self.seconds += cost_seconds * next(self._ratios)

        return step


def compared(other_seconds: float, noise: str, plan: Plan, first: int) -> tuple[Summary, bool]:
    """The ratio of a contender to one of 10 ms, and whether it is shown."""
    clock = FakeClock(noise, first)
    works = {"base": clock.work(0.010), "other": clock.work(other_seconds)}
    seconds = measure_blocks(works, "base", plan, host_timer(clock))
    ratio = beside(seconds, "other", "base", "base")
    assert ratio is not None
    return ratio.summary, ratio.shown


PLANS = pytest.mark.parametrize("plan", [CPU_PLAN, GPU_PLAN], ids=["cpu", "gpu"])
FIRSTS = range(0, 79, 2)


def test_ten_percent_more_time_is_always_found_by_the_gpu_plan() -> None:
    for first in FIRSTS:
        ratio, shown = compared(0.011, CALM, GPU_PLAN, first)
        assert shown
        assert ratio.median == pytest.approx(1 / 1.1, rel=0.02)


def test_ten_percent_more_time_is_mostly_found_by_the_cpu_plan_and_always_close() -> None:
    found = [compared(0.011, CALM, CPU_PLAN, first) for first in FIRSTS]
    assert sum(shown for _, shown in found) > 0.75 * len(found)
    assert all(ratio.median == pytest.approx(1 / 1.1, rel=0.04) for ratio, _ in found)


@PLANS
@pytest.mark.parametrize("noise", [CALM, BUSY], ids=["calm", "busy"])
def test_equal_code_is_not_called_faster_or_slower(plan: Plan, noise: str) -> None:
    assert not any(compared(0.010, noise, plan, first)[1] for first in FIRSTS)


def test_steady_drift_of_the_clock_cancels() -> None:
    clock = FakeClock(" ".join(str(1 + step / 100) for step in range(79)))
    works = {name: clock.work(0.010) for name in ("base", "other")}
    seconds = measure_blocks(works, "base", Plan(steps=2, rounds=4), host_timer(clock))
    assert seconds["other"] == pytest.approx(seconds["base"])
    assert seconds[again("base")] == pytest.approx(seconds["base"])


def test_blocks_are_mirrored_and_warm_up_is_left_out() -> None:
    clock, calls = FakeClock("1"), list[str]()

    def step(name: str) -> None:
        calls.append(name)
        clock.seconds += 100 if calls.count(name) == 1 else 1

    works = {"a": lambda: step("a"), "b": lambda: step("b")}
    seconds = measure_blocks(works, "b", Plan(steps=1, rounds=2), host_timer(clock))
    assert "".join(calls) == "abb" + 2 * ("abb" + "bba")
    assert seconds == {"a": [1, 1], "b": [1, 1], again("b"): [1, 1]}


def test_runs_take_turns_and_one_that_fails_is_named() -> None:
    calls = list[str]()

    def run(name: str) -> int:
        calls.append(name)
        if name == "c":
            raise Unavailable("no compiler")
        return len(calls)

    runs = {name: (lambda name=name: run(name)) for name in "abc"}
    results, reasons = alternate(runs, "a", rounds=3)
    assert "".join(calls) == "abca" + "aba" + "aba"
    assert results == {"a": [1, 7, 8], "b": [2, 6, 9], again("a"): [4, 5, 10]}
    one = {"a": lambda: 1, again("a"): lambda: 2}  # a second one of its own
    assert alternate(one, "a", rounds=1)[0] == {"a": [1], again("a"): [2]}
    assert reasons == {"c": "no compiler"}


def test_the_spread_is_named() -> None:
    assert summarize([3, 1, 2]) == Summary(2, 1, 3, "min-max", 3)
    assert summarize(range(9)) == Summary(4, 2, 6, "quartiles", 9)
    assert speedup([2, 4, 6], [1, 1, 1]).median == 4


@pytest.mark.parametrize(
    ("median", "low", "high", "expected"),
    [
        (1.5, 1.4, 1.6, True),
        (1.08, 1.07, 1.09, False),  # less than the A/A spread
        (1.2, 0.9, 1.6, False),  # its own spread holds 1
        (0.8, 0.7, 0.85, True),  # a loss is shown like a gain
    ],
)
def test_a_gain_within_the_noise_is_not_shown(
    median: float, low: float, high: float, expected: bool
) -> None:
    same = Summary(1.05, 1.02, 1.1, "min-max", 5)
    assert is_shown(Summary(median, low, high, "min-max", 5), same) is expected


def test_what_ran_once_is_told_apart_from_noise(tmp_path: Path) -> None:
    seconds = {"ours": [1.0], again("ours"): [1.0], "theirs": [3.0]}
    ratio = beside(seconds, "ours", "theirs", "ours")
    row = Row(what="ours", unit="s", value=summarize(seconds["ours"]), ratio=ratio)
    Report("bench", "small", device="cpu", rows=[row]).write(tmp_path)
    assert "| theirs: 3.00x, measured once |" in tables(tmp_path)


def test_few_repeats_must_show_more() -> None:
    once, twice = (Summary(1.15, 1.14, 1.16, "min-max", repeats) for repeats in (1, 2))
    same = Summary(1.05, 1.0, 1.1, "min-max", 2)
    assert not is_shown(twice, same)
    assert is_shown(Summary(1.25, 1.24, 1.26, "min-max", 2), same)
    assert not is_shown(once, Summary(1.0, 1.0, 1.0, "min-max", 1))


@pytest.mark.parametrize("repeats", [1, 2, 3, 5, 10])
def test_equal_code_is_rarely_shown_whatever_the_repeats(repeats: int) -> None:
    noise = np.exp(0.05 * np.random.default_rng(0).standard_normal((1000, 3, repeats)))
    shown = [is_shown(speedup(base, other), speedup(base, twin)) for base, twin, other in noise]
    assert np.mean(shown) < 0.05


def test_images_are_random_and_the_same_each_time() -> None:
    images = random_images((4, 8, 8, 3), torch.device("cpu"))
    assert images.dtype == torch.uint8
    assert images.float().std() > 60
    assert torch.equal(images, random_images((4, 8, 8, 3), torch.device("cpu")))


def test_a_report_becomes_json_a_table_and_a_plot(tmp_path: Path) -> None:
    costs = {"peer": [3.0, 3.0], again("peer"): [3.0, 3.1], "ours": [1.0, 1.0]}
    ratio = beside(costs, "ours", "peer", "peer")
    rows = [
        Row(what="ours", unit="images/s", value=summarize([10, 12]), ratio=ratio),
        Row(what="absent peer", unit="images/s", note="[Errno 2] No module 'absent'"),
    ]
    report = Report("some", "small", peers=["pytest", "absent"], rows=rows)
    report.write(tmp_path)
    report.plot(tmp_path)
    ours, absent = json.loads((tmp_path / "some.json").read_text())
    assert (ours["what"], ours["value"], ours["repeats"]) == ("ours", 11, 2)
    assert ours["spread"] == {"kind": "min-max", "low": 10, "high": 12}
    assert (ours["ratio"]["peer"], ours["ratio"]["value"]) == ("peer", 3)
    assert ours["ratio"]["shown"] is True
    assert absent["value"] is None
    assert ours["versions"]["pytest"] == pytest.__version__
    assert ours["versions"]["absent"] is None
    assert "<svg" in (tmp_path / "some.svg").read_text()
    console = Console(width=200, file=io.StringIO(), record=True)
    show([report], console)
    text = console.export_text()
    assert "3.00x (3.00 to 3.00)" in text
    assert "[Errno 2]" in text


def test_a_child_gives_its_value_and_its_memory() -> None:
    # Holds 64 MB for longer than the time between two samples.
    script = "import time; x = bytes(range(256)) * 250_000; time.sleep(1)"
    done = call_in_child("subprocess:call", {"args": ["python3", "-c", script]})
    assert done.peak_bytes > 64e6
    assert call_in_child("json:dumps", {"obj": [1]}).value == "[1]"


def test_what_a_library_prints_as_a_child_ends_is_no_answer() -> None:
    last_words = "import atexit; atexit.register(print, 'bye')"
    assert call_in_child("timeit:timeit", {"stmt": last_words, "number": 1}).value > 0


def test_a_child_that_ends_early_has_no_answer() -> None:
    with pytest.raises(Unavailable, match="ended without an answer"):
        call_in_child("os:_exit", {"status": 0})


def test_a_child_that_fails_says_why() -> None:
    with pytest.raises(Unavailable, match="No module named 'absent'"):
        call_in_child("absent:function", {})


def test_a_child_that_hangs_is_killed_with_its_own_children(tmp_path: Path) -> None:
    note = tmp_path / "process"
    arguments = {"args": ["sh", "-c", f"echo $$ > '{note}'; exec sleep 61"]}
    with pytest.raises(Unavailable, match=r"more than 0\.4 s"):
        call_in_child("subprocess:call", arguments, timeout_seconds=0.4)
    status = Path("/proc", note.read_text().strip(), "stat")
    assert not status.exists() or ") Z " in status.read_text()


def test_shared_memory_that_a_killed_child_leaks_is_removed(tmp_path: Path) -> None:
    script, note = tmp_path / "leak.py", tmp_path / "name"
    script.write_text(
        "import os\n"
        "from multiprocessing import resource_tracker, shared_memory\n"
        "memory = shared_memory.SharedMemory(create=True, size=8)\n"
        "resource_tracker.unregister(memory._name, 'shared_memory')\n"
        f"open({str(note)!r}, 'w').write(memory.name)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    with pytest.raises(Unavailable, match="status -9"):
        call_in_child("runpy:run_path", {"path_name": str(script)})
    assert note.read_text().startswith("b")
    assert not Path("/dev/shm", note.read_text()).exists()


def test_document_tells_all_rows_of_all_results(tmp_path: Path) -> None:
    seconds = {"ours": [1.0, 1.1], again("ours"): [1.0, 1.1], "theirs": [3.0, 3.0]}
    report = Report("bench", "small", subject="a subject", device="cpu")
    report.rows = [
        Row(
            what="ours",
            unit="s",
            value=summarize(seconds["ours"]),
            ratio=beside(seconds, "ours", "theirs", "ours"),
            goal=">= 2x",
        ),
        Row(what="theirs", unit="s", note="not | here"),
    ]
    report.write(tmp_path)
    text = tables(tmp_path)
    assert "## bench\n" in text
    assert "a subject" in text
    assert "| ours | 1.05 s (1 to 1.1) | 2 | theirs: **2.86x** (2.73 to 3) |  |  |" in text
    assert "| theirs | absent |" in text
    assert "not / here" in text  # a bar would end the cell
    with pytest.raises(ValueError, match="holds no results"):
        tables(tmp_path / "nothing")
    with pytest.raises(ValueError, match="holds no results"):
        document(tmp_path / "nothing")
