"""What is made of result files: the goals' verdicts, the document, the comparison of two builds."""

import json
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from benchmarks import compare
from benchmarks.document import _goal_line, document, tables
from benchmarks.goals import Goal, judge, read_goals
from benchmarks.harness import again, summarize
from benchmarks.report import ROOT, Report, Row, absent, beside, commit_of

GOAL = Goal(
    part="data path",
    claim="six times",
    benchmark="loader_photographs",
    what="beton",
    peer="official, decode and crop",
    ratio=6,
    profile="Six times the official pipeline's decode and crop",
)


def write(folder: Path, name: str, rows: Sequence[Row]) -> None:
    Report(name, "small", subject="a subject", device="cpu", rows=list(rows)).write(folder)


def rows_of(seconds: Sequence[float], peer_seconds: Sequence[float]) -> list[Row]:
    """A contender beside its peer, with a noise floor of 4%."""
    costs = {
        "beton": list(seconds),
        again("beton"): [
            second * factor for second, factor in zip(seconds, (1, 1.04, 1), strict=True)
        ],
        "official, decode and crop": list(peer_seconds),
    }
    return [
        Row(
            what=name,
            unit="images/s",
            value=summarize([1 / cost for cost in costs[name]]),
            ratio=beside(costs, name, peer, "beton"),
        )
        for name, peer in (
            ("beton", "official, decode and crop"),
            (again("beton"), "beton"),
            ("official, decode and crop", ""),
        )
    ]


def judged(folder: Path) -> bool | None:
    path = folder / "loader_photographs.json"
    return judge(GOAL, {"loader_photographs": json.loads(path.read_text())}).met


def test_a_goal_is_met_by_a_ratio_that_is_shown(tmp_path: Path) -> None:
    assert judge(GOAL, {}).met is None
    for peer_seconds, met in ([6.6, 6.5, 6.7], True), ([5.8, 5.9, 6.0], False):
        write(tmp_path, "loader_photographs", rows_of([1, 1, 1], peer_seconds))
        assert judged(tmp_path) is met


def test_a_gain_within_the_noise_meets_no_goal(tmp_path: Path) -> None:
    write(tmp_path, "loader_photographs", rows_of([1, 1, 1], [6.5, 0.9, 7]))
    assert judged(tmp_path) is False


def test_goals_of_other_devices_and_scales_are_not_measured(tmp_path: Path) -> None:
    write(tmp_path, "knn", [Row(what="fastmoco", unit="s", value=summarize([3.0]))])
    results = {"knn": json.loads((tmp_path / "knn.json").read_text())}
    common = {"part": "", "claim": "", "benchmark": "knn", "what": "fastmoco", "below": 15.0}
    assert judge(Goal(**common), results).met is True
    assert judge(Goal(**common, device="cuda"), results).met is None
    assert judge(Goal(**common, scale="full"), results).met is None


def test_what_was_tried_in_vain_is_not_met(tmp_path: Path) -> None:
    """It must not pass for something that was not measured."""
    note = "not reached by 1 of 1: [80.1]"
    write(tmp_path, "time", [Row(what="to kNN 82.6 %", unit="s", note=note)])
    results = {"time": json.loads((tmp_path / "time.json").read_text())}
    goal = Goal(part="", claim="", benchmark="time", what="to kNN 82.6 %", unit="s", below=300)
    verdict = judge(goal, results)
    assert verdict.met is False
    assert f"| {note} | **NOT met** |" in _goal_line(verdict)


def test_a_goal_within_the_spread_is_called_so(tmp_path: Path) -> None:
    for peer_seconds, answer in (
        ([6.1, 5.8, 6.4], "| met, within the spread |"),
        ([5.9, 5.8, 6.4], "| **NOT met**, within the spread; profile"),
        ([6.1, 6.2, 6.4], "| met |"),
    ):
        write(tmp_path, "loader_photographs", rows_of([1, 1, 1], peer_seconds))
        assert answer in document(tmp_path)


