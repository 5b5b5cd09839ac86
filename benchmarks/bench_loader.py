"""Two crops of each image, on the CPU: our loaders beside FFCV's and the official pipeline.

Each contender is a child process that reads in batches of 64 for some seconds, its warm-up left
out. FFCV and ours read the same file; the official pipeline reads the original JPEGs, as its users
do. FFCV decodes once per view: its images per second are half of its views per second. The limits
are libjpeg-turbo and the resize, each alone on all CPUs: one after the other they would take the
sum of their times.
"""

import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from benchmarks.child import call_in_child
from benchmarks.harness import Summary, again, alternate, summarize
from benchmarks.pictures import write_photographs, write_thumbnails
from benchmarks.report import Report, Row, beside
from benchmarks.settings import Settings

SUBJECTS, OFFICIAL = "benchmarks.loader_subjects", "benchmarks.peers.official_peer"
OURS, FFCV, PIL = "beton", "FFCV, one decode per view", "official, decode and crop"
THEIR_RUNTIMES = ("ffcv", "dali")  # behind our contract, on the CPU
OUR_VIEWS, PIL_VIEWS = "beton, MoCo v2 views", "official, MoCo v2 views"
DECODE, CROP, BOTH = "decode alone", "two crops alone", "decode alone + crops alone"
CROP_GOAL = ">= 2x FFCV, >= 6x official, within 15% of the limit"
VIEWS_GOAL = ">= 3x official, aiming at 5x"
FIRST_GOAL = "< 1 s"
BORDER_GOAL = "as any other batch"

Contenders = Mapping[str, tuple[str, dict[str, Any]]]
Runs = Mapping[str, Sequence[Mapping[str, float]]]


@dataclass(frozen=True, slots=True)
class Files:
    """What is read: the original images, and our file of them."""

    images: Path
    beton: Path


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="bench_loader_") as name:
        yield Path(name)


def bench_loader_photographs(settings: Settings, report: Report, folder: Path) -> None:
    """Crops of 224 from photographs: 500 pixels as they come, 400 at quality 90 in the file."""
    count = settings.pick(1_000, 4_000)
    files = Files(folder / "photographs", folder / "photographs.beton")
    write_photographs(files.images, count)
    _make_file(files, {"max_size": 400, "quality": 90})
    report.subject = f"{count:,} photographs of 500 x 375, 400 x 300 in the file; crops of 224"
    ours: dict[str, Any] = {"path": str(files.beton), "view_size": 224}
    theirs: dict[str, Any] = {"source": str(files.images), "view_size": 224}
    runs: Contenders = {
        OURS: (f"{SUBJECTS}:crops", {**ours, "loader": "beton"}),
        **{name: (f"{SUBJECTS}:crops", {**ours, "loader": name}) for name in THEIR_RUNTIMES},
        FFCV: ("benchmarks.peers.ffcv_peer:read_crops", ours),
        PIL: (f"{OFFICIAL}:crops", theirs),
        OUR_VIEWS: (f"{SUBJECTS}:views", {**ours, "loader": "beton"}),
        PIL_VIEWS: (f"{OFFICIAL}:views", theirs),
        DECODE: (f"{SUBJECTS}:decode_alone", {"path": str(files.beton)}),
        CROP: (f"{SUBJECTS}:crop_alone", ours),
    }
    found, reasons = _measure(settings, report, runs)
    report.rows = [
        *(_row(found, reasons, OURS, peer, CROP_GOAL) for peer in (FFCV, PIL)),
        _row(found, reasons, OUR_VIEWS, PIL_VIEWS, VIEWS_GOAL),
        *(_row(found, reasons, name, FFCV) for name in THEIR_RUNTIMES),
        *(_row(found, reasons, name) for name in (FFCV, PIL, PIL_VIEWS, DECODE, CROP)),
        _row(found, reasons, again(OURS), OURS),
        _first_batch_row(found, reasons),
    ]
    assert {OURS, OUR_VIEWS} <= found.keys(), reasons


