"""Runs as users start them: one that is killed and resumed, and one with kNN after each epoch."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.accuracy_subject import train_until
from benchmarks.gpu.job import TOY, Job
from benchmarks.harness import summarize
from benchmarks.report import ROOT, Report, Row
from fastmoco.data.builtin_file import builtin_file
from fastmoco.data.dataset import open_dataset
from fastmoco.runs.checkpoint import Checkpoint, load_checkpoint
from fastmoco.runs.metrics_file import read_metrics

POLL_SECONDS = 0.05
TOY_OPTIONS = [
    "global_batch_size=8",
    "pipeline.view_size=16",
    "model.width=4",
    "moco.batch_norm_splits=2",
    "moco.queue_size=64",
    "train.compile=never",
    "train.epochs=1",
]


def kill_and_resume(job: Job, report: Report) -> None:
    """A run that is killed with signal 9 and resumed ends as one that is left alone.

    The killed one is first: it compiles, and the others, which run at the same time, find that.

    Raises:
        AssertionError: If weights or metrics differ, or a run fails.
    """
    report.subject = "cifar10_colab with train.reproducible=true, killed and resumed"
    options = [
        *_options(job),
        "train.reproducible=true",
        f"train.max_steps={job.pick(30, 90)}",
        f"checkpoint.every_steps={job.pick(1, 5)}",
        "train.log_every_steps=1",
        "monitor.every_epochs=0",
    ]
    whole, killed = job.scratch / "whole", job.scratch / "killed"
    at = _kill(_started(options, killed), killed, job.pick(3, 30))
    start = time.monotonic()
    alone, resumed = _started(options, whole), _started(options, killed)
    _finish(alone)
    _finish(resumed)
    differing = _differing(load_checkpoint(whole), load_checkpoint(killed))
    report.rows += [
        _row("tensors that differ after kill -9 and resume", "count", len(differing), f"at {at}"),
        _row("both runs, from their starts to their ends", "s", time.monotonic() - start),
    ]
    losses = [
        [row["loss"] for row in read_metrics(run / "metrics.jsonl")] for run in (whole, killed)
    ]
    assert not differing, f"killed at {at} and resumed, these differ: {differing[:5]}"
    assert losses[0] == losses[1], f"killed at {at} and resumed, losses differ"


def _options(job: Job) -> list[str]:
    """A run of `cifar10_colab` on the user's data, or on the built-in images."""
    train = job.data or str(builtin_file(job.scratch / "train.beton", "train"))
    more = TOY_OPTIONS if job.scale == TOY else []
    return ["experiment=cifar10_colab", "precision=auto", f"data.train={train}", *more]


def _started(options: list[str], run: Path) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fastmoco.cli", "train", *options, f"run_dir={run}"]
    log = run.with_suffix(".txt").open("a")  # the process keeps it open
    return subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, text=True)


def _finish(process: subprocess.Popen[str]) -> None:
    status = process.wait()
    run = Path(str(process.args[-1]).removeprefix("run_dir="))  # type: ignore[index]
    end = run.with_suffix(".txt").read_text().strip().splitlines()[-5:]
    assert status == 0, f"training ended with status {status}: {' / '.join(end)}"


def _kill(process: subprocess.Popen[str], run: Path, step: int) -> str:
    """Kill a run that has done so many steps; say where it was."""
    metrics, done = run / "metrics.jsonl", 0
    while process.poll() is None and done < step:
        time.sleep(POLL_SECONDS)
        done = len(metrics.read_bytes().splitlines()) if metrics.exists() else 0
    if process.poll() is None:
        os.kill(process.pid, signal.SIGKILL)
    if process.wait() != -signal.SIGKILL:
        _finish(process)
        raise AssertionError("the run ended before it could be killed")
    return f"step {done}"


def _differing(ours: Checkpoint, theirs: Checkpoint) -> list[str]:
    assert ours.step == theirs.step
    return [
        name for name, value in ours.tensors.items() if not torch.equal(value, theirs.tensors[name])
    ]


def few_epochs(job: Job, report: Report) -> None:
    """`cifar10_colab` for some epochs with kNN on the way; time and accuracy, from the start."""
    epochs = job.pick(1, 8)
    overrides = [
        *_options(job),
        f"train.epochs={epochs}",
        f"monitor.every_epochs={job.pick(1, 2)}",
        *(["train.max_steps=2", "monitor.features=backbone"] if job.scale == TOY else []),
    ]
    train = next(o for o in overrides if o.startswith("data.train=")).partition("=")[2]
    test = None if job.data else str(builtin_file(job.scratch / "test.beton", "test"))
    with open_dataset(train) as dataset:
        what = f"{len(dataset):,} images of {Path(train).name}, {epochs} epochs"
    report.subject = f"cifar10_colab, precision=auto, {what}"
    run_dir = job.scratch / "few_epochs"
    found: dict[str, Any] = train_until(train, test, str(run_dir), None, time.time(), overrides)
    for seconds, images, top1 in found["curve"]:
        note = f"after {images:,} images and {seconds:.0f} s"
        report.rows.append(_row("kNN top-1", "%", top1, note))
    rows = read_metrics(run_dir / "metrics.jsonl")
    rates = [row["images_per_second"] for row in rows if row["images_per_second"]]
    if rates:
        report.rows.append(_row("images/s in training", "images/s", rates[-1]))
    last = rows[-1]["loss"]
    report.rows.append(_row("loss at the end", "nats", last))
    assert math.isfinite(last), f"the loss is {last}"


def _row(what: str, unit: str, value: float, note: str = "") -> Row:
    return Row(what=what, unit=unit, value=summarize([float(value)]), note=note)
