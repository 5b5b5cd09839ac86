"""How cost grows with size: batch, queue, image, threads and the set, with the fitted exponent.

An exponent of 1 is a cost in proportion to the size, 0 one that does not depend on it; of threads
-1 is perfect. It is the slope of a straight line through the logarithms, in each round. A plot
shows the curves. On a CPU the encoder is a narrow ResNet-18, eager; on a GPU a whole one, compiled.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from benchmarks.child import call_in_child
from benchmarks.harness import (
    Plan,
    Target,
    Work,
    cuda_timer,
    host_timer,
    measure_blocks,
    measure_streams,
    summarize,
)
from benchmarks.pictures import Source
from benchmarks.report import Report, Row
from benchmarks.settings import Settings
from benchmarks.sparse_file import write_sparse
from benchmarks.step_subject import LEARNING_RATE, noise_batch, training_step
from fastmoco.data.beton import BetonFile
from fastmoco.device import resolve_device
from fastmoco.moco.loss import info_nce
from fastmoco.moco.loss_choice import resolve_loss
from fastmoco.moco.queue import Queue
from fastmoco.moco.settings import Loss, MocoConfig, ModelConfig, Precision, Stem
from fastmoco.pipelines.contract import EpochPlan
from fastmoco.pipelines.policies import POLICIES
from fastmoco.train.step import TrainStep

BATCHES = (64, 128, 256, 512, 1024, 2048)
QUEUES = (4_096, 16_384, 65_536, 262_144)
IMAGE_SIDES = (32, 64, 96, 128, 160, 224)
SET_SIZES = (10_000, 80_000, 320_000, 1_281_167)
SMALL = {BATCHES: (64, 512, 2048), IMAGE_SIDES: (32, 64, 128, 224)}
RAW_SIDE = 256  # pixels of the images in a sparse file
Sizes = Sequence[int]


def bench_growth(settings: Settings, report: Report, photographs: Source, scratch: Path) -> None:
    """A curve for each of them."""
    device = resolve_device("auto")
    report.subject = f"cost against size; threads on {photographs.name}"
    small = settings.scale == "small" and device.type == "cpu"
    batches, sides = (SMALL[sizes] if small else sizes for sizes in (BATCHES, IMAGE_SIDES))
    timer = cuda_timer if device.type == "cuda" else host_timer()
    rounds = settings.pick(3, 5)
    curves: list[tuple[str, Sizes, Callable[[int], Work], Plan]] = [
        ("batch, images", batches, _batches(device), Plan(1, 2 if small else rounds)),
        ("K, keys of 128", QUEUES, partial(_lookup, device), Plan(1, rounds)),
        ("side of the views, pixels", sides, _sides(device), Plan(1, rounds)),
        ("images of the set", SET_SIZES, partial(_opening, scratch), Plan(1, rounds)),
    ]
    for name, sizes, make, plan in curves:
        works = {f"{size:,}": make(size) for size in sizes}
        seconds = measure_blocks(works, next(iter(works)), plan, timer)
        report.rows += curve_rows(name, {size: seconds[f"{size:,}"] for size in sizes})
        torch.compiler.reset()
    report.rows += _threads(settings, photographs, scratch)


def curve_rows(name: str, seconds: Mapping[int, Sequence[float]], noun: str = "") -> list[Row]:
    """A row for each size, in milliseconds, and the exponent.

    Args:
        name: What grows, and in which unit.
        seconds: Of each size, in each round.
        noun: What it takes so long for, if not for one step.
    """
    rows = [
        Row(
            what=f"{name}: {size:,}",
            unit="ms",
            value=summarize([1e3 * value for value in values]),
            curve=name,
            size=size,
            note=noun,
        )
        for size, values in seconds.items()
    ]
    if len(seconds) > 1:
        value = summarize(exponents(seconds))
        rows.append(Row(what=f"{name}: exponent", unit="exponent", value=value))
    return rows


def exponents(seconds: Mapping[int, Sequence[float]]) -> list[float]:
    """Of each round, b in ``cost = a size^b``, by least squares of the logarithms."""
    sizes = np.log(list(seconds))
    costs = np.log(np.array(list(seconds.values())))
    return [float(np.polyfit(sizes, column, 1)[0]) for column in costs.T]


def _step(device: torch.device) -> TrainStep:
    on_cuda = device.type == "cuda"
    narrow = ModelConfig(encoder="resnet18", stem=Stem.small_stride2, width=16)
    return training_step(
        ModelConfig(encoder="resnet18", stem=Stem.small) if on_cuda else narrow,
        MocoConfig(queue_size=4096),
        policy=POLICIES["cifar"],
        device=device,
        precision=Precision.bf16 if on_cuda else Precision.float32,
        compiled=on_cuda,
    )


def _batches(device: torch.device) -> Callable[[int], Work]:
    step = _step(device)
    return lambda size: partial(step, noise_batch(size, 32, device), LEARNING_RATE)


def _sides(device: torch.device) -> Callable[[int], Work]:
    step, count = _step(device), 64 if device.type == "cuda" else 16
    return lambda side: partial(step, noise_batch(count, side, device), LEARNING_RATE)


def _lookup(device: torch.device, queue_size: int) -> Work:
    """Loss with gradient, and enqueue, of 256 queries."""
    generator = torch.Generator().manual_seed(0)
    query, key = (
        F.normalize(torch.randn(256, 128, generator=generator)).to(device) for _ in range(2)
    )
    query.requires_grad_()
    queue = Queue(queue_size, 128, generator=generator).to(device)
    if device.type == "cuda":
        queue.half()
    form = resolve_loss(Loss.auto, device, 128)

    def work() -> None:
        loss, _ = info_nce(query, key, queue.keys, 0.2, form)
        torch.autograd.grad(loss, query)
        queue.enqueue(key)

    return work


def _opening(folder: Path, count: int) -> Work:
    """From a path to the order of the first epoch: all that grows with the set before a batch."""
    path = folder / f"sparse-{count}.beton"
    write_sparse(path, count, RAW_SIDE)

    def work() -> None:
        with BetonFile.open(path) as beton:
            EpochPlan(seed=0, epoch=0, num_samples=len(beton), global_batch_size=256).order()

    return work


def _threads(settings: Settings, photographs: Source, folder: Path) -> list[Row]:
    """The loader with one thread to as many as there are cores: milliseconds an image."""
    path = folder / "threads.beton"
    places = {"source": str(photographs.folder), "destination": str(path)}
    call_in_child("benchmarks.loader_subjects:make_file", {**places, "options": {}})
    cores = len(os.sched_getaffinity(0))
    counts = [1 << power for power in range(cores.bit_length()) if 1 << power < cores] + [cores]
    arguments = {"path": str(path), "loader": "beton", "view_size": 224}
    targets: dict[str, Target] = {
        str(threads): ("benchmarks.loader_subjects:crops", {**arguments, "threads": threads})
        for threads in counts
    }
    rounds, seconds = settings.pick(2, 5), settings.pick(1, 5)
    found, reasons = measure_streams(targets, "1", rounds=rounds, seconds=seconds)
    assert not reasons, reasons
    costs = {
        threads: [run["seconds"] / run["images"] for run in found[str(threads)]]
        for threads in counts
    }
    return curve_rows("threads of the loader", costs, "an image")
