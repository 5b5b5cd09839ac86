"""A conversion that is killed, or that fills the disk, loses nothing, and the same call goes on."""

import json
import os
import random
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from fastmoco.data.convert import ConvertConfig, Encoding, convert
from tests.faults.interrupted_convert import hashes
from tests.limits import HANG_SECONDS
from tests.pictures import encoded, picture, write_class_folders

OPTIONS = {"encoding": Encoding.raw, "page_bytes": 1 << 21}
IMAGES = 200  # seven batches, the last one short, on four pages


class Bench:
    """A source, the files that stood there before, and those that must stand there at the end."""

    def __init__(self, root: Path) -> None:
        self.source, self.folder = root / "src", root / "out"
        self.source.mkdir()
        for i in range(IMAGES):
            (self.source / f"{i:03d}.png").write_bytes(encoded(picture(i, 120, 100), "PNG"))
        (self.source / "bad.png").write_bytes(b"no image")
        old = root / "old"
        convert("builtin:textures", old / "x.beton", ConvertConfig(split="test", **OPTIONS))
        self.old = {path.name: path.read_bytes() for path in old.iterdir()}
        self.old_hashes = hashes(old)
        self.target = self.folder / "x.beton"
        convert(str(self.source), self.target, ConvertConfig(workers=1, **OPTIONS))
        self.end_hashes = hashes(self.folder)

    def interrupt(self, instants: list[tuple[str, int]]) -> list[dict[str, Any]]:
        """What became of a conversion cut short at each instant, and of the next one."""
        old = {name: data.hex() for name, data in self.old.items()}
        return interrupted(self.source, self.target, instants, old=old)

    def check(self, report: dict[str, Any]) -> None:
        """The old file or the new one stands at any time, whole; the next run ends as if alone."""
        instant = report["kind"], report["number"]
        standing = report["after"]["x.beton"]
        assert standing in (self.old_hashes["x.beton"], self.end_hashes["x.beton"]), instant
        assert "error" not in report["second"], (instant, report["second"])
        assert report["end"] == self.end_hashes, instant


def interrupted(
    source: Path, target: Path, instants: list[tuple[str, int]], **more: Any
) -> list[dict[str, Any]]:
    """What became of a conversion cut short at each instant, and of the next one."""
    request = {"source": str(source), "target": str(target), "old": {}, "instants": instants}
    process = subprocess.run(
        [sys.executable, "-m", "tests.faults.interrupted_convert"],
        input=json.dumps(request | more),
        stdout=subprocess.PIPE,
        text=True,
        timeout=HANG_SECONDS,
        check=True,
    )
    return [json.loads(line) for line in process.stdout.splitlines()]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Bench:
    return Bench(tmp_path_factory.mktemp("interrupted"))


@pytest.fixture(scope="module")
def extent(bench: Bench) -> dict[str, int]:
    """How many calls and bytes a whole conversion takes."""
    (report,) = bench.interrupt([("", 0)])
    calls: dict[str, int] = report["first"]["calls"]
    return calls


def test_killed_at_any_instant_it_goes_on(
    bench: Bench, extent: dict[str, int], full_faults: bool
) -> None:
    every = [(kind, n + 1) for kind in ("before", "after", "torn") for n in range(extent["calls"])]
    assert len(every) >= 100
    reports = bench.interrupt(every if full_faults else every[::19])
    resumed: Counter[str] = Counter()
    for report in reports:
        assert report["first"]["killed"], report
        bench.check(report)
        resumed[min("none some all".split(), key=lambda word: word != _share(report))] += 1
    assert set(resumed) == {"none", "some", "all"}  # each way of going on was seen
    print(f"killed at {len(reports)} instants of {len(every)}; taken up of them: {dict(resumed)}")


def _share(report: dict[str, Any]) -> str:
    done = report["second"]["resumed"]
    return "none" if done == 0 else "all" if done == IMAGES + 1 else "some"


def test_a_split_killed_at_any_instant_goes_on(tmp_path: Path, full_faults: bool) -> None:
    """Train and test file end as if alone; meanwhile each is whole or not there."""
    source, target = tmp_path / "src", tmp_path / "out" / "x.beton"
    write_class_folders(source, classes=2, per_class=40)
    (source / "class_0" / "bad.jpg").write_bytes(b"no image")
    convert(str(source), target, ConvertConfig(workers=1, holdout=0.2, **OPTIONS))
    end = hashes(target.parent)
    assert {"x-train.beton", "x-test.beton", "x-train.quarantine.csv"} < end.keys()
    (alone,) = interrupted(source, target, [("", 0)], holdout=0.2)
    calls = alone["first"]["calls"]["calls"]
    every = [(kind, n + 1) for kind in ("before", "after", "torn") for n in range(calls)]
    for report in interrupted(source, target, every[:: 1 if full_faults else 41], holdout=0.2):
        instant = report["kind"], report["number"]
        assert report["first"]["killed"], instant
        for name in ("x-train.beton", "x-test.beton"):
            assert report["after"].get(name, end[name]) == end[name], instant
        assert report["end"] == end, instant


