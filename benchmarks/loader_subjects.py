"""fastmoco's loaders and what bounds them, as child processes call them; imports are not timed."""

import os
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.rates import measure_rate
from benchmarks.step_subject import LEARNING_RATE, feed_step
from fastmoco.data.beton import BetonFile
from fastmoco.data.convert import ConvertConfig, Encoding, convert
from fastmoco.device import resolve_device
from fastmoco.pipelines.augment import augment_views
from fastmoco.pipelines.beton_loader import crop_and_resize
from fastmoco.pipelines.build import LoaderSpec, build_loader
from fastmoco.pipelines.contract import Batch, EpochPlan
from fastmoco.pipelines.draws import draw_keys, random_resized_crop_boxes
from fastmoco.pipelines.policies import POLICIES

BATCH = 64
POLICY = POLICIES["moco_v2"]
CPU = torch.device("cpu")


def make_file(source: str, destination: str, options: dict[str, Any]) -> dict[str, float]:
    """Converts the benchmark's images; gives ``num_samples``."""
    if "encoding" in options:
        options["encoding"] = Encoding(options["encoding"])
    summary = convert(source, Path(destination), ConvertConfig(**options))
    return {"num_samples": summary.num_samples}


def crops(path: str, loader: str, view_size: int, seconds: float) -> dict[str, float]:
    """Two crops of each image by one of our loaders."""
    with BetonFile.open(path) as beton:
        return measure_rate(map(_count, _batches(beton, loader, view_size)), seconds)


def epoch_borders(path: str, loader: str, epochs: int) -> dict[str, Any]:
    """How long the first batch of each epoch takes, beside the median of the epoch before.

    The consumer does nothing, so that nothing hides a pause.
    """
    with BetonFile.open(path) as beton:
        per_epoch = len(beton) // BATCH
        batches = _batches(beton, loader, 32)
        seconds = np.zeros((epochs, per_epoch))
        for epoch in range(epochs):
            for batch in range(per_epoch):
                start = time.perf_counter()
                next(batches)
                seconds[epoch, batch] = time.perf_counter() - start
        batches.close()
    medians = np.median(seconds, axis=1)
    ratios = seconds[1:, 0] / medians[:-1]
    return {"ratios": ratios.tolist(), "median_seconds": float(np.median(medians))}


def views(path: str, loader: str, view_size: int, seconds: float) -> dict[str, float]:
    """Two whole MoCo v2 views of each image: crops by a loader, the rest compiled on the CPU."""
    mean, std = torch.tensor([0.48, 0.46, 0.41]), torch.tensor([0.23, 0.22, 0.23])
    augment = torch.compile(augment_views, dynamic=False)

    def augmented() -> Iterator[int]:
        for batch in _batches(beton, loader, view_size):
            query, _ = augment(batch.crops, batch.draw_key, POLICY, mean, std, torch.float32)
            yield len(query)

    with BetonFile.open(path) as beton, torch.no_grad():
        return measure_rate(augmented(), seconds)


def decode_alone(path: str, seconds: float) -> dict[str, float]:
    """libjpeg-turbo on all CPUs, checksums proved, nothing done with the pixels."""
    with BetonFile.open(path) as beton:
        return measure_rate(_on_all_cpus(beton, beton.decode), seconds)


def crop_alone(path: str, view_size: int, seconds: float) -> dict[str, float]:
    """Both crops cut from images that are decoded already, on all CPUs."""
    with BetonFile.open(path) as beton:
        images = [beton.decode(i) for i in range(min(256, len(beton)))]
        ids = np.arange(len(images))
        boxes = random_resized_crop_boxes(
            draw_keys(0, 0, ids),
            beton.heights[ids].astype(np.int64),
            beton.widths[ids].astype(np.int64),
            scale=POLICY.crop_scale,
            ratio=POLICY.crop_ratio,
            num_views=2,
        )

        def crop(sample: int) -> None:
            place = sample % len(images)
            out = np.empty((2, view_size, view_size, 3), np.uint8)
            crop_and_resize(images[place], boxes[place], out)

        return measure_rate(_on_all_cpus(beton, crop), seconds)


def _batches(beton: BetonFile, loader: str, view_size: int) -> Generator[Batch]:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    plan = EpochPlan(seed=0, epoch=0, num_samples=len(beton), global_batch_size=BATCH)
    spec = LoaderSpec(view_size=view_size, policy=POLICY)
    opened = build_loader(beton, plan, spec=spec, stop_epoch=10_000, device=CPU, name=loader)
    try:
        yield from opened
    finally:
        opened.close()


def _count(batch: Batch) -> int:
    return len(batch.crops)


def _on_all_cpus(beton: BetonFile, work: Callable[[int], object]) -> Iterator[int]:
    """Batches of work, a chunk of eight at a time on each thread, as in the loader."""

    def chunk(start: int) -> None:
        for sample in range(start, start + 8):
            work(sample % len(beton))

    threads = len(os.sched_getaffinity(0))
    with ThreadPoolExecutor(threads) as pool:
        start = 0
        ahead = [pool.submit(chunk, start + 8 * i) for i in range(4 * threads)]
        start = 8 * len(ahead)
        while True:
            ahead.pop(0).result()
            ahead.append(pool.submit(chunk, start))
            start += 8
            yield 8


def feed(path: str, loader: str, encoder: str, view_size: int, seconds: float) -> dict[str, Any]:
    """A MoCo v2 step in bf16 on the device, fed by a loader; what of the time it waits for data.

    Returns:
        As `measure_rate`, ``wait_share`` in 0..1 and ``decode_device``.
    """
    device = resolve_device("auto")
    step = feed_step(encoder, POLICY, device)
    count = 256 if device.type == "cuda" else 16
    with BetonFile.open(path) as beton:
        plan = EpochPlan(seed=0, epoch=0, num_samples=len(beton), global_batch_size=count)
        spec = LoaderSpec(view_size=view_size, policy=POLICY)
        opened = build_loader(beton, plan, spec=spec, stop_epoch=10_000, device=device, name=loader)
        waits: list[float] = []

        def stepped() -> Iterator[int]:
            for batch in opened:
                step(batch, LEARNING_RATE)
                waits.append(batch.data_wait_seconds)
                yield len(batch.crops)

        with closing(opened):
            found = measure_rate(stepped(), seconds)
            if device.type == "cuda":
                torch.cuda.synchronize()
    steps = round(found["images"] / count)
    share = sum(waits[-steps:]) / found["seconds"]
    return {**found, "wait_share": share, "decode_device": opened.decode_device}
