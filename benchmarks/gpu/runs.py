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
from PIL import Image

from benchmarks.accuracy_subject import train_until
from benchmarks.gpu.job import TOY, Job
from benchmarks.harness import summarize
from benchmarks.peers import notebook_peer
from benchmarks.report import ROOT, Report, Row
from fastmoco.configuration import load_config
from fastmoco.data.builtin_file import builtin_file
from fastmoco.data.dataset import open_dataset
from fastmoco.evaluate.features import FeatureSet
from fastmoco.evaluate.knn import knn_accuracy
from fastmoco.moco.build import build_query_encoder
from fastmoco.runs.checkpoint import Checkpoint, load_checkpoint
from fastmoco.runs.metrics_file import read_metrics
from fastmoco.train.settings import TrainConfig

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


def notebook(job: Job, report: Report) -> None:
    """The published notebook's loop for as many epochs on the same images; its time and kNN."""
    epochs = job.pick(1, 8)
    train = next(o for o in _options(job) if o.startswith("data.train=")).partition("=")[2]
    cfg = load_config(TrainConfig, [*_options(job), f"train.epochs={epochs}"])
    report.subject = f"moco_cifar10_demo.ipynb, float32, {Path(train).name}, {epochs} epochs"
    images, labels = _decoded(train, job)
    recipe = notebook_peer.Recipe(
        batch=cfg.global_batch_size,
        epochs=epochs,
        queue_size=cfg.moco.queue_size,
        groups=cfg.moco.batch_norm_splits,
    )
    encoder = build_query_encoder(cfg.model, cfg.moco, view_size=32)
    notebook_peer.use_split_batch_norm(encoder, recipe.groups)
    encoder.to(job.device)
    workers, start = job.pick(0, min(16, os.cpu_count() or 1)), time.monotonic()
    losses = list(notebook_peer.train(encoder, images, recipe, seed=0, num_workers=workers))
    seconds = time.monotonic() - start
    memory = test = FeatureSet(notebook_peer.features(encoder, images), labels)
    if not job.data:
        others, answers = _decoded(str(builtin_file(job.scratch / "test.beton", "test")), job)
        test = FeatureSet(notebook_peer.features(encoder, others), answers)
    top1, _ = knn_accuracy(memory, test, k=200, temperature=0.1, leave_one_out=test is memory)
    seen = epochs * (len(images) // recipe.batch) * recipe.batch
    note = f"after {seen:,} images and {seconds:.0f} s, measured as the run's monitor does"
    report.rows += [
        _row("kNN top-1, the notebook", "%", top1, note),
        _row("images/s, the notebook", "images/s", seen / seconds, f"{workers} workers"),
        _row("loss at the end, the notebook", "nats", losses[-1]),
    ]
    assert math.isfinite(losses[-1]), f"the loss is {losses[-1]}"


def _decoded(path: str, job: Job) -> tuple[list[Image.Image], torch.Tensor]:
    """Images of a dataset file, a few at toy size, and their labels on the device."""
    with open_dataset(path) as dataset:
        count = job.pick(32, len(dataset))
        images = [Image.fromarray(dataset.decode(sample)) for sample in range(count)]
        return images, torch.from_numpy(dataset.labels[:count]).to(job.device)


def _row(what: str, unit: str, value: float, note: str = "") -> Row:
    return Row(what=what, unit=unit, value=summarize([float(value)]), note=note)
