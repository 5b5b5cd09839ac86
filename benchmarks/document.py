"""``python -m benchmarks.document``: two pages from the result files.

docs/benchmarks.md has the goals, benchmarks/results/README.md every figure.
"""

import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.goals import Goal, JsonRow, Verdict, judge, read_goals
from benchmarks.report import ROOT, number, why_not_shown
from fastmoco.files import atomic_write_text

HEAD = """# Benchmarks

Every figure is in `benchmarks/results/README.md`. Both pages are made from the result files by
`python -m benchmarks.document`.

**To rerun** on an idle machine: `pip install -e '.[bench,ffcv]' --group dev` for the peers, then
`pytest benchmarks/ --benchmark` (15 minutes on 2 cores). `-k loader` chooses,
`--benchmark-scale=full` takes more images and rounds, `--benchmark-images=DIR` your own JPEGs,
`--benchmark-cifar=DIR` CIFAR-10's training JPEGs, in a folder for each class (default: a stand-in,
which the figures name), `--benchmark-results=benchmarks/results/MACHINE` keeps a second machine's
figures. `python -m benchmarks.compare --base DIR --new DIR` fails where the new results are slower
beyond noise. On a GPU: [make gpu](devices.md#measuring-on-a-gpu).

**To read**: values are medians, with the least and greatest of n repeats, or quartiles from 8 on. A
ratio is the peer's cost over the row's own, round by round, in the same run: above 1 is in favor of
the row. "The same code twice" is the noise: a ratio no further from 1 is not shown to be a gain.
"""
TABLES_HEAD = """# All figures

How to read and repeat them is in [docs/benchmarks.md](../../docs/benchmarks.md). The docstring of
`benchmarks/bench_NAME.py` says what NAME measures.
"""
AGAIN = "(again)"
RESULTS = ROOT / "benchmarks/results"
Results = Mapping[str, Sequence[JsonRow]]


def document(results: Path) -> str:
    """Markdown of the goals, of all results in a folder and the folders in it.

    Raises:
        ValueError: If there are none.
    """
    by_name: dict[str, list[JsonRow]] = {}
    for path, rows in _read(results).items():
        by_name.setdefault(path.stem, []).extend(rows)
    return "\n".join([HEAD, _goals(by_name), _not_shown(by_name), _absent(by_name)])


def tables(results: Path) -> str:
    """Markdown of every figure of the same results.

    Raises:
        ValueError: If there are none.
    """
    files = _read(results).items()
    sections = [section(_name(path, results), path, rows) for path, rows in files]
    return "\n".join([TABLES_HEAD, *sections])


def _read(results: Path) -> dict[Path, list[JsonRow]]:
    """Rows by file; the folders of other machines come last."""
    paths = sorted(results.rglob("*.json"), key=lambda path: (len(path.parts), path))
    files = {path: json.loads(path.read_text()) for path in paths}
    files = {path: rows for path, rows in files.items() if rows}
    if not files:
        raise ValueError(f"{results} holds no results; run pytest benchmarks/ --benchmark")
    return files


def _name(path: Path, results: Path) -> str:
    return path.relative_to(results).with_suffix("").as_posix()


def _goals(results: Results) -> str:
    """The headline: every goal with its figure, and the profile of those that are not met."""
    verdicts = [judge(goal, results) for goal in read_goals()]
    met = sum(verdict.met is True for verdict in verdicts)
    missed = sum(verdict.met is False for verdict in verdicts)
    near = sum(verdict.near for verdict in verdicts)
    shown = [verdict for verdict in verdicts if verdict.row is not None]
    lines = [
        "## Goals",
        "",
        f"{met} met, {missed} NOT met, {len(verdicts) - met - missed} not measured. Medians are "
        f"judged; of {near} the spread holds the goal, so that another run may say otherwise.",
        "",
        "| part | goal | figure | met |",
        "|---|---|---|---|",
        *map(_goal_line, shown),
        "",
        *_not_measured(verdicts, results),
    ]
    return "\n".join(lines)


def _not_measured(verdicts: Sequence[Verdict], results: Results) -> Iterator[str]:
    """The goals without a figure, by what it takes to measure them."""
    by_reason: dict[str, list[str]] = {}
    for verdict in verdicts:
        if verdict.row is None:
            reason = _missing(verdict.goal, results.get(verdict.goal.benchmark, ()))
            by_reason.setdefault(reason, []).append(f"{verdict.goal.part}, {verdict.goal.claim}")
    for reason, claims in by_reason.items():
        yield f"- not measured: {reason}: {'; '.join(claims)}."
    yield ""


def _goal_line(verdict: Verdict) -> str:
    goal, row = verdict.goal, verdict.row
    assert row is not None
    answer = "met" if verdict.met else "**NOT met**"
    if verdict.near:
        answer += ", within the spread"
    if not verdict.met and goal.profile:
        answer += f'; profile: [log.md](log.md), "{goal.profile}"'
    return _table_line([goal.part, goal.claim, _figure(goal, row), answer])


def _missing(goal: Goal, rows: Sequence[JsonRow]) -> str:
    """What it takes to measure a goal."""
    here = [row for row in rows if row["device"].startswith(goal.device)]
    if goal.device == "cuda" and not here:
        return "needs a CUDA device"
    if goal.scale and goal.scale not in {row["scale"] for row in here}:
        return f"needs --benchmark-scale={goal.scale}"
    found = any(row["what"] == goal.what for row in here)
    return f"{goal.peer} is absent" if found and goal.peer else "no such result"


