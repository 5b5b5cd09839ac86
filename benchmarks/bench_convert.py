"""Making dataset files, beside FFCV's DatasetWriter on the same images.

FFCV computes no statistics of the set, so the equal work is ``statistics=none``; the rows without
it show what they cost: a full decode of all images, or of a sixteenth with ``check=header``.
Sources are in the page cache; files go to $TMPDIR, which must be on the disk that is meant. The
share of the disk is that of the bytes that each writes itself. Memory is that of all processes of a
contender, imports included. Left out: sources on slow disks, which bound all alike.
"""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.child import call_in_child
from benchmarks.harness import again, alternate, summarize
from benchmarks.limits import DISK_CHUNK_BYTES, disk_write
from benchmarks.pictures import Source
from benchmarks.report import Report, Row, beside
from benchmarks.settings import Settings

SMALL_ROUNDS, FULL_ROUNDS = 3, 5
HEADER_GOAL = ">= 6x FFCV or >= 80% of the disk"
DECODE_GOAL = ">= 3x FFCV"
RESIZE_GOAL = ">= 1.5x FFCV"
DISK_WRITE, DISK_READ = "disk write, fsync", "disk read, not cached"


@dataclass(frozen=True, slots=True)
class Measurement:
    """One run: how long, how much was written, and the most memory that it held."""

    seconds: float
    num_bytes: int
    peak_bytes: int = 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Contender:
    """A way to make a file.

    Attributes:
        name: In the table.
        target: The function that a child process calls.
        arguments: Its arguments but for source and destination.
        peer: The contender that its ratio is to; none for peers themselves.
        goal: In words.
    """

    name: str
    target: str
    arguments: Mapping[str, Any]
    peer: str = ""
    goal: str = ""


def _ffcv(name: str, write_mode: str, max_resolution: int | None) -> Contender:
    return Contender(
        name=f"FFCV {name}",
        target="benchmarks.peers.ffcv_peer:write_folder",
        arguments={"write_mode": write_mode, "max_resolution": max_resolution},
    )


def _ours(name: str, peer: Contender, goal: str, **options: Any) -> Contender:
    return Contender(
        name=name,
        target="benchmarks.subjects:convert_folder",
        arguments={"options": options},
        peer=peer.name,
        goal=goal,
    )


def bench_convert_photographs(settings: Settings, report: Report, photographs: Source) -> None:
    """JPEGs of 110 KB: copied after a check, or made smaller."""
    whole, small = _ffcv("JPEG", "jpg", 500), _ffcv("JPEG, 400 px", "jpg", 400)
    contenders = [
        whole,
        _ours("header, statistics=none", whole, HEADER_GOAL, check="header", statistics="none"),
        _ours("header", whole, HEADER_GOAL, check="header"),
        _ours("decode, statistics=none", whole, DECODE_GOAL, check="decode", statistics="none"),
        _ours("decode (default)", whole, DECODE_GOAL, check="decode"),
        small,
        _ours("400 px, statistics=none", small, RESIZE_GOAL, max_size=400, statistics="none"),
        _ours("400 px", small, RESIZE_GOAL, max_size=400),
    ]
    _compare(settings, report, photographs, contenders)


def bench_convert_cifar(settings: Settings, report: Report, thumbnails: Source) -> None:
    """JPEGs of 1 or 2 KB: copied after a check, or stored as pixels."""
    jpeg, raw = _ffcv("JPEG", "jpg", None), _ffcv("raw", "raw", None)
    contenders = [
        jpeg,
        _ours("header, statistics=none", jpeg, HEADER_GOAL, check="header", statistics="none"),
        _ours("header", jpeg, HEADER_GOAL, check="header"),
        _ours("decode (default)", jpeg, DECODE_GOAL, check="decode"),
    ]
    if settings.scale == "full":
        contenders += [
            _ours("decode, statistics=none", jpeg, DECODE_GOAL, check="decode", statistics="none"),
            raw,
            _ours("raw, statistics=none", raw, "", encoding="raw", statistics="none"),
            _ours("raw", raw, "", encoding="raw"),
        ]
    _compare(settings, report, thumbnails, contenders)