def test_a_goal_without_a_figure_says_what_is_missing(tmp_path: Path) -> None:
    rows = rows_of([1, 1, 1], [7, 7, 7])
    write(tmp_path, "loader_photographs", [replace(rows[0], ratio=None), rows[1]])
    text = document(tmp_path)
    assert "not measured: official, decode and crop is absent" in text
    assert "not measured: needs a CUDA device" in text
    write(tmp_path, "knn", [Row(what="fastmoco", unit="s", value=summarize([1.0]))])
    assert "not measured: needs --benchmark-scale=full" in document(tmp_path)


def test_the_machine_of_the_folder_itself_goes_before_those_of_folders_in_it(
    tmp_path: Path,
) -> None:
    for folder, seconds in ((tmp_path / "gpu", 0.2), (tmp_path, 3.0)):
        write(folder, "open", [Row(what="fastmoco", unit="s", value=summarize([seconds]))])
    assert "| 3 s (3 to 3) | **NOT met** |" in document(tmp_path)


def test_changed_files_are_told_but_not_results(tmp_path: Path) -> None:
    write(tmp_path, "open", [Row(what="fastmoco", unit="s", value=summarize([0.2]))])
    (row,) = json.loads((tmp_path / "open.json").read_text())
    row["commit"] = "0123456789abcdef + dirty"
    (tmp_path / "open.json").write_text(json.dumps([row]))
    assert "; commit 0123456 + dirty." in tables(tmp_path)
    repository = tmp_path / "repository"
    git = ["git", "-C", str(repository), "-c", "user.name=a", "-c", "user.email=a@b.c"]
    subprocess.run(["git", "init", "-q", str(repository)], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "first"], check=True)
    result = repository / "benchmarks/results/open.json"
    result.parent.mkdir(parents=True)
    result.write_text("[]")
    assert "dirty" not in str(commit_of(repository))
    (repository / "benchmarks/harness.py").write_text("")
    assert str(commit_of(repository)).endswith(" + dirty")
    assert commit_of(tmp_path / "open.json") is None


def test_every_goal_has_a_bound_and_its_profile_is_in_the_log() -> None:
    log = " ".join((ROOT / "docs/log.md").read_text().split())
    benchmarks = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("bench_*.py"))
    for goal in read_goals():
        assert (goal.ratio, goal.share, goal.below) != (None, None, None), goal.claim
        assert not goal.profile or f"**{goal.profile}" in log
        assert f"def bench_{goal.benchmark}(" in benchmarks, goal.benchmark


def test_the_workflow_measures_benchmarks_that_there_are() -> None:
    workflow = yaml.safe_load((ROOT / ".github/workflows/benchmarks.yml").read_text())
    benchmarks = "".join(path.read_text() for path in (ROOT / "benchmarks").glob("bench_*.py"))
    for chosen in workflow["env"]["CHOSEN"].split(" or "):
        assert f"def bench_{chosen}" in benchmarks
    steps = " ".join(step.get("run", "") for step in workflow["jobs"]["compare"]["steps"])
    assert "for run in base-1 new-1 new-2 base-2" in steps
    assert "benchmarks.compare" in steps


def test_the_document_says_what_is_met_and_where_the_profile_is(tmp_path: Path) -> None:
    rows = rows_of([1, 1, 1], [5, 5.1, 5.2])
    rows += [absent("lightly, MoCo v2 views", "images/s", "No module named 'lightly'")]
    write(tmp_path, "loader_photographs", rows)
    write(tmp_path / "gpu", "open", [Row(what="fastmoco", unit="s", value=summarize([0.2]))])
    text = document(tmp_path)
    assert "1 met, 1 NOT met," in text
    assert '| **NOT met**; profile: [log.md](log.md), "Six times the official' in text
    assert "**5.10x** (5 to 5.2) beside official, decode and crop" in text
    assert "0.2 s (0.2 to 0.2) | met |" in text
    assert "- loader_photographs: lightly, MoCo v2 views (absent: No module named" in text
    assert "no GPU was at hand" in text
    assert "## gpu/open\n" in tables(tmp_path)


