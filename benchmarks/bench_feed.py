"""A training step fed by loaders in turns: images per second, and the share of time that it waits.

On a GPU a ResNet-50, MoCo v2, batch 256, bf16, compiled, on photographs as they come, fed by
`beton` and by `dali`. On a CPU, where it is the step that one waits for, a narrow ResNet-18 in
bf16 on images of 32 pixels, fed by `beton` and by the plain `torchvision` loader. Each contender is
a child process. The wait is the share of the time in which the loop stands before an empty loader.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.child import call_in_child
from benchmarks.harness import again, alternate, summarize
from benchmarks.pictures import Source
from benchmarks.report import Report, Row, absent, beside
from benchmarks.settings import Settings

SUBJECTS = "benchmarks.loader_subjects"
OURS = "beton"
WAIT_GOAL = "< 2%"


@pytest.mark.gpu
def bench_feed_photographs(
    settings: Settings, report: Report, photographs: Source, scratch: Path
) -> None:
    """ResNet-50 at 224."""
    model = {"encoder": "resnet50", "stem": "imagenet"}
    setting = {"model": model, "view_size": 224, "batch_size": 256}
    measure(settings, report, photographs, scratch, setting, (OURS, "dali"))


def bench_feed_thumbnails(
    settings: Settings, report: Report, thumbnails: Source, scratch: Path
) -> None:
    """ResNet-18 at 32: on a CPU a narrow one."""
    on_cuda = torch.cuda.is_available()
    model: dict[str, Any] = {"encoder": "resnet18", "stem": "small"}
    if not on_cuda:
        model |= {"stem": "small_stride2", "width": 16}
    setting = {"model": model, "view_size": 32, "batch_size": 512 if on_cuda else 64}
    measure(settings, report, thumbnails, scratch, setting, (OURS, "torchvision"))


def measure(
    settings: Settings,
    report: Report,
    source: Source,
    folder: Path,
    setting: Mapping[str, Any],
    loaders: tuple[str, ...],
) -> None:
    """Fills the report, on whatever device there is.

    Args:
        settings: The scale.
        report: Of this benchmark.
        source: The images.
        folder: For the dataset file.
        setting: ``model``, ``view_size`` and ``batch_size`` of `loader_subjects.feed`.
        loaders: Ours first.
    """
    file = {"source": str(source.folder), "destination": str(folder / "feed.beton")}
    call_in_child(f"{SUBJECTS}:make_file", {**file, "options": {}})
    report.subject = (
        f"{source.name}, {setting['model']['encoder']}, views of {setting['view_size']}, "
        f"batch {setting['batch_size']}"
    )
    report.peers = ("nvidia-dali-cuda130", "torchvision")
    common = {**setting, "path": file["destination"], "seconds": float(settings.pick(1, 30))}
    runs: dict[str, Callable[[], Mapping[str, Any]]] = {
        name: partial(_run, {**common, "loader": name}) for name in loaders
    }
    found, reasons = alternate(runs, OURS, settings.pick(2, 5))
    assert OURS in found, reasons
    costs = {name: [run["seconds"] / run["images"] for run in each] for name, each in found.items()}
    report.rows = [absent(name, "images/s", reason) for name, reason in reasons.items()]
    for name, each in found.items():
        report.rows += _rows(name, each, costs)


def _rows(name: str, runs: list[Mapping[str, Any]], costs: Mapping[str, list[float]]) -> list[Row]:
    """Rate and wait of a contender."""
    where = str(runs[0]["decode_device"])
    peak = summarize([run["peak_bytes"] for run in runs]).median
    again_ours = name == again(OURS)
    rate = Row(
        what=name,
        unit="images/s",
        value=summarize([1 / cost for cost in costs[name]]),
        ratio=beside(costs, name, OURS if name != OURS else "", OURS),
        decode_device=where,
        note="A/A: the noise floor" if again_ours else f"peak {peak / 1e6:,.0f} MB",
    )
    wait = Row(
        what=f"{name}, waiting for data",
        unit="% of the time",
        value=summarize([100 * run["wait_share"] for run in runs]),
        goal=WAIT_GOAL,
        decode_device=where,
    )
    return [rate, wait]


def _run(arguments: dict[str, Any]) -> Mapping[str, Any]:
    done = call_in_child(f"{SUBJECTS}:feed", arguments, timeout_seconds=600)
    return {**done.value, "peak_bytes": float(done.peak_bytes)}
