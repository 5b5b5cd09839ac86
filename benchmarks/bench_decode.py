"""Decoding JPEGs to RGB, as Python offers it, on all CPUs: what bounds every loader.

The JPEGs lie in memory, and nothing is done with the pixels. Bare libjpeg-turbo is the limit, and
what fastmoco calls. FFCV asks for its fast inverse DCT, which differs by some levels. Each
contender is a child process that is frozen while others run.
"""

from benchmarks.harness import Target, again, measure_streams, summarize
from benchmarks.pictures import Source
from benchmarks.report import Report, Row, beside
from benchmarks.settings import Settings

TURBO, PILLOW, TORCHVISION = "libjpeg-turbo (fastmoco)", "Pillow", "torchvision.io"
FFCV, DALI = "FFCV", "DALI, on the CPU"
DECODERS = "benchmarks.peers.decoders"
TARGETS = {
    TURBO: f"{DECODERS}:turbo",
    PILLOW: f"{DECODERS}:pillow",
    TORCHVISION: f"{DECODERS}:torchvision",
    FFCV: "benchmarks.peers.ffcv_peer:decode",
    DALI: "benchmarks.peers.dali_peer:decode",
}


def bench_decode(settings: Settings, report: Report, photographs: Source) -> None:
    """Images per second of each decoder."""
    report.subject = f"the first 256 of {photographs.name}, all in memory"
    report.device = "cpu"
    report.peers = ("simplejpeg", "pillow", "torchvision", "ffcv", "nvidia-dali-cuda130")
    source = {"source": str(photographs.folder)}
    targets: dict[str, Target] = {name: (target, source) for name, target in TARGETS.items()}
    rounds, seconds = settings.pick(3, 5), 5 if settings.scale == "full" else 0.5
    found, reasons = measure_streams(targets, TURBO, rounds=rounds, seconds=seconds)
    costs = {name: [run["seconds"] / run["images"] for run in runs] for name, runs in found.items()}
    for name in (*TARGETS, again(TURBO)):
        if name not in costs:
            report.rows.append(Row(what=name, unit="images/s", note=reasons[name]))
            continue
        ratio = beside(costs, name, TURBO, TURBO) if name != TURBO else None
        report.rows.append(
            Row(
                what=name,
                unit="images/s",
                value=summarize([1 / cost for cost in costs[name]]),
                ratio=ratio,
                limit="libjpeg-turbo alone",
                share_of_limit=ratio.summary.median if ratio else 1.0,
                decode_device="cpu",
                note="A/A: the noise floor" if name == again(TURBO) else "",
            )
        )
    assert TURBO in costs, reasons