def bench_loader_thumbnails(settings: Settings, report: Report, folder: Path) -> None:
    """Crops of 32 from images of 32 pixels: from JPEGs, from raw pixels, and resident."""
    count = settings.pick(5_000, 50_000)
    images = folder / "thumbnails"
    write_thumbnails(images, count)
    jpeg, raw = Files(images, folder / "jpeg.beton"), Files(images, folder / "raw.beton")
    _make_file(jpeg, {})
    _make_file(raw, {"encoding": "raw"})
    report.subject = f"{count:,} images of 32 x 32, crops of 32"
    small: dict[str, Any] = {"view_size": 32}
    runs: Contenders = {
        OURS: (f"{SUBJECTS}:crops", {**small, "path": str(jpeg.beton), "loader": "beton"}),
        "beton, raw": (f"{SUBJECTS}:crops", {**small, "path": str(raw.beton), "loader": "beton"}),
        "resident": (f"{SUBJECTS}:crops", {**small, "path": str(raw.beton), "loader": "resident"}),
        FFCV: ("benchmarks.peers.ffcv_peer:read_crops", {**small, "path": str(jpeg.beton)}),
        PIL: (f"{OFFICIAL}:crops", {**small, "source": str(images)}),
    }
    found, reasons = _measure(settings, report, runs)
    names = (OURS, "beton, raw", "resident")
    report.rows = [
        *(_row(found, reasons, name, peer) for name in names for peer in (FFCV, PIL)),
        *(_row(found, reasons, name) for name in (FFCV, PIL)),
        _row(found, reasons, again(OURS), OURS),
        *(_border_row(name, file, settings) for name, file in (("beton", jpeg), ("resident", raw))),
    ]
    assert set(names) <= found.keys(), reasons


def _make_file(files: Files, options: dict[str, Any]) -> None:
    places = {"source": str(files.images), "destination": str(files.beton)}
    call_in_child(f"{SUBJECTS}:make_file", {**places, "options": options})


def _measure(
    settings: Settings, report: Report, contenders: Contenders
) -> tuple[Runs, Mapping[str, str]]:
    """Runs all contenders in turns."""
    report.device, report.peers = "cpu", ("ffcv", "torchvision", "pillow", "kornia")
    seconds = float(settings.pick(3, 10))
    runs: dict[str, Callable[[], Mapping[str, float]]] = {
        name: partial(_run, target, {**arguments, "seconds": seconds})
        for name, (target, arguments) in contenders.items()
    }
    return alternate(runs, OURS, settings.pick(3, 5))


def _run(target: str, arguments: dict[str, Any]) -> Mapping[str, float]:
    done = call_in_child(target, arguments)
    return {**done.value, "peak_bytes": float(done.peak_bytes)}


def _row(found: Runs, reasons: Mapping[str, str], name: str, peer: str = "", goal: str = "") -> Row:
    """Images per second of a contender, beside a peer."""
    if name not in found:
        note = reasons.get(name, "absent")
        return Row(what=name, unit="images/s", goal=goal, decode_device="cpu", note=note)
    costs = {one: [run["seconds"] / run["images"] for run in runs] for one, runs in found.items()}
    share, limit = None, ""
    if {DECODE, CROP} <= found.keys() and name == OURS:
        pairs = zip(costs[DECODE], costs[CROP], costs[OURS], strict=True)
        share, limit = _median([(decode + crop) / ours for decode, crop, ours in pairs]), BOTH
    peak = summarize([run["peak_bytes"] for run in found[name]]).median
    return Row(
        what=name,
        unit="images/s",
        value=summarize([1 / cost for cost in costs[name]]),
        ratio=beside(costs, name, peer, OURS),
        limit=limit,
        share_of_limit=share,
        goal=goal,
        decode_device="none" if name == CROP else "cpu",
        note="A/A: the noise floor" if name == again(OURS) else f"peak {peak / 1e6:,.0f} MB",
    )


def _first_batch_row(found: Runs, reasons: Mapping[str, str]) -> Row:
    """How long the first batch takes, from the making of the loader on; the cache is warm."""
    value: Summary | None = None
    if OURS in found:
        value = summarize([run["first_batch_seconds"] for run in found[OURS]])
    note = reasons.get(OURS, "")
    return Row(
        what="beton, first batch",
        unit="s",
        value=value,
        goal=FIRST_GOAL,
        decode_device="cpu",
        note=note,
    )


def _border_row(loader: str, file: Files, settings: Settings) -> Row:
    """The wait for the first batch of an epoch, in waits for a batch of the epoch before it."""
    arguments = {"path": str(file.beton), "loader": loader, "epochs": settings.pick(8, 20)}
    waits = call_in_child(f"{SUBJECTS}:epoch_borders", arguments).value
    return Row(
        what=f"{loader}, first batch of an epoch over the median batch",
        unit="x",
        value=summarize(waits["ratios"]),
        goal=BORDER_GOAL,
        decode_device="cpu",
        note=f"a batch takes {1e3 * waits['median_seconds']:.2f} ms",
    )


def _median(values: Sequence[float]) -> float:
    return summarize(values).median