def _figure(goal: Goal, row: JsonRow) -> str:
    """The figures that the goal is about."""
    if row["value"] is None:
        return str(row["note"])
    parts = []
    if goal.ratio is not None and row["ratio"]:
        parts.append(f"{_ratio(row)} beside {row['ratio']['peer']}")
    if goal.share is not None and row["share_of_limit"] is not None:
        parts.append(f"{row['share_of_limit']:.0%} of {row['limit']}")
    if goal.below is not None:
        parts.append(f"{_value(row)} ({_spread(row['spread'])})")
    return ", ".join(parts)


def _not_shown(results: Results) -> str:
    """Ratios that equal code shows as well."""
    lines = [
        "## Not shown",
        "",
        "Beside each other, these differ no more than equal code does, or were measured once:",
        "",
    ]
    for name, row in _all(results):
        ratio = row["ratio"]
        if ratio and not ratio["shown"] and AGAIN not in row["what"]:
            lines.append(f"- {name}: {row['what']} beside {ratio['peer']}, {ratio['value']:.2f}x")
    return "\n".join([*lines, ""])


def _absent(results: Results) -> str:
    """Peers without a figure, and what needs a machine that was not at hand."""
    lines = [
        f"- {name}: {row['what']} ({row['note'] or 'no reason given'})"
        for name, row in _all(results)
        if row["value"] is None
    ]
    if not any(row["device"].startswith("cuda") for _, row in _all(results)):
        lines.append("- all that needs a CUDA device: no GPU was at hand")
    return "\n".join(["## Absent", "", *(lines or ["Nothing."]), ""])


def _all(results: Results) -> Iterator[tuple[str, JsonRow]]:
    return ((name, row) for name, rows in results.items() for row in rows)


def section(name: str, path: Path, rows: Sequence[JsonRow]) -> str:
    """Markdown of one file of results, and its picture, if there is one."""
    about = rows[0]
    versions = ", ".join(f"{key} {value}" for key, value in about["versions"].items() if value)
    machine = f"{about['clocks']['cpu']}, {about['device']}"
    commit, *changed = (about["commit"] or "unknown").split(" ", 1)
    lines = [
        f"## {name}",
        "",
        f"{about['subject']}. Scale {about['scale']}; {machine}; {versions}; "
        f"commit {' '.join([commit[:7], *changed])}.",
        *(["", f"**It did not end well**: {about['problem']}"] if about.get("problem") else []),
        "",
        "| what | median (spread) | n | beside its peers | of the limit | note |",
        "|---|---|---:|---|---|---|",
        *map(_line, _by_what(rows)),
        "",
        *_noise(rows),
    ]
    picture = path.with_suffix(".svg")
    if picture.exists() and any(row.get("curve") for row in rows):
        lines += [f"![{name}]({os.path.relpath(picture, RESULTS)})", ""]
    return "\n".join(lines)


def _by_what(rows: Sequence[JsonRow]) -> Sequence[Sequence[JsonRow]]:
    """The rows of each thing measured, of all its sizes, without those of the same code twice."""
    found: dict[str, list[JsonRow]] = {}
    for row in rows:
        if AGAIN not in row["what"]:
            found.setdefault(row["what"].partition(": ")[0], []).append(row)
    return list(found.values())


def _line(rows: Sequence[JsonRow]) -> str:
    several = len({row["unit"] for row in rows}) > 1
    ratios = [
        row["ratio"]["peer"] + (f" in {row['unit']}" if several else "") + f": {_ratio(row)}"
        for row in rows
        if row["ratio"]
    ]
    shares = [
        f"{row['share_of_limit']:.0%} of {row['limit']}"
        for row in rows
        if row["share_of_limit"] is not None
    ]
    values = [_with_spread(row) for row in rows]
    columns = [values, [str(row["repeats"] or "") for row in rows], ratios, shares]
    columns.append([row["note"] for row in rows])
    cells = ["; ".join(dict.fromkeys(filter(None, column))) for column in columns]
    return _table_line([rows[0]["what"].partition(": ")[0], *cells])


def _noise(rows: Sequence[JsonRow]) -> list[str]:
    """A line about the same code twice."""
    twice = [row for row in rows if AGAIN in row["what"] and row["ratio"]]
    if not twice:
        return []
    found = dict.fromkeys(
        f"{row['what'].replace(f' {AGAIN}', '')} {row['ratio']['value']:.2f}x" for row in twice
    )
    return [f"The same code twice: {'; '.join(found)}.", ""]


def _with_spread(row: JsonRow) -> str:
    spread = f" ({_spread(row['spread'])})" if (row["repeats"] or 0) > 1 else ""
    size = row["what"].partition(": ")[2]
    return (f"{size}: " if size else "") + _value(row) + spread


def _table_line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _value(row: JsonRow) -> str:
    return "absent" if row["value"] is None else f"{number(row['value'])} {row['unit']}"


def _ratio(row: JsonRow) -> str:
    ratio = row["ratio"]
    if not ratio["shown"]:
        return f"{ratio['value']:.2f}x, {why_not_shown(row['repeats'])}"
    return f"**{ratio['value']:.2f}x** ({_spread(ratio['spread'])})"


def _spread(spread: Mapping[str, Any]) -> str:
    return f"{number(spread['low'])} to {number(spread['high'])}"


def main() -> None:
    """Write both pages."""
    try:
        pages = {ROOT / "docs/benchmarks.md": document, RESULTS / "README.md": tables}
        for path, make in pages.items():
            atomic_write_text(path, make(RESULTS))
    except ValueError as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
