"""What a benchmark found: rows of figures, and the JSON, table and plot that are made of them."""

import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from benchmarks.harness import Summary, again, is_shown, speedup
from fastmoco.device import describe_device, resolve_device
from fastmoco.files import atomic_write_text

ROOT = Path(__file__).resolve().parents[1]
# What a run of the benchmarks itself changes is no change of what is measured.
RESULT_PATHS = ("benchmarks/results", "docs/benchmarks.md")
CURVE_HEIGHT = 8  # of a chart, in bars


@dataclass(frozen=True, slots=True)
class Ratio:
    """A figure beside a peer's; above 1 is in favor of the row that has it.

    Attributes:
        peer: The name of the row that it is compared with.
        summary: The ratio over all rounds.
        shown: False where equal code differs as much.
    """

    peer: str
    summary: Summary
    shown: bool


def beside(
    costs: Mapping[str, Sequence[float]], name: str, peer: str, repeated: str
) -> Ratio | None:
    """The ratio of a peer's cost to a contender's, if both are there.

    Args:
        costs: Of each contender, in each round: seconds or bytes, the less the better.
        name: The contender.
        peer: What it is compared with; may be "".
        repeated: The contender that ran twice, for the noise floor.
    """
    if not {name, peer, repeated, again(repeated)} <= costs.keys():
        return None
    ratio = speedup(costs[peer], costs[name])
    same = speedup(costs[repeated], costs[again(repeated)])
    return Ratio(peer, ratio, is_shown(ratio, same))


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One figure, or the reason why there is none.

    Attributes:
        what: What was measured.
        unit: Of the figure.
        value: The figure; None where it is absent.
        ratio: Beside a peer.
        limit: What bounds the figure, such as a disk.
        share_of_limit: How much of that is reached, 1 at the most in theory.
        goal: What is aimed at, in words.
        decode_device: Where images are decoded; ``none`` if none are.
        note: A remark, or the reason.
        curve: The name of the curve that this is a point of, ``NAME, UNIT``; "" for bars.
        size: Where the point lies on it.
    """

    what: str
    unit: str
    value: Summary | None = None
    ratio: Ratio | None = None
    limit: str = ""
    share_of_limit: float | None = None
    goal: str = ""
    decode_device: str = "none"
    note: str = ""
    curve: str = ""
    size: float | None = None


def absent(what: str, unit: str, reason: str) -> Row:
    """The row of a peer that cannot run here."""
    return Row(what=what, unit=unit, note=f"absent: {reason}")


@dataclass(slots=True)
class Report:
    """The rows of one benchmark.

    Attributes:
        name: Of the files that are written.
        scale: ``small`` or ``full``.
        subject: What all of its rows are about, such as how many images of which kind.
        device: On which all of it ran, as torch names it; ``auto`` is CUDA where there is one.
        peers: The packages whose versions belong to the figures.
        rows: In the order in which they are shown.
        seconds: How long it took, without what it shares with others.
        peak_bytes: The most that this process held meanwhile; rows of child processes have theirs.
        problem: Why it did not end well, so that rows may be missing; "" if it did.
    """

    name: str
    scale: str
    subject: str = ""
    device: str = "auto"
    peers: Sequence[str] = ()
    rows: list[Row] = field(default_factory=list)
    seconds: float = 0.0
    peak_bytes: int = 0
    problem: str = ""

    def write(self, folder: Path) -> None:
        """Writes ``NAME.json``: a list with an object for each row."""
        write_rows(folder / f"{self.name}.json", self.to_json())

    def to_json(self) -> list[dict[str, Any]]:
        """All rows as JSON values, each with what is true of all of them."""
        about = {
            "subject": self.subject,
            "scale": self.scale,
            "problem": self.problem,
            "benchmark_seconds": self.seconds,
            "benchmark_peak_bytes": self.peak_bytes,
            **describe_run(self.device, self.peers),
        }
        return [_to_json(row) | about for row in self.rows]

    def plot(self, folder: Path) -> None:
        """Writes ``NAME.svg``: curves, and the other figures as bars with their spreads."""
        bars = [row for row in self.rows if row.value and not row.curve]
        points = [row for row in self.rows if row.value and row.curve]
        units = list(dict.fromkeys(row.unit for row in bars))
        curves = list(dict.fromkeys(row.curve for row in points))
        if not units + curves:
            return
        heights = [sum(row.unit == unit for row in bars) + 1 for unit in units]
        heights += [CURVE_HEIGHT] * len(curves)
        figure = Figure(figsize=(9, 1 + 0.3 * (sum(heights) + len(heights))))
        charts = figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, unit in zip(charts, units, strict=False):
            _draw_bars(axes, unit, [row for row in bars if row.unit == unit])
        for axes, curve in zip(charts[len(units) :], curves, strict=True):
            _draw_curve(axes, curve, [row for row in points if row.curve == curve])
        figure.suptitle(f"{self.name}, {self.scale}\n{self.subject}")
        figure.tight_layout()
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / f"{self.name}.svg", metadata={"Date": None})


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Writes a file of results, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, json.dumps(rows, indent=1) + "\n")


def show(reports: Sequence[Report], console: Console) -> None:
    """One table of all figures."""
    names = (
        "value",
        "unit",
        "spread",
        "n",
        "ratio",
        "beside",
        "of the limit",
        "goal",
        "decoded on",
        "note",
    )
    table = Table("what", *names)
    for report in reports:
        table.add_section()
        problem = f"\ndid not end well: {report.problem}" if report.problem else ""
        about = escape(f"{report.name}, {report.scale}\n{report.subject}{problem}")
        table.add_row(f"[bold]{about}")
        for row in report.rows:
            table.add_row(*map(escape, _cells(row)))
    console.print(table)
    taken = [
        f"{report.name} {report.seconds:.0f} s and {report.peak_bytes / 1e9:.1f} GB"
        for report in reports
    ]
    console.print(f"took (memory of this process): {', '.join(taken)}")
    console.print(
        "value: median; spread: least and greatest below 8 repeats, else quartiles; ratio: of the "
        "cost of what it is beside to its own, round by round, above 1 is better"
    )


def describe_run(device: str, peers: Sequence[str]) -> dict[str, Any]:
    """Device, clocks, versions and commit, as JSON values."""
    return {
        "device": describe_device(resolve_device(device)),
        "clocks": _clocks(),
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in ("torch", "numpy", "fastmoco", *peers)},
        "commit": commit_of(ROOT),
    }


def _clocks() -> dict[str, Any]:
    """The CPU's model, its governor and speed, and the GPU's, where they can be read."""
    first_cpu = Path("/proc/cpuinfo").read_text().split("\n\n")[0]
    fields = {
        name.strip(): value.strip()
        for name, _, value in (line.partition(":") for line in first_cpu.splitlines())
    }
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    clocks: dict[str, Any] = {
        "cpu": fields.get("model name", platform.machine()),
        "cpu_count": len(os.sched_getaffinity(0)),
        "cpu_mhz": fields.get("cpu MHz"),
        "cpu_governor": governor.read_text().strip() if governor.exists() else None,
    }
    if torch.cuda.is_available():
        try:
            clocks["gpu_mhz"] = torch.cuda.clock_rate()
        except (ImportError, RuntimeError):  # torch asks NVML through a package of its own
            clocks["gpu_mhz"] = None
    return clocks


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def commit_of(root: Path) -> str | None:
    """The commit of a working tree, and ``+ dirty`` where other files than results differ."""
    try:
        commit = _git(root, "rev-parse", "HEAD")
        others = [f":(exclude){path}" for path in RESULT_PATHS]
        changed = _git(root, "status", "--porcelain", "--untracked-files=all", "--", ".", *others)
        return f"{commit} + dirty" if changed else commit
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _to_json(row: Row) -> dict[str, Any]:
    values = asdict(row)
    summary = values.pop("value")
    ratio = values.pop("ratio")
    return {
        "what": values.pop("what"),
        "value": summary and summary["median"],
        "unit": values.pop("unit"),
        "repeats": summary["repeats"] if summary else 0,
        "spread": _spread(summary) if summary else None,
        "ratio": ratio
        and {
            "peer": ratio["peer"],
            "value": ratio["summary"]["median"],
            "spread": _spread(ratio["summary"]),
            "shown": ratio["shown"],
        },
        **values,
    }


def _spread(summary: dict[str, Any]) -> dict[str, Any]:
    return {"kind": summary["spread"], "low": summary["low"], "high": summary["high"]}


def _cells(row: Row) -> list[str]:
    value, ratio = row.value, row.ratio
    return [
        row.what,
        number(value.median) if value else "absent",
        row.unit,
        f"{number(value.low)} to {number(value.high)}" if value else "",
        str(value.repeats) if value else "",
        _ratio_text(ratio) if ratio else "",
        ratio.peer if ratio else "",
        "" if row.share_of_limit is None else f"{row.share_of_limit:.0%} {row.limit}",
        row.goal,
        row.decode_device,
        row.note,
    ]


def _ratio_text(ratio: Ratio) -> str:
    found = ratio.summary
    text = f"{found.median:.2f}x ({found.low:.2f} to {found.high:.2f})"
    return text if ratio.shown else f"{text}\n{why_not_shown(found.repeats)}: not shown"


def why_not_shown(repeats: int) -> str:
    """In words; what ran once has no spread to stand out from."""
    return "within noise" if repeats > 1 else "measured once"


def number(value: float) -> str:
    """Three significant digits, or a whole number."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _draw_bars(axes: Any, unit: str, rows: list[Row]) -> None:
    found = [(row.what, row.value) for row in reversed(rows) if row.value]
    medians = [value.median for _, value in found]
    below = [value.median - value.low for _, value in found]
    above = [value.high - value.median for _, value in found]
    axes.barh([what for what, _ in found], medians, xerr=[below, above], capsize=2)
    axes.set_xlabel(unit)


def _draw_curve(axes: Any, curve: str, rows: list[Row]) -> None:
    """Points with their spreads; both axes logarithmic where they are costs."""
    points = [(row.size, row.value) for row in rows if row.value and row.size is not None]
    sizes = [size for size, _ in points]
    medians = [value.median for _, value in points]
    spreads = [
        [value.median - value.low for _, value in points],
        [value.high - value.median for _, value in points],
    ]
    axes.errorbar(sizes, medians, yerr=spreads, marker="o", capsize=2)
    if rows[0].unit == "ms":
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
    axes.set_xlabel(curve)
    axes.set_ylabel(rows[0].unit)
