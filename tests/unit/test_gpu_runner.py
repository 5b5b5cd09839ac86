"""`make gpu` writes what came of each part, whatever becomes of the others."""

import json
import threading
from pathlib import Path

import pytest
import torch

from benchmarks.child import ChildResult, Unavailable
from benchmarks.document import tables
from benchmarks.gpu import __main__ as program
from benchmarks.gpu import runner
from benchmarks.gpu.job import Job, run_part
from benchmarks.gpu.runner import FAILED, OK, SKIPPED, Part, Request, run, table
from benchmarks.harness import summarize
from benchmarks.report import Report, Row

HERE = "tests.unit.test_gpu_runner"


def good(job: Job, report: Report) -> None:
    report.subject = "one"
    report.rows.append(Row(what=f"at {job.pick(1, 2)}", unit="s", value=summarize([3.0])))


def bad(job: Job, report: Report) -> None:
    good(job, report)
    raise RuntimeError("no more |\nmemory")


def part(name: str, file: str = "some", limit: float = 9.0, least: float = 1.0) -> Part:
    return Part(name, f"{HERE}:{name}", file, limit, least)


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Parts run in this process, or die as `killed`; gives their limits."""
    limits: list[float] = []

    def call(_: str, arguments: dict, *, timeout_seconds: float) -> ChildResult:
        limits.append(timeout_seconds)
        if arguments["target"].endswith("killed"):
            raise Unavailable("killed: it took more than 9 s", ["first", "last ```"])
        return ChildResult(run_part(**arguments), 0)

    monkeypatch.setattr(runner, "call_in_child", call)
    return limits


def test_every_end_of_a_part_is_recorded_and_the_next_one_runs(
    tmp_path: Path, children: list[float], capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "card"
    parts = [part("bad"), part("killed"), part("good", "other"), part("good", least=1e6)]
    outcomes, folder = run(parts, Request("toy", None, out, budget=100.0))
    assert [one.status for one in outcomes] == [FAILED, FAILED, OK, SKIPPED]
    assert folder == out
    assert children == [9.0] * 3
    assert sorted(path.name for path in out.iterdir()) == ["other.json", "some.json", "summary.md"]
    (row,) = json.loads((out / "some.json").read_text())
    assert (row["value"], row["problem"]) == (3.0, "RuntimeError: no more | memory")
    summary = (out / "summary.md").read_text()
    assert "| bad | failed |" in summary
    assert "killed: it took more than 9 s" in summary
    assert "\nlast '''\n" in summary
    assert "Traceback" in summary
    assert " s are left, it needs 1000000; set BUDGET |" in table(outcomes)
    assert "at 1: 3 s" in capsys.readouterr().out
    assert "## other" in tables(out)


def test_results_are_there_after_each_part(
    tmp_path: Path, children: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    del children
    seen: list[list[str]] = []

    def watched(outcomes: list[runner.Outcome], out: Path) -> None:
        plain(outcomes, out)
        seen.append([one.part.name for one in outcomes])
        assert (out / "summary.md").read_text().count("| failed |") == len(outcomes)

    plain = runner.write
    monkeypatch.setattr(runner, "write", watched)
    run([part("bad"), part("killed")], Request("toy", None, tmp_path, 100.0))
    assert seen[:2] == [["bad"], ["bad", "killed"]]


def test_checks_run_side_by_side_and_figures_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    meeting = threading.Barrier(2, timeout=20)
    running: list[str] = []

    def call(_: str, arguments: dict, **__: float) -> ChildResult:
        running.append(arguments["name"])
        if arguments["name"] == "check":
            meeting.wait()  # for the other one
        assert arguments["name"] == "check" or running == ["timed"]
        running.remove(arguments["name"])
        return ChildResult({"rows": [], "device": "cpu", "problem": "", "lines": []}, 0)

    monkeypatch.setattr(runner, "call_in_child", call)
    check = Part("check", "", "some", 9.0, 1.0, is_timed=False)
    parts = [part("timed"), check, check, part("timed"), part("timed")]
    outcomes, _ = run(parts, Request("toy", None, tmp_path, 100.0))
    assert [one.status for one in outcomes] == [OK] * 5


def test_the_folder_is_named_by_the_device(
    children: list[float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    del children
    monkeypatch.setattr(runner, "ROOT", tmp_path)
    _, out = run([part("good")], Request("toy", None, None, 100.0))
    assert out == tmp_path / "benchmarks/results/cpu"
    assert runner._folder_of("NVIDIA H100 80GB HBM3").name == "nvidia-h100-80gb-hbm3"
    run([part("killed")], Request("toy", None, None, 100.0))
    assert (tmp_path / "benchmarks/results/unknown/summary.md").exists()


def test_a_limit_is_never_beyond_the_budget(tmp_path: Path, children: list[float]) -> None:
    run([part("good", limit=1e6)], Request("toy", None, tmp_path, 30.0))
    assert 20 < children[0] < 30 - runner.END_SECONDS + 0.1


def test_all_parts_fit_the_budget_and_few_files() -> None:
    files = {one.file for one in program.PARTS}
    assert len(files) + 1 <= 8
    assert all(one.least <= one.limit for one in program.PARTS)
    # Those that must run: with the least time of each, there is some left.
    assert sum(one.least for one in program.PARTS) < program.BUDGET_SECONDS


def test_a_failed_part_is_the_exit_code(
    tmp_path: Path, children: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    del children
    monkeypatch.setattr(program, "PARTS", (part("good"), part("bad")))
    given = ["toy", f"--out={tmp_path}", "--data=x"]
    assert program.main(given) == 1
    assert program.main([*given, "--only=good"]) == 0
    with pytest.raises(SystemExit):
        program.main([*given, "--only=none"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is there")
def test_without_a_gpu_only_the_toy_runs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        program.main([])
    assert "sees no GPU; install a driver" in capsys.readouterr().err
