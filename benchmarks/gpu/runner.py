"""Runs parts within a budget of time, one after the other, and writes what came of each at once.

A part is a child process with a time limit. One that fails, hangs or crashes is recorded, and the
next one runs. Where time gets short, parts that would not end are skipped. Checks run side by side:
much of their time is compiling, on the host.
"""

import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.child import Unavailable, call_in_child
from benchmarks.document import section
from benchmarks.report import ROOT, write_rows
from fastmoco.files import atomic_write_text

OK, FAILED, SKIPPED = "ok", "failed", "skipped"
SUMMARY = "summary.md"
END_SECONDS = 5.0
"""Kept of the budget to end the last part."""


@dataclass(frozen=True, slots=True)
class Part:
    """A part of the run.

    Attributes:
        name: For people.
        target: ``MODULE:FUNCTION``, see `job.run_part`.
        file: Name of the result file that takes its rows, without ``.json``.
        limit: Seconds after which it is killed.
        least: Seconds below which it is not worth starting.
        is_timed: False for a check whose figures do not depend on what runs beside it: such parts
            run at the same time as those next to them, which hides the compiling of one another.
    """

    name: str
    target: str
    file: str
    limit: float
    least: float
    is_timed: bool = True


@dataclass(slots=True)
class Outcome:
    """What came of a part.

    Attributes:
        part: Which.
        status: `OK`, `FAILED` or `SKIPPED`.
        seconds: How long it took, the start of its process included.
        reason: Why it failed or was skipped, in one line.
        lines: The last lines of its error.
        rows: Its figures, as JSON values.
    """

    part: Part
    status: str
    seconds: float = 0.0
    reason: str = ""
    lines: list[str] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Request:
    """What is to be run.

    Attributes:
        scale: See `job.Job`.
        data: See `job.Job`.
        out: Folder of the results; None: a folder in benchmarks/results named by the device.
        budget: Seconds for all parts together.
    """

    scale: str
    data: str | None
    out: Path | None
    budget: float


def run(parts: Sequence[Part], request: Request) -> tuple[list[Outcome], Path]:
    """Run the parts, write results after each, and give all outcomes and the folder."""
    deadline = time.monotonic() + request.budget
    outcomes: list[Outcome] = []
    out = request.out
    with tempfile.TemporaryDirectory(prefix="fastmoco_gpu_") as scratch:
        for together in _side_by_side(parts):
            left = deadline - time.monotonic() - END_SECONDS
            for outcome, device in _run_all(together, request, scratch, left):
                outcomes.append(outcome)
                out = out or (_folder_of(device) if device else None)
                _say(_line(outcome))
                if out is not None:
                    write(outcomes, out)
    out = out or _folder_of("unknown")
    write(outcomes, out)
    return outcomes, out


def _side_by_side(parts: Sequence[Part]) -> Iterator[list[Part]]:
    """Parts that run at the same time: checks that follow each other, and else a part alone."""
    for is_timed, some in groupby(parts, key=lambda part: part.is_timed):
        found = list(some)
        yield from ([part] for part in found) if is_timed else [found]


def _run_all(
    parts: Sequence[Part], request: Request, scratch: str, left: float
) -> Iterator[tuple[Outcome, str]]:
    """Run parts at the same time; yield in their order. A part alone ends with an interrupt."""
    if len(parts) == 1:
        yield _run_one(parts[0], request, scratch, left)
        return
    with ThreadPoolExecutor(len(parts)) as pool:
        yield from pool.map(lambda part: _run_one(part, request, scratch, left), parts)


def _run_one(part: Part, request: Request, scratch: str, left: float) -> tuple[Outcome, str]:
    """Run a part, if the time that is left suffices; also give the device's name."""
    if left < part.least:
        reason = f"{max(left, 0):.0f} s are left, it needs {part.least:.0f}; set BUDGET"
        return Outcome(part, SKIPPED, reason=reason), ""
    limit, start = min(part.limit, left), time.monotonic()
    arguments = {
        "target": part.target,
        "name": part.name,
        "scale": request.scale,
        "data": request.data,
        "scratch": scratch,
        "seconds": limit,
    }
    try:
        done = call_in_child("benchmarks.gpu.job:run_part", arguments, timeout_seconds=limit).value
    except Unavailable as error:
        done = {"rows": [], "device": "", "problem": str(error), "lines": error.lines}
    outcome = Outcome(
        part,
        FAILED if done["problem"] else OK,
        time.monotonic() - start,
        done["problem"],
        done["lines"],
        done["rows"],
    )
    return outcome, done["device"]


def _folder_of(device: str) -> Path:
    name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
    return ROOT / "benchmarks/results" / name


def write(outcomes: Sequence[Outcome], out: Path) -> None:
    """Write the summary, and a file of rows for each name that parts have: whole or not at all."""
    by_file: dict[str, list[dict[str, Any]]] = {}
    for outcome in outcomes:
        by_file.setdefault(outcome.part.file, []).extend(outcome.rows)
    for name, rows in by_file.items():
        if rows:
            write_rows(out / f"{name}.json", rows)
    out.mkdir(parents=True, exist_ok=True)
    atomic_write_text(out / SUMMARY, "\n".join(_summary(outcomes, by_file, out)))


def _summary(
    outcomes: Sequence[Outcome], by_file: Mapping[str, list[dict[str, Any]]], out: Path
) -> Iterator[str]:
    yield f"# {out.name}\n"
    yield table(outcomes)
    for outcome in outcomes:
        if outcome.lines:
            yield f"\n## {outcome.part.name} failed\n\n```text"
            yield from (line.replace("```", "'''") for line in outcome.lines)
            yield "```"
    for name, rows in by_file.items():
        if rows:
            yield "\n" + section(name, out / f"{name}.json", rows)


def table(outcomes: Sequence[Outcome]) -> str:
    """Markdown: what came of each part."""
    lines = ["| part | | seconds | figures | reason |", "|---|---|---:|---:|---|"]
    for one in outcomes:
        reason = one.reason.replace("|", "/")
        cells = [one.part.name, one.status, f"{one.seconds:.0f}", str(len(one.rows)), reason]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _line(outcome: Outcome) -> str:
    """A part in a few lines: its outcome and its figures."""
    reason = f": {outcome.reason}" if outcome.reason else ""
    head = f"{outcome.part.name}: {outcome.status}, {outcome.seconds:.0f} s{reason}"
    figures = [
        f"  {row['what']}: {'absent' if row['value'] is None else format(row['value'], ',.4g')} "
        f"{row['unit']}{_beside(row['ratio'])} {row['note']}".rstrip()
        for row in outcome.rows
    ]
    return "\n".join([head, *figures])


def _beside(ratio: Mapping[str, Any] | None) -> str:
    if not ratio:
        return ""
    shown = "" if ratio["shown"] else ", not shown"
    return f", {ratio['value']:.2f}x {ratio['peer']}{shown};"


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()
