"""A set on a server: at what rate it is fetched, checked and read.

The server is a process on the same cores, whose connection is as fast as the memory: on a slower
one the connection decides. Each contender is a child process with an empty cache, which reads one
epoch. Rates count the bytes of the files, of which much is empty here: a page has 2 MiB at least.
The peer is curl, which fetches the same files, four at a time, and neither checks nor reads them.
Left out: the time until the first batch, which is that of 64 shards of all.
"""

from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.child import call_in_child
from benchmarks.harness import again, alternate, summarize
from benchmarks.pictures import Source
from benchmarks.remote_subject import served
from benchmarks.report import Report, Row, beside
from benchmarks.settings import Settings
from fastmoco.data.convert import ConvertConfig, convert
from fastmoco.draws.host import NUM_STREAMS

FEW, MANY = NUM_STREAMS - 1, 2 * NUM_STREAMS
WHOLE, STREAMED = f"{FEW} shards, fetched before", f"{MANY} shards, one after the other"
CURL = f"curl, {MANY} shards"
SUBJECT = "benchmarks.remote_subject"


def bench_remote(settings: Settings, report: Report, photographs: Source, scratch: Path) -> None:
    """Bytes a second, from the first request to the last image."""
    folder = scratch / "served"
    folder.mkdir()
    patterns, megabytes = {}, {}
    for shards in (FEW, MANY):
        options = ConvertConfig(max_size=400, quality=90, page_bytes=1 << 21, shards=shards)
        convert(str(photographs.folder), folder / f"{shards}.beton", options)
        patterns[shards] = f"{shards}-*-of-{shards:05d}.beton"
        files = folder.glob(f"{shards}-*.beton")
        megabytes[shards] = sum(one.stat().st_size for one in files) / 1e6
    with served(folder) as address:
        few, many = (f"{address}{patterns[shards]}" for shards in (FEW, MANY))
        calls: dict[str, tuple[str, dict[str, Any]]] = {
            STREAMED: ("epoch", {"path": many}),
            WHOLE: ("epoch", {"path": few}),
            CURL: ("download", {"address": many, "count": MANY}),
        }
        runs = {
            name: partial(call_in_child, f"{SUBJECT}:{function}", arguments)
            for name, (function, arguments) in calls.items()
        }
        found, reasons = alternate(runs, STREAMED, settings.pick(3, 5))
    report.subject = (
        f"{photographs.name}, at most 400 pixels in the file; {megabytes[FEW]:,.0f} MB in {FEW} "
        f"shards, {megabytes[MANY]:,.0f} MB in {MANY}; crops of 224"
    )
    report.device, report.peers = "cpu", ("fsspec", "aiohttp")
    costs = {
        name: [one.value["seconds"] / megabytes[FEW if name == WHOLE else MANY] for one in every]
        for name, every in found.items()
    }
    for name, peer in {STREAMED: CURL, WHOLE: CURL, CURL: "", again(STREAMED): STREAMED}.items():
        row = Row(
            what=name,
            unit="MB/s of the files",
            value=summarize([1 / cost for cost in costs[name]]) if name in costs else None,
            ratio=beside(costs, name, peer, STREAMED),
            note=reasons.get(name, "A/A: the noise floor" if peer == STREAMED else ""),
        )
        report.rows.append(row)
    assert STREAMED in found, reasons[STREAMED]
