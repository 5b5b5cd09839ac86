"""A training step on a GPU, fed by `beton` and by `dali` in turns: the rate, and what it waits.

ResNet-50, MoCo v2, batch 256, bf16, compiled; photographs of 500 pixels as they come. Each
contender is a child process. The wait is the share of the time in which the loop stands before an
empty loader. It needs a CUDA device: on a CPU the step, not the data, is what one waits for.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.child import call_in_child
from benchmarks.harness import again, alternate, summarize
from benchmarks.pictures import write_photographs
from benchmarks.report import Report, Row, beside
from benchmarks.settings import Settings

SUBJECTS = "benchmarks.loader_subjects"
OURS, LOADERS = "beton", ("beton", "dali")
WAIT_GOAL = "< 2%"


def bench_feed(settings: Settings, report: Report, tmp_path: Path) -> None:
    """Images per second and the share of time that the step waits."""
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device; torch sees none")
    report.rows = measure(settings, report, tmp_path, encoder="resnet50", view_size=224)


def measure(
    settings: Settings, report: Report, folder: Path, *, encoder: str, view_size: int
) -> list[Row]:
    """The rows, on whatever device there is."""
    count = settings.pick(5_000, 20_000)
    write_photographs(folder / "images", count)
    file = {"source": str(folder / "images"), "destination": str(folder / "set.beton")}
    call_in_child(f"{SUBJECTS}:make_file", {**file, "options": {}})
    report.subject = f"{count:,} photographs of 500 x 375, {encoder}, views of {view_size}"
    report.peers = ("nvidia-dali-cuda130",)
    common = {"path": file["destination"], "encoder": encoder, "view_size": view_size}
    runs: dict[str, Callable[[], Mapping[str, Any]]] = {
        name: partial(_run, {**common, "loader": name, "seconds": float(settings.pick(10, 30))})
        for name in LOADERS
    }
    found, reasons = alternate(runs, OURS, settings.pick(3, 5))
    assert OURS in found, reasons
    costs = {name: [run["seconds"] / run["images"] for run in each] for name, each in found.items()}
    rows = [Row(what=name, unit="images/s", note=reason) for name, reason in reasons.items()]
    for name, each in found.items():
        peer = OURS if name != OURS else ""
        where = str(each[0]["decode_device"])
        rate = summarize([1 / cost for cost in costs[name]])
        ratio = beside(costs, name, peer, OURS)
        note = "A/A: the noise floor" if name == again(OURS) else ""
        rows += [
            Row(
                what=name, unit="images/s", value=rate, ratio=ratio, decode_device=where, note=note
            ),
            Row(
                what=f"{name}, waiting for data",
                unit="% of the time",
                value=summarize([100 * run["wait_share"] for run in each]),
                goal=WAIT_GOAL,
                decode_device=where,
            ),
        ]
    return rows


def _run(arguments: dict[str, Any]) -> Mapping[str, Any]:
    return call_in_child(f"{SUBJECTS}:feed", arguments, timeout_seconds=600).value
