"""One trial: build a detector, train it to the last step and measure it."""

import logging
import os
import time
from collections.abc import Callable
from contextlib import closing, nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fastmoco.detection.annotations import SceneSet
from fastmoco.detection.fitting import Fitting, build_sgd, fingerprint_of
from fastmoco.detection.metrics import Measurement
from fastmoco.detection.models import build_detector
from fastmoco.detection.samples import read_image, resized, short_side_size, training_batches
from fastmoco.detection.segmenter import Segmenter
from fastmoco.detection.settings import DetectConfig, DetectionTask
from fastmoco.detection.starting import open_backbone
from fastmoco.device import describe_device
from fastmoco.errors import Interrupted
from fastmoco.out_of_memory import explained
from fastmoco.ranks import Ranks
from fastmoco.runs.checkpoint import save_checkpoint
from fastmoco.runs.distributed import largest, loader_threads
from fastmoco.runs.metrics_file import MetricsFile
from fastmoco.runs.run_folder import RunFolder
from fastmoco.runs.stop_signals import StopRequest
from fastmoco.weights.settings import start_name


def build_fitting(
    run: Path, cfg: DetectConfig, train: SceneSet, device: torch.device, ranks: Ranks
) -> Fitting:
    """Build model and optimizer for the first step; new weights come from the seed.

    Raises:
        UsageError: If the settings or the encoder do not fit.
        CheckpointError: If the encoder's checkpoint is missing or damaged.
    """
    resnet, encoder = open_backbone(run, cfg)
    # Other weights come with their normalization, which is part of the encoder's state.
    start = fingerprint_of(encoder if cfg.weights else resnet)
    torch.manual_seed(cfg.seed)
    build: Callable[..., nn.Module] = Segmenter
    if cfg.task is not DetectionTask.segment:
        build = partial(build_detector, num_keypoints=len(train.keypoint_names))
    normalization = {"mean": encoder.mean.tolist(), "std": encoder.std.tolist()}
    model = build(resnet, cfg, num_classes=train.num_classes, **normalization, ranks=ranks)
    model.to(device)
    return Fitting(cfg, model, build_sgd(model, cfg), device, train.fingerprint, start, ranks)


def fit(
    fitting: Fitting, train: SceneSet, folder: RunFolder, logger: logging.Logger, stop: StopRequest
) -> None:
    """Train to the last step, with logs and checkpoints.

    Raises:
        Interrupted: After a stop request, with the state saved.
    """
    cfg, ranks, start = fitting.cfg, fitting.ranks, fitting.steps_done
    threads = loader_threads(cfg.pipeline.num_threads) or len(os.sched_getaffinity(0))
    last = cfg.train.steps + cfg.precise_norm_steps
    batches = training_batches(train, cfg, start=start, stop=last, num_threads=threads, ranks=ranks)
    clock = time.perf_counter()
    metrics = MetricsFile(folder.metrics, resume_step=start) if ranks.is_first else None
    with closing(batches), closing(metrics) if metrics else nullcontext():
        while not fitting.is_finished():
            batch = next(batches)
            with explained(partial(_explain_step, cfg, ranks)):
                rate = fitting.take(batch)
            signal_number = largest(stop.signal_number, ranks)
            if fitting.is_finished() or fitting.steps_done % cfg.train.log_every_steps == 0:
                now = time.perf_counter()
                row = {"step": fitting.steps_done, **fitting.flush(), "learning_rate": rate}
                logger.info("step %d/%d  loss %.4f", row["step"], cfg.train.steps, row["loss"])
                if metrics:
                    metrics.write({**row, "seconds": now - clock})
                clock = now
            if fitting.is_finished() and cfg.precise_norm_steps:
                fitting.average_statistics(batches)
            due = fitting.steps_done % cfg.checkpoint.every_steps == 0
            if metrics and (due or fitting.is_finished() or signal_number):
                metrics.sync()
                save_checkpoint(folder.checkpoints, fitting.checkpoint(), keep=2)
            if signal_number:
                raise Interrupted(
                    signal_number,
                    f"stopped after step {fitting.steps_done}, saved; the same command resumes",
                )


def _explain_step(cfg: DetectConfig, ranks: Ranks) -> str:
    images = cfg.global_batch_size // ranks.world_size
    if images == 1:
        return "a step holds 1 image on a device; use a smaller arch or smaller images"
    rate = cfg.optimizer.learning_rate / 2
    return (
        f"a step holds {images} images on a device; set global_batch_size="
        f"{images // 2 * ranks.world_size} optimizer.learning_rate={rate:g} "
        f"train.steps={2 * cfg.train.steps}"
    )


def measure(fitting: Fitting, test: SceneSet, stop: StopRequest) -> dict[str, Any]:
    """Measure a trained model on a test set, image by image; boxes are those of original images.

    Raises:
        Interrupted: After a stop request; the trained model is saved already.
    """
    cfg, model = fitting.cfg, fitting.model.eval()
    measurement = Measurement(test, cfg)
    for scene in test.scenes:
        if stop.signal_number:
            text = "stopped while testing; the same command repeats the test"
            raise Interrupted(stop.signal_number, text)
        original = size = (scene.height, scene.width)
        if cfg.task is not DetectionTask.segment:
            size = short_side_size(*original, short=cfg.test_size, longest=cfg.max_size)
        image = resized(read_image(scene), size).to(fitting.device).float() / 255
        prediction = model.predict(image, original)  # type: ignore[operator]
        measurement.add(scene, {name: value.cpu() for name, value in prediction.items()})
    return measurement.result()


def log_header(
    logger: logging.Logger, fitting: Fitting, folder: RunFolder, train: SceneSet, test: SceneSet
) -> None:
    """Log folder, device, data, model and steps."""
    cfg = fitting.cfg
    parameters = sum(p.numel() for p in fitting.model.parameters() if p.requires_grad)
    logger.info("trial     %s, seed %d", folder.path, cfg.seed)
    logger.info("device    %s", describe_device(fitting.device))
    for which, data in (("train", train), ("test", test)):
        logger.info("%-9s %s, %d images", which, data.name, len(data.scenes))
    logger.info(
        "model     %s by %s, backbone %s, %.2fM trainable parameters, batch norm %s",
        cfg.task.value,
        "fcn" if cfg.task is DetectionTask.segment else cfg.arch.value,
        start_name(cfg.weights),
        parameters / 1e6,
        cfg.batch_norm.value,
    )
    steps = fitting.steps_done, cfg.train.steps
    logger.info("training  from step %d to step %d in %s", *steps, cfg.precision.value)
