"""What the ranks of a run send each other, over links of a known rate (``make network``).

Two and four ranks in network namespaces on this machine (`namespaces.py`) average the gradients of
a ResNet-50 and exchange key crops by gloo. Computation is replaced by sleeps of the length that
each layer's backward pass took here just before, so that the processor is the network's. Each time
is put beside the ideal one: the bytes that must be sent, at the rate of the link, and the backward
pass, in which buckets may hide. Figures are written to ``benchmarks/results/network.json``. Without
the rights to make namespaces it says so and ends. Left out: NCCL, latency, shared links.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.models import resnet50

from benchmarks.harness import summarize
from benchmarks.namespaces import NoNamespaces, address, machines
from benchmarks.network_model import averaged_bytes, exchanged_bytes, gathered_bytes
from benchmarks.report import Report, Row, absent

RESULTS = Path(__file__).parent / "results"
ROOT = Path(__file__).resolve().parents[1]
LIMIT_SECONDS = 300
ALONE = "backward pass alone"


def measured_layers(images: int, size: int = 224) -> list[tuple[int, float]]:
    """Number of weights of each tensor of a ResNet-50, and seconds until its gradient is there.

    In the order of the backward pass; seconds count from the gradient before. Of three passes on
    one thread, after one that is not counted, the one of median length is taken.
    """
    torch.manual_seed(0)
    model, passes = resnet50().to(memory_format=torch.channels_last), []
    x = torch.randn(images, 3, size, size).to(memory_format=torch.channels_last)
    moments: list[tuple[int, float]] = []

    def note(weight: Tensor) -> None:
        moments.append((weight.numel(), time.perf_counter()))

    for weight in model.parameters():
        weight.register_post_accumulate_grad_hook(note)
    for _ in range(4):
        loss = model(x).square().mean()
        moments.clear()
        start = time.perf_counter()
        loss.backward()
        before = [start, *(moment for _, moment in moments)]
        passes.append([(n, m - b) for (n, m), b in zip(moments, before, strict=False)])
        model.zero_grad()
    counted = passes[1:]
    return sorted(counted, key=lambda one: sum(seconds for _, seconds in one))[len(counted) // 2]


def run(ranks: int, megabits: int, task: dict[str, Any]) -> dict[str, list[tuple[float, int]]]:
    """Measure all ways on so many ranks; seconds and bytes sent of each round.

    Raises:
        NoNamespaces: If there can be no such network.
        RuntimeError: If a rank ends badly.
    """
    with machines(ranks, megabits) as names, tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "found.json"
        processes = [
            subprocess.Popen(
                [
                    *("ip", "netns", "exec", name, sys.executable, "-m"),
                    *("benchmarks.network_subject", str(rank), str(ranks), address(0)),
                    *(json.dumps(task), str(out)),
                ],
                cwd=ROOT,
                env={**os.environ, "GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "1"},
            )
            for rank, name in enumerate(names)
        ]
        try:
            codes = [process.wait(LIMIT_SECONDS) for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if any(codes):
            raise RuntimeError(f"ranks ended with codes {codes}")
        found: dict[str, list[tuple[float, int]]] = json.loads(out.read_text(encoding="utf-8"))
        return found


def ideal(name: str, ranks: int, task: dict[str, Any], seconds: float) -> tuple[float, float]:
    """Bytes that a rank must send, and the fraction of `seconds`, the backward pass, beside them.

    Returns:
        Bytes, and seconds that no transfer can be hidden in.
    """
    weights = sum(count for count, _ in task["layers"])
    crop = task["size"] ** 2 * 3
    if name == "crops gathered":
        return gathered_bytes(ranks, task["images"], crop), 0.0
    if name == "crops sent once":
        return exchanged_bytes(ranks, task["images"], crop), 0.0
    return averaged_bytes(ranks, weights, 2 if "bf16" in name else 4), seconds


def rows(
    found: dict[str, list[tuple[float, int]]], ranks: int, megabits: int, task: dict[str, Any]
) -> Iterator[Row]:
    """A row for each way: seconds, and in its note bytes and the ideal."""
    rate = megabits * 1e6 / 8
    alone = statistics.median(seconds for seconds, _ in found[ALONE])
    for name, measured in found.items():
        summary = summarize([seconds for seconds, _ in measured])
        what, note = f"{ranks} ranks: {name}", ""
        if name != ALONE:
            must, computing = ideal(name, ranks, task, alone)
            sent = statistics.median(count for _, count in measured)
            hides = name.startswith("ddp")
            best = max(must / rate, computing) if hides else must / rate + computing
            note = (
                f"sent {sent / 1e6:.1f} MB of {must / 1e6:.1f} that must be; "
                f"ideal {best:.3f} s, {summary.median / best:.2f} times that"
            )
        yield Row(what=what, unit="s", value=summary, note=note)


def main() -> None:
    """Read the command line, measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--megabits", type=int, default=500, help="rate of each link, Mbit/s")
    parser.add_argument("--backward-images", type=int, default=16, help="length of the sleeps")
    parser.add_argument("--images", type=int, default=32, help="key crops of a rank")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    torch.set_num_threads(1)
    report = Report("network", "full", device="cpu")
    report.subject = f"links of {given.megabits} Mbit/s each way; python -m benchmarks.network"
    try:
        with machines(2, given.megabits):
            pass
    except NoNamespaces as error:
        print(f"skipped: {error}")  # noqa: T201
        return
    task = {
        "layers": measured_layers(given.backward_images),
        "images": given.images,
        "size": 224,
        "rounds": given.rounds,
    }
    for ranks in given.ranks:
        try:
            found = run(ranks, given.megabits, task)
        except (RuntimeError, subprocess.TimeoutExpired) as error:
            report.rows.append(absent(f"{ranks} ranks", "s", str(error)))
            continue
        report.rows += rows(found, ranks, given.megabits, task)
    for row in report.rows:
        value = f"{row.value.median:.3f} s" if row.value else ""
        print(f"{row.what:<34}{value:>10}  {row.note}")  # noqa: T201
    report.write(given.out)


if __name__ == "__main__":
    main()
