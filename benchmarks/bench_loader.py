"""Two crops of each image, on the CPU: our loaders beside FFCV's and the official pipeline.

And two whole views beside those of the official pipeline, of lightly, and of DALI as solo-learn
lays it out. Each contender is a child process that reads in batches of 64 and is frozen while
others run. FFCV and ours read the same file; the others read the original JPEGs, as their users do.
FFCV decodes once per view: its images per second are half of its views per second. The limits are
libjpeg-turbo and the resize, each alone on all CPUs: one after the other they would take the sum of
their times.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.child import call_in_child
from benchmarks.harness import Summary, Target, again, measure_streams, summarize
from benchmarks.pictures import Source
from benchmarks.report import Report, Row, beside
from benchmarks.settings import Settings

SUBJECTS, OFFICIAL = "benchmarks.loader_subjects", "benchmarks.peers.official_peer"
LIGHTLY, DALI = "benchmarks.peers.lightly_peer", "benchmarks.peers.dali_peer"
OURS, FFCV, PIL = "beton", "FFCV, one decode per view", "official, decode and crop"
THEIR_RUNTIMES = ("ffcv", "dali")  # behind our contract, on the CPU
OUR_VIEWS, PIL_VIEWS = "beton, MoCo v2 views", "official, MoCo v2 views"
DALI_VIEWS = "DALI as solo-learn lays it out, MoCo v2 views"
LIGHTLY_VIEWS = "lightly, MoCo v2 views"
RAW, RESIDENT = "beton, raw", "resident"
OURS_ALONE, FFCV_ALONE = "beton, one thread", "FFCV, one thread"
OUR_CIFAR_VIEWS, LIGHTLY_CIFAR_VIEWS = "resident, CIFAR views", "lightly, CIFAR views"
DECODE, CROP, BOTH = "decode alone", "two crops alone", "decode alone + crops alone"
CROP_GOALS = {FFCV: ">= 2x FFCV, within 15% of the limit", PIL: ">= 6x official"}
SMALL_GOAL = ">= FFCV"
VIEWS_GOAL = ">= 3x official, aiming at 5x"
FIRST_GOAL = "< 1 s"
BORDER_GOAL = "as any other batch"

Runs = Mapping[str, Sequence[Mapping[str, float]]]


@dataclass(frozen=True, slots=True)
class Files:
    """What is read: the original images, and our file of them."""

    images: Path
    beton: Path


def bench_loader_photographs(
    settings: Settings, report: Report, photographs: Source, scratch: Path
) -> None:
    """Crops of 224 from photographs as they come; in the file 400 pixels at quality 90."""
    files = Files(photographs.folder, scratch / "photographs.beton")
    _make_file(files, {"max_size": 400, "quality": 90})
    report.subject = f"{photographs.name}, at most 400 pixels in the file; crops of 224"
    ours: dict[str, Any] = {"path": str(files.beton), "view_size": 224}
    theirs: dict[str, Any] = {"source": str(files.images), "view_size": 224}
    found, reasons = _measure(
        settings,
        report,
        {
            OURS: (f"{SUBJECTS}:crops", {**ours, "loader": "beton"}),
            **{name: (f"{SUBJECTS}:crops", {**ours, "loader": name}) for name in THEIR_RUNTIMES},
            FFCV: ("benchmarks.peers.ffcv_peer:read_crops", ours),
            PIL: (f"{OFFICIAL}:crops", theirs),
            OUR_VIEWS: (f"{SUBJECTS}:views", {**ours, "loader": "beton", "policy": "moco_v2"}),
            PIL_VIEWS: (f"{OFFICIAL}:views", theirs),
            DALI_VIEWS: (f"{DALI}:views", theirs),
            LIGHTLY_VIEWS: (f"{LIGHTLY}:views", theirs),
            DECODE: (f"{SUBJECTS}:decode_alone", {"path": str(files.beton)}),
            CROP: (f"{SUBJECTS}:crop_alone", ours),
        },
    )
    peers = (FFCV, PIL, PIL_VIEWS, DALI_VIEWS, LIGHTLY_VIEWS, DECODE, CROP)
    report.rows = [
        *(_row(found, reasons, OURS, peer, goal) for peer, goal in CROP_GOALS.items()),
        _row(found, reasons, OUR_VIEWS, PIL_VIEWS, VIEWS_GOAL),
        *(_row(found, reasons, OUR_VIEWS, peer) for peer in (DALI_VIEWS, LIGHTLY_VIEWS)),
        *(_row(found, reasons, name, FFCV) for name in THEIR_RUNTIMES),
        *(_row(found, reasons, name) for name in peers),
        _row(found, reasons, again(OURS), OURS),
        _first_batch_row(found),
    ]
    assert {OURS, OUR_VIEWS} <= found.keys(), reasons


def bench_loader_thumbnails(
    settings: Settings, report: Report, thumbnails: Source, scratch: Path
) -> None:
    """Crops of 32 from images of 32 pixels: from JPEGs, from raw pixels, and resident."""
    images = thumbnails.folder
    jpeg, raw = Files(images, scratch / "jpeg.beton"), Files(images, scratch / "raw.beton")
    _make_file(jpeg, {})
    _make_file(raw, {"encoding": "raw"})
    report.subject = f"{thumbnails.name}, crops of 32"
    theirs: dict[str, Any] = {"source": str(images), "view_size": 32}
    of_raw: dict[str, Any] = {"path": str(raw.beton), "view_size": 32}
    of_jpeg: dict[str, Any] = {"path": str(jpeg.beton), "view_size": 32}
    views = {**of_raw, "loader": "resident", "policy": "cifar"}
    found, reasons = _measure(
        settings,
        report,
        {
            OURS: (f"{SUBJECTS}:crops", {**of_jpeg, "loader": "beton"}),
            RAW: (f"{SUBJECTS}:crops", {**of_raw, "loader": "beton"}),
            RESIDENT: (f"{SUBJECTS}:crops", {**of_raw, "loader": "resident"}),
            FFCV: ("benchmarks.peers.ffcv_peer:read_crops", of_jpeg),
            OURS_ALONE: (f"{SUBJECTS}:crops", {**of_jpeg, "loader": "beton", "threads": 1}),
            FFCV_ALONE: ("benchmarks.peers.ffcv_peer:read_crops", {**of_jpeg, "threads": 1}),
            PIL: (f"{OFFICIAL}:crops", theirs),
            OUR_CIFAR_VIEWS: (f"{SUBJECTS}:views", views),
            LIGHTLY_CIFAR_VIEWS: (f"{LIGHTLY}:views", theirs),
        },
    )
    names = (OURS, RAW, RESIDENT)
    report.rows = [
        _row(found, reasons, OURS, FFCV, SMALL_GOAL),
        _row(found, reasons, OURS_ALONE, FFCV_ALONE, SMALL_GOAL),
        *(_row(found, reasons, name, FFCV) for name in (RAW, RESIDENT)),
        *(_row(found, reasons, name, PIL) for name in names),
        _row(found, reasons, OUR_CIFAR_VIEWS, LIGHTLY_CIFAR_VIEWS),
        *(_row(found, reasons, name) for name in (FFCV, FFCV_ALONE, PIL, LIGHTLY_CIFAR_VIEWS)),
        _row(found, reasons, again(OURS), OURS),
        *(_border_row(name, file, settings) for name, file in ((OURS, jpeg), (RESIDENT, raw))),
    ]
    assert set(names) <= found.keys(), reasons


def _make_file(files: Files, options: dict[str, Any]) -> None:
    places = {"source": str(files.images), "destination": str(files.beton)}
    call_in_child(f"{SUBJECTS}:make_file", {**places, "options": options})


def _measure(
    settings: Settings, report: Report, targets: Mapping[str, Target]
) -> tuple[Runs, Mapping[str, str]]:
    """Runs all contenders in turns."""
    report.device = "cpu"
    report.peers = ("ffcv", "torchvision", "pillow", "lightly", "nvidia-dali-cuda130")
    rounds, seconds = settings.pick(3, 5), settings.pick(1, 10)
    return measure_streams(targets, OURS, rounds=rounds, seconds=seconds)


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


def _first_batch_row(found: Runs) -> Row:
    """How long the first batch takes, from the making of the loader on; the cache is warm."""
    value: Summary | None = None
    if OURS in found:
        starts = [found[name][0]["first_batch_seconds"] for name in (OURS, again(OURS))]
        value = summarize(starts)
    return Row(
        what="beton, first batch", unit="s", value=value, goal=FIRST_GOAL, decode_device="cpu"
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
