"""A run of half an hour with saves, monitor and restarts: memory, descriptors, threads stay flat.

``FASTMOCO_SOAK_MINUTES`` shortens it; the result says how long it was.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import fastmoco
from tests.faults.ledger import Ledger
from tests.faults.training import run_options, write_dataset
from tests.limits import HANG_SECONDS

MINUTES = float(os.environ.get("FASTMOCO_SOAK_MINUTES", "30"))
STARTS = 3
WARM_UP = 0.25
"""Share of a start's samples that is left out: caches fill."""
MOST_GROWTH = 0.05
"""Of the resident memory, by the line through a start's samples, from its first to its last."""
MORE = [
    "train.epochs=1000000",
    "train.log_every_steps=10",
    "checkpoint.every_steps=25",
    "checkpoint.keep=2",
    "monitor.every_epochs=10",
    "monitor.k=5",
    "monitor.allow_overlap=true",
]


@pytest.mark.full
def test_soak(ledger: Ledger, tmp_path: Path) -> None:
    campaign = ledger.campaign(
        "soak",
        promise="Memory, descriptors and threads of a long run stay flat.",
        how=f"{STARTS} starts of a run, {MINUTES:g} minutes together, a save every 25 steps and a "
        "kNN measurement every 60; sampled each second; after each SIGTERM the same command",
    )
    data, run = write_dataset(tmp_path), tmp_path / "run"
    for part in campaign.parts(1):
        seconds = 60 * MINUTES / STARTS
        for start in range(1 if part.quick else STARTS):
            samples, code = soak(data, run, 20 if part.quick else seconds)
            memory, descriptors, threads = samples[int(WARM_UP * len(samples)) :].T
            growth = grown(memory)
            part.facts[f"start {start + 1}"] = {
                "samples": len(samples),
                "resident_bytes": int(np.median(memory)),
                "growth_of_memory": round(growth, 4),
                "descriptors": [int(descriptors.min()), int(descriptors.max())],
                "threads": [int(threads.min()), int(threads.max())],
            }
            found = {
                "memory": part.quick or growth <= MOST_GROWTH,
                "descriptors": grown(descriptors) <= MOST_GROWTH,
                "threads": grown(threads) <= MOST_GROWTH,
                "end": code == 128 + signal.SIGTERM,
            }
            for name, is_flat in found.items():
                example = str(part.facts[f"start {start + 1}"])
                part.add("flat" if is_flat else "silent", 0.0, place=name, example=example)
    campaign.check()


def grown(values: np.ndarray) -> float:
    """Growth from the first to the last value, by a fitted line, over the median."""
    slope = float(np.polyfit(np.arange(len(values)), values, 1)[0])
    return slope * len(values) / float(np.median(values))


def soak(data: Path, run: Path, seconds: float) -> tuple[np.ndarray, int]:
    """Train for some time after the first row; samples and the exit code after SIGTERM."""
    options = run_options(data, run, *MORE, f"data.test={data}")
    root = str(Path(fastmoco.__file__).parents[1])
    process = subprocess.Popen(
        [sys.executable, "-m", "fastmoco.cli", "train", *options],
        env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        before = rows(run)
        deadline = time.monotonic() + HANG_SECONDS
        while rows(run) <= before:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.5)
        samples, end = [], time.monotonic() + seconds
        while time.monotonic() < end:
            samples.append(sample(process.pid))
            time.sleep(1.0)
        process.terminate()
        return np.array(samples, float), process.wait(HANG_SECONDS)
    finally:
        process.kill()
        process.wait()


def rows(run: Path) -> int:
    """Rows of metrics so far."""
    path = run / "metrics.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def sample(pid: int) -> tuple[int, int, int]:
    """Resident bytes, open descriptors and threads of a process."""
    folder = Path(f"/proc/{pid}")
    resident = int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return resident, len(list((folder / "fd").iterdir())), len(list((folder / "task").iterdir()))