def _compare(
    settings: Settings, report: Report, source: Source, contenders: Sequence[Contender]
) -> None:
    """Runs all contenders and the disk itself in turns, and fills the report."""
    output = source.folder.parent / "out.beton"
    runs: dict[str, Callable[[], Measurement]] = {
        one.name: partial(_convert_once, one, source, output) for one in contenders
    }
    disk_bytes = max(source.num_bytes, DISK_CHUNK_BYTES)  # less would time the disk's latency
    runs[DISK_WRITE] = partial(_disk_write, output, disk_bytes)
    runs[DISK_READ] = partial(_disk_read, output, disk_bytes)
    quick = next(one for one in contenders if one.peer)  # its noise is the greatest
    results, reasons = alternate(runs, quick.name, settings.pick(SMALL_ROUNDS, FULL_ROUNDS))
    report.subject, report.device, report.peers = source.name, "cpu", ("ffcv", "pillow")
    twice = replace(quick, name=again(quick.name), peer=quick.name, goal="")
    for one in (*contenders, twice):
        if one.name in results:
            report.rows += _rows(source, one, quick.name, results)
        else:
            note = reasons[one.name]
            report.rows.append(Row(what=one.name, unit="images/s", goal=one.goal, note=note))
    report.rows += [_disk_row(name, results[name]) for name in (DISK_WRITE, DISK_READ)]
    failed = [one.name for one in contenders if one.peer and one.name in reasons]
    assert not failed, f"{failed} did not end well: {reasons[failed[0]]}"


def _rows(
    source: Source, one: Contender, repeated: str, results: Mapping[str, list[Measurement]]
) -> list[Row]:
    """Images and source bytes per second and the peak of memory of a contender."""
    runs = results[one.name]
    seconds = {name: [run.seconds for run in found] for name, found in results.items()}
    peaks = {name: [float(run.peak_bytes) for run in found] for name, found in results.items()}
    disk = [run.seconds / run.num_bytes for run in results[DISK_WRITE]]
    shares = [run.num_bytes * each / run.seconds for run, each in zip(runs, disk, strict=True)]
    speed = Row(
        what=one.name,
        unit="images/s",
        value=summarize([source.count / run.seconds for run in runs]),
        ratio=beside(seconds, one.name, one.peer, repeated),
        limit=DISK_WRITE,
        share_of_limit=summarize(shares).median,
        goal=one.goal,
        decode_device="cpu",
        note="A/A: the noise floor" if one.peer == repeated else "",
    )
    read = summarize([source.num_bytes / run.seconds / 1e6 for run in runs])
    memory = Row(
        what=one.name,
        unit="MB of memory",
        value=summarize([run.peak_bytes / 1e6 for run in runs]),
        ratio=beside(peaks, one.name, one.peer, repeated),
        decode_device="cpu",
    )
    return [speed, Row(what=one.name, unit="MB/s", value=read, decode_device="cpu"), memory]


def _disk_row(name: str, runs: Sequence[Measurement]) -> Row:
    rates = [run.num_bytes / run.seconds / 1e6 for run in runs]
    return Row(what=name, unit="MB/s", value=summarize(rates))


def _convert_once(contender: Contender, source: Source, output: Path) -> Measurement:
    """Makes the file in a child process, and removes it."""
    places = {"source": str(source.folder), "destination": str(output)}
    try:
        done = call_in_child(contender.target, {**places, **contender.arguments})
    finally:
        for path in output.parent.glob(f"{output.stem}.*"):
            path.unlink()
    return Measurement(done.value["seconds"], int(done.value["num_bytes"]), done.peak_bytes)


def _disk_write(path: Path, num_bytes: int) -> Measurement:
    return Measurement(disk_write(path, num_bytes), num_bytes)


def _disk_read(path: Path, num_bytes: int) -> Measurement:
    """Reads a file that is not in the page cache from start to end."""
    path.write_bytes(np.random.default_rng(0).bytes(num_bytes))
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        while os.read(descriptor, DISK_CHUNK_BYTES):
            pass
        return Measurement(time.perf_counter() - start, num_bytes)
    finally:
        os.close(descriptor)
        path.unlink()
