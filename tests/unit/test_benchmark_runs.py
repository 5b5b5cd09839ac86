"""What stays of a run of the benchmarks that fails, is interrupted, or lacks a peer."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

import pytest

from benchmarks import bench_knn
from benchmarks.document import tables
from benchmarks.harness import again
from benchmarks.report import ROOT, Report
from benchmarks.settings import Settings
from tests.limits import HANG_SECONDS

BENCHMARKS = """
from benchmarks.harness import summarize
from benchmarks.report import Row

def row():
    return Row(what="ours", unit="s", value=summarize([2.0]))

def bench_first(report):
    report.rows.append(row())

def bench_second(report):
    report.rows.append(row())
    raise RuntimeError("no more | memory")

def bench_third(report):
    report.rows.append(row())
    raise KeyboardInterrupt
"""


FROZEN = """
import os, signal
from contextlib import closing
from benchmarks.child import KeptChild

def bench_frozen(request):
    with closing(KeptChild("itertools:repeat", {"object": 2.0})) as child:
        child.measure(0.01)
        (request.path.parent / "process").write_text(str(child._process.pid))
        os.kill(os.getpid(), signal.SIGTERM)
        signal.pause()
"""


def run_benchmarks(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    (folder / "bench_some.py").write_text(code)
    command = [sys.executable, "-m", "pytest", "-p", "benchmarks.conftest", str(folder)]
    command += ["-p", "no:cacheprovider", f"--rootdir={folder}", "--benchmark"]
    command += [f"--benchmark-results={folder}"]
    command += ["-o", "python_files=bench_*.py", "-o", "python_functions=bench_*"]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=HANG_SECONDS)


@pytest.mark.full
def test_frozen_children_end_with_benchmarks_that_are_terminated(tmp_path: Path) -> None:
    done = run_benchmarks(tmp_path, FROZEN)
    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout + done.stderr
    assert not Path("/proc", (tmp_path / "process").read_text()).exists()


@pytest.mark.full
def test_finished_benchmarks_are_kept_and_interrupted_ones_replace_nothing(tmp_path: Path) -> None:
    (tmp_path / "third.json").write_text("[]")
    done = run_benchmarks(tmp_path, BENCHMARKS)
    assert done.returncode == pytest.ExitCode.INTERRUPTED, done.stdout + done.stderr
    (first,), (second,), third = (
        json.loads((tmp_path / f"{name}.json").read_text()) for name in ("first", "second", "third")
    )
    assert (first["value"], first["problem"]) == (2.0, "")
    assert (second["value"], second["problem"]) == (2.0, "RuntimeError: no more | memory")
    assert third == []
    assert "did not end well: RuntimeError" in done.stdout
    assert "**It did not end well**: RuntimeError" in tables(tmp_path)


def test_knn_is_measured_without_scikit_learn(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object) -> None:
        raise ImportError("No module named 'sklearn'")

    class Few:
        """A scale of which a test does not have to wait for the end."""

        scale = "small"

        def pick(self, small: int, _: int) -> int:
            return min(small, 300)

    monkeypatch.setattr(bench_knn, "_peer", missing)
    report = Report("knn", "small")
    bench_knn.bench_knn(cast("Settings", cast("Any", Few())), report)
    figures = {row.what: row.value for row in report.rows}
    assert set(figures) == {"scikit-learn", "fastmoco", again("fastmoco")}
    assert figures["scikit-learn"] is None
    assert report.rows[0].note == "absent: No module named 'sklearn'"