def test_a_full_disk_leaves_the_old_file_and_one_line(
    bench: Bench, extent: dict[str, int], full_faults: bool
) -> None:
    count = 50 if full_faults else 4
    offsets = [("bytes", i * extent["bytes"] // count) for i in range(count)]
    calls = [("fails", n + 1) for n in range(0, extent["calls"], 1 if full_faults else 15)]
    reports = bench.interrupt(offsets + calls)
    for report in reports:
        bench.check(report)
        if "error" not in report["first"]:  # only the journal could not be removed
            assert report["after"].items() >= bench.end_hashes.items(), report
        else:
            assert report["first"]["errno"] == 28, report
            assert "\n" not in report["first"]["error"]
            assert "No space left on device" in report["first"]["error"]
            assert "x.beton" in report["first"]["error"]
    refused = sum("error" in report["first"] for report in reports)
    assert refused >= len(reports) - 1, [r for r in reports if "error" not in r["first"]]
    print(f"no space at {len(offsets)} offsets and in {len(calls)} calls; each told in one line")


KILLED = """
import sys
from pathlib import Path
from fastmoco.data import conversion
from fastmoco.data.convert import ConvertConfig, Encoding, convert
if __name__ == "__main__":
    conversion.RECORD_SECONDS = 0.0
    print("ready", flush=True)
    convert(sys.argv[1], Path(sys.argv[2]), ConvertConfig(
        workers=2, encoding=Encoding.raw, page_bytes=1 << 21))
"""


def test_killed_at_any_time_it_leaves_no_process_and_no_shared_memory(
    bench: Bench, tmp_path: Path, full_faults: bool
) -> None:
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    shared = set(os.listdir("/dev/shm"))
    draw = random.Random(5)
    delays = [draw.uniform(0, 3) for _ in range(12 if full_faults else 1)]
    for delay in delays:
        for name, data in bench.old.items():
            (bench.folder / name).write_bytes(data)
        # Workers inherit stdout: it ends only when the last of them has.
        with subprocess.Popen(
            [sys.executable, str(script), str(bench.source), str(bench.target)],
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            time.sleep(delay)
            process.kill()
            process.stdout.read()
        assert hashes(bench.folder)["x.beton"] in (
            bench.old_hashes["x.beton"],
            bench.end_hashes["x.beton"],
        )
        convert(str(bench.source), bench.target, ConvertConfig(**OPTIONS))
        assert hashes(bench.folder) == bench.end_hashes
    deadline = time.monotonic() + 20
    while (left := set(os.listdir("/dev/shm")) - shared) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
    print(f"killed at {len(delays)} times with 2 workers; nothing left behind")


def test_another_recipe_starts_anew(bench: Bench, tmp_path: Path) -> None:
    """Changed options or images: what an interrupted run left is not mixed into the new file."""
    bench.interrupt([("before", 12)])  # and the next one went on; now leave one unfinished
    target = tmp_path / "x.beton"
    convert(str(bench.source), target, ConvertConfig(workers=1, max_size=64))
    expected = hashes(tmp_path)
    _leave_unfinished(bench, target)
    with pytest.warns(UserWarning, match="other images or options"):
        convert(str(bench.source), target, ConvertConfig(workers=1, max_size=64))
    assert hashes(tmp_path) == expected


def _leave_unfinished(bench: Bench, target: Path) -> None:
    """A partial file and a journal, of a run that was killed near its end."""
    script = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from fastmoco.data import conversion\n"
        "from fastmoco.data.convert import ConvertConfig, convert\n"
        "conversion.BetonWriter.finish = lambda *_: os.kill(os.getpid(), 9)\n"
        "convert(sys.argv[1], Path(sys.argv[2]), ConvertConfig(workers=1))\n"
    )
    arguments = [sys.executable, "-c", script, str(bench.source), str(target)]
    assert subprocess.run(arguments, timeout=HANG_SECONDS).returncode == -9
    assert sorted(path.name for path in target.parent.glob("*.*[ln]"))
    assert target.with_name("x.beton.journal").exists()
    assert target.with_name("x.beton.partial").exists()


def test_a_partial_file_that_lost_bytes_is_not_trusted(bench: Bench, tmp_path: Path) -> None:
    """As after a power cut: the journal tells of images whose bytes never reached the disk."""
    target = tmp_path / "x.beton"
    convert(str(bench.source), target, ConvertConfig(workers=1))
    expected = hashes(tmp_path)
    _leave_unfinished(bench, target)
    partial = target.with_name("x.beton.partial")
    data = bytearray(partial.read_bytes())
    data[len(data) - 3000 :] = bytes(3000)
    partial.write_bytes(data)
    summary = convert(str(bench.source), target, ConvertConfig(workers=1))
    assert summary.num_resumed < IMAGES + 1
    assert hashes(tmp_path) == expected


def test_failing_at_a_bad_image_after_going_on(bench: Bench, tmp_path: Path) -> None:
    from fastmoco.data.convert import OnError

    target = tmp_path / "x.beton"
    _leave_unfinished(bench, target)
    with pytest.raises(ValueError, match=r"bad\.png: .*on_error=quarantine"):
        convert(str(bench.source), target, ConvertConfig(workers=1, on_error=OnError.fail))
    assert convert(str(bench.source), target, ConvertConfig(workers=1)).num_samples == IMAGES
