"""Opening a file with as many samples as ImageNet has, beside FFCV's Loader on the same file.

The images are of one pixel each and were never written, since opening reads none; the index is in
the page cache. Memory is the growth of the process's resident peak, which leaves out imports.
"""

from functools import partial
from pathlib import Path

from benchmarks.child import call_in_child
from benchmarks.harness import again, alternate, summarize
from benchmarks.report import Report, Row, beside
from benchmarks.settings import Settings
from benchmarks.sparse_file import write_sparse

SAMPLES = 1_281_167
OURS, PEER = "fastmoco", "FFCV Loader"
TARGETS = {PEER: "benchmarks.peers.ffcv_peer:open_file", OURS: "benchmarks.subjects:open_file"}
# What a child process gives; in which unit, of how many of its own, it is shown; the goal.
FIGURES = [("seconds", "s", 1.0, "< 2 s"), ("growth_bytes", "MB of memory", 1e6, "< 200 MB")]


def bench_open(settings: Settings, report: Report, scratch: Path) -> None:
    """Seconds and memory until the first sample could be asked for."""
    path = scratch / "many.beton"
    write_sparse(path, SAMPLES, side=1)
    runs = {name: partial(_open_once, target, path) for name, target in TARGETS.items()}
    results, reasons = alternate(runs, OURS, settings.pick(2, 5))
    report.subject = f"a file of {SAMPLES:,} samples of one pixel"
    report.device, report.peers = "cpu", ("ffcv", "numba")
    for figure, unit, scale, goal in FIGURES:
        costs = {name: [run[figure] / scale for run in found] for name, found in results.items()}
        for name, peer, aim in ((PEER, "", ""), (OURS, PEER, goal), (again(OURS), OURS, "")):
            row = Row(
                what=name,
                unit=unit,
                value=summarize(costs[name]) if name in costs else None,
                ratio=beside(costs, name, peer, OURS),
                goal=aim,
                note=reasons.get(name, "A/A: the noise floor" if peer == OURS else ""),
            )
            report.rows.append(row)
    assert OURS in results, reasons[OURS]


def _open_once(target: str, path: Path) -> dict[str, float]:
    value = call_in_child(target, {"path": str(path)}).value
    assert value["count"] == SAMPLES
    return value
