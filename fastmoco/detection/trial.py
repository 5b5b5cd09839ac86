"""One trial: build a detector, train it to the last step, measure it."""

import logging
import os
import time
from contextlib import AbstractContextManager, closing, nullcontext
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
from fastmoco.ranks import Ranks
from fastmoco.runs.checkpoint import save_checkpoint
from fastmoco.runs.distributed import largest, loader_threads
from fastmoco.runs.metrics_file import MetricsFile
from fastmoco.runs.run_folder import RunFolder
from fastmoco.runs.stop_signals import StopRequest


def build_fitting(
    run: Path, cfg: DetectConfig, train: SceneSet, device: torch.device, ranks: Ranks
) -> Fitting:
    """Model and optimizer at their start, new weights from the seed.

    Raises:
        UsageError: If the settings or the encoder do not fit.
        CheckpointError: If there is no sound checkpoint of the encoder.
    """
    resnet, encoder = open_backbone(run, cfg)
    start = fingerprint_of(resnet)
    torch.manual_seed(cfg.seed)
    normalization = {"mean": encoder.mean.tolist(), "std": encoder.std.tolist()}
    model: nn.Module
    if cfg.task is DetectionTask.segment:
        model = Segmenter(resnet, cfg, num_classes=train.num_classes, **normalization, ranks=ranks)
    else:
        model = build_detector(
            resnet,
            cfg,
            num_classes=train.num_classes,
            num_keypoints=len(train.keypoint_names),
            **normalization,
            ranks=ranks,
        )
    model.to(device)
    return Fitting(cfg, model, build_sgd(model, cfg), device, train.fingerprint, start, ranks)


def fit(
    fitting: Fitting, train: SceneSet, place: RunFolder, logger: logging.Logger, stop: StopRequest
) -> None:
    """Train to the last step; log and save on the way.

    Raises:
        Interrupted: After a stop was asked for, with the state saved.
    """
    cfg, ranks = fitting.cfg, fitting.ranks
    threads = loader_threads(cfg.num_threads) or len(os.sched_getaffinity(0))
    last = cfg.steps + cfg.precise_norm_steps
    batches = training_batches(
        train, cfg, start=fitting.steps_done, stop=last, num_threads=threads, ranks=ranks
    )
    clock = time.perf_counter()
    with closing(batches), _metrics_file(place, fitting) as metrics:
        while not fitting.is_finished():
            rate = fitting.take(next(batches))
            signal_number = largest(stop.signal_number, ranks)
            if fitting.is_finished() or fitting.steps_done % cfg.log_every_steps == 0:
                now = time.perf_counter()
                row = {"step": fitting.steps_done, **fitting.flush(), "learning_rate": rate}
                logger.info("step %d/%d  loss %.4f", row["step"], cfg.steps, row["loss"])
                if metrics:
                    metrics.write({**row, "seconds": now - clock})
                clock = now
            if fitting.is_finished() and cfg.precise_norm_steps:
                fitting.average_statistics(batches)
            due = fitting.steps_done % cfg.checkpoint_every_steps == 0
            if metrics and (due or fitting.is_finished() or signal_number):
                metrics.sync()
                save_checkpoint(place.checkpoints, fitting.checkpoint(), keep=2)
            if signal_number:
                raise Interrupted(
                    signal_number,
                    f"stopped after step {fitting.steps_done}, saved; the same command goes on",
                )


def _metrics_file(place: RunFolder, fitting: Fitting) -> AbstractContextManager[MetricsFile | None]:
    """Of the first rank, cut to the step that it goes on from; None elsewhere."""
    if not fitting.ranks.is_first:
        return nullcontext()
    return closing(MetricsFile(place.metrics, resume_step=fitting.steps_done))


def measure(
    model: nn.Module, cfg: DetectConfig, test: SceneSet, device: torch.device, stop: StopRequest
) -> dict[str, Any]:
    """Figures of a trained model on a test set, image by image; boxes on the original images.

    Raises:
        Interrupted: After a stop was asked for; the trained model is saved already.
    """
    measurement = Measurement(test, cfg)
    model.eval()
    for scene in test.scenes:
        if stop.signal_number:
            raise Interrupted(
                stop.signal_number, "stopped while testing; the same command tests anew"
            )
        original = (scene.height, scene.width)
        size = original
        if cfg.task is not DetectionTask.segment:
            size = short_side_size(*original, short=cfg.test_size, longest=cfg.max_size)
        image = resized(read_image(scene), size).to(device).float() / 255
        prediction = model.predict(image, original)  # type: ignore[operator]
        measurement.add(scene, {name: value.cpu() for name, value in prediction.items()})
    return measurement.result()


def log_header(
    logger: logging.Logger, fitting: Fitting, place: RunFolder, train: SceneSet, test: SceneSet
) -> None:
    """Say what is trained, on what, from what."""
    cfg = fitting.cfg
    parameters = sum(p.numel() for p in fitting.model.parameters() if p.requires_grad)
    logger.info("trial     %s, seed %d", place.path, cfg.seed)
    logger.info("device    %s", describe_device(fitting.device))
    for which, data in (("train", train), ("test", test)):
        logger.info("%-9s %s, %d images", which, data.name, len(data.scenes))
    logger.info(
        "model     %s by %s, backbone %s, %.2fM trainable parameters, batch norm %s",
        cfg.task.value,
        "fcn" if cfg.task is DetectionTask.segment else cfg.arch.value,
        cfg.init.value,
        parameters / 1e6,
        cfg.batch_norm.value,
    )
    logger.info("training  from step %d to step %d", fitting.steps_done, cfg.steps)