def test_a_table_has_one_row_for_each_thing_measured(tmp_path: Path) -> None:
    rows = rows_of([1, 1, 1], [5, 5.1, 5.2])
    rows += [replace(rows[0], unit="MB", ratio=None)]
    rows += [Row(what=f"side: {n}", unit="ms", value=summarize([float(n)])) for n in (32, 64)]
    write(tmp_path, "loader_photographs", rows)
    text = tables(tmp_path)
    figures = "1 images/s (1 to 1); 1 MB (1 to 1) | 3 | official, decode and crop in images/s:"
    assert f"| beton | {figures} **5.10x** (5 to 5.2) |" in text
    assert "| side | 32: 32 ms; 64: 64 ms | 1 |" in text
    assert "| beton (again)" not in text
    assert "The same code twice: beton 1.00x.\n" in text


def test_the_document_lists_what_is_not_shown(tmp_path: Path) -> None:
    write(tmp_path, "loader_photographs", rows_of([1, 1, 1], [1.01, 0.99, 1.02]))
    listed = document(tmp_path).partition("## Not shown")[2].partition("## Absent")[0]
    assert "- loader_photographs: beton beside official, decode and crop, 1.01x" in listed
    assert "(again)" not in listed


NOISE = (1.0, 1.02, 0.98)


def builds(folder: Path, new_cost: float, noise: Sequence[float] = NOISE) -> list[str]:
    """Result folders of a base and of a new build, two runs each, as arguments."""
    arguments = []
    for side, cost in (("base", 1.0), ("new", new_cost)):
        arguments.append(f"--{side}")
        for run in range(2):
            drifted = [cost * each * (1 + 0.01 * run) for each in noise]
            write(folder / f"{side}{run}", "loader_photographs", rows_of(drifted, [5, 5, 5]))
            arguments.append(str(folder / f"{side}{run}"))
    return arguments


def test_a_regression_beyond_noise_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compare.main(builds(tmp_path, 1.1)) == 1
    out = capsys.readouterr().out
    assert "| loader_photographs | beton | images/s | 1.1 | 5% | **worse** |" in out
    assert "1 of 2 figures are worse" in out


@pytest.mark.parametrize("new_cost", [1.0, 0.99, 1.03, 0.7])
def test_equal_code_and_gains_pass(tmp_path: Path, new_cost: float) -> None:
    assert compare.main(builds(tmp_path, new_cost)) == 0


def test_a_change_within_the_spread_passes(tmp_path: Path) -> None:
    assert compare.main(builds(tmp_path, 1.1, noise=(1.0, 1.2, 0.8))) == 0


def test_a_gain_is_named_and_what_is_gone_is_listed(tmp_path: Path) -> None:
    base, new = tmp_path / "base", tmp_path / "new"
    rows = rows_of(NOISE, [5, 5, 5])
    write(base, "loader_photographs", [*rows, Row(what="old", unit="s", value=summarize([1.0]))])
    write(new, "loader_photographs", rows_of([0.5, 0.51, 0.49], [5, 5, 5]))
    verdicts = {one.key[1]: one.verdict for one in compare.compare([base], [new])}
    assert verdicts == {
        "beton": compare.BETTER,
        "official, decode and crop": compare.SAME,
        "old": compare.GONE,
    }


@pytest.mark.parametrize("change", [{"scale": "full"}, {"subject": "other images"}])
def test_other_settings_are_not_compared(tmp_path: Path, change: dict[str, str]) -> None:
    base, new = tmp_path / "base", tmp_path / "new"
    rows = rows_of(NOISE, [5, 5, 5])
    write(base, "loader_photographs", rows)
    other = Report("loader_photographs", "small", subject="a subject", device="cpu", rows=rows)
    replace(other, **change).write(new)
    assert {one.verdict for one in compare.compare([base], [new])} == {compare.GONE, compare.ADDED}


def test_nothing_to_compare_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert compare.main(["--base", str(tmp_path), "--new", str(tmp_path)]) == 2
    assert "no figure is in both" in capsys.readouterr().err
