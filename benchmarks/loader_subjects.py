"""fastmoco's loaders and what bounds them, as child processes call them; imports are not timed.

Those that give a stream give the images of each batch, without end.
"""

import os
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.rates import measure_rate, on_all_cpus
from benchmarks.step_subject import LEARNING_RATE, feed_step
from fastmoco.data.beton import BetonFile
from fastmoco.data.convert import ConvertConfig, Encoding, convert
from fastmoco.device import resolve_device
from fastmoco.draws.host import draw_keys, random_resized_crop_boxes
from fastmoco.moco.settings import ModelConfig, Stem
from fastmoco.pipelines.augment import augment_views
from fastmoco.pipelines.beton_loader import crop_and_resize
from fastmoco.pipelines.build import build_loader
from fastmoco.pipelines.contract import Batch, EpochPlan, LoaderSpec
from fastmoco.pipelines.policies import POLICIES
from fastmoco.train.data_wait import DataWait

BATCH = 64
POLICY = POLICIES["moco_v2"]
CPU = torch.device("cpu")


def make_file(source: str, destination: str, options: dict[str, Any]) -> dict[str, float]:
    """Converts the benchmark's images; gives ``num_samples``."""
    if "encoding" in options:
        options["encoding"] = Encoding(options["encoding"])
    summary = convert(source, Path(destination), ConvertConfig(**options))
    return {"num_samples": summary.num_samples}


def crops(path: str, loader: str, view_size: int, threads: int = 0) -> Iterator[int]:
    """Two crops of each image by one of our loaders: a stream."""
    with BetonFile.open(path) as beton:
        for batch in _batches(beton, loader, view_size, threads):
            yield len(batch.crops)


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


def views(path: str, loader: str, view_size: int, policy: str) -> Iterator[int]:
    """Two whole views of each image: crops by a loader, the rest on the CPU; a stream."""
    mean, std = torch.tensor([0.48, 0.46, 0.41]), torch.tensor([0.23, 0.22, 0.23])
    augment = torch.compile(augment_views, dynamic=False)
    with BetonFile.open(path) as beton, torch.no_grad():
        for batch in _batches(beton, loader, view_size):
            query, _ = augment(
                batch.crops, batch.draw_key, POLICIES[policy], mean, std, torch.float32
            )
            yield len(query)


def decode_alone(path: str) -> Iterator[int]:
    """libjpeg-turbo on all CPUs, checksums proved, nothing done with the pixels: a stream."""
    with BetonFile.open(path) as beton:
        yield from on_all_cpus(len(beton), beton.decode)


def crop_alone(path: str, view_size: int) -> Iterator[int]:
    """Both crops cut from images that are decoded already, on all CPUs: a stream."""
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
        out = np.empty((2, view_size, view_size, 3), np.uint8)
        crop_and_resize(images[sample], boxes[sample], out)

    yield from on_all_cpus(len(images), crop)


def _batches(beton: BetonFile, loader: str, view_size: int, threads: int = 0) -> Generator[Batch]:
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    plan = EpochPlan(seed=0, epoch=0, num_samples=len(beton), global_batch_size=BATCH)
    spec = LoaderSpec(view_size=view_size, policy=POLICY, num_threads=threads)
    opened = build_loader(beton, plan, spec=spec, stop_epoch=100_000, device=CPU, name=loader)
    try:
        yield from opened
    finally:
        opened.close()


def feed(
    path: str, loader: str, model: dict[str, Any], view_size: int, batch_size: int, seconds: float
) -> dict[str, Any]:
    """A MoCo v2 step in bf16 on the device, fed by a loader; what of the time it waits for data.

    Args:
        path: A dataset file.
        loader: Its name.
        model: Of ModelConfig; the stem by its name.
        view_size: Side of the views, pixels.
        batch_size: Images of a step.
        seconds: How long.

    Returns:
        As `measure_rate`, ``wait_share`` in 0..1 and ``decode_device``.
    """
    device, count = resolve_device("auto"), batch_size
    queue_size = 65_536 if device.type == "cuda" else 4096
    built = ModelConfig(**model | {"stem": Stem(model["stem"])})
    step = feed_step(built, POLICY, device, queue_size)
    with BetonFile.open(path) as beton:
        plan = EpochPlan(seed=0, epoch=0, num_samples=len(beton), global_batch_size=count)
        spec = LoaderSpec(view_size=view_size, policy=POLICY)
        opened = build_loader(
            beton, plan, spec=spec, stop_epoch=100_000, device=device, name=loader
        )
        wait, waits = DataWait(device), [0.0]

        def stepped() -> Iterator[int]:
            while True:
                batch = wait.next(opened)
                step(batch, LEARNING_RATE)
                waits.append(wait.seconds())  # a sum
                yield len(batch.crops)

        with closing(opened):
            found = measure_rate(stepped(), seconds)
            if device.type == "cuda":
                torch.cuda.synchronize()
    steps = round(found["images"] / count)
    share = (wait.seconds() - waits[-1 - steps]) / found["seconds"]
    return {**found, "wait_share": share, "decode_device": opened.decode_device}
