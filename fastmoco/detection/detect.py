"""`fastmoco detect`: fine-tune a detector on a pretrained backbone, and measure it."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import torch

from fastmoco.detection.annotations import SceneSet
from fastmoco.detection.metrics import check_metrics
from fastmoco.detection.result import DetectResult, protocol_of
from fastmoco.detection.settings import (
    AnnotationFormat,
    DetectConfig,
    DetectionInit,
    DetectionNorm,
    DetectionTask,
)
from fastmoco.detection.starting import open_sets
from fastmoco.detection.trial import build_fitting, fit, log_header, measure
from fastmoco.errors import UsageError
from fastmoco.files import atomic_write_text
from fastmoco.ranks import Ranks, environment_ranks
from fastmoco.runs.checkpoint import newest_checkpoint
from fastmoco.runs.distributed import (
    check_same_step,
    process_group,
    resolve_rank_device,
    wait_for_all,
)
from fastmoco.runs.reporter import run_logger
from fastmoco.runs.run_folder import RunFolder, RunIdentity, claim_run_folder
from fastmoco.runs.stop_signals import StopRequest, stop_signals

# Keys that do not change what is learned: a trial may go on with other values.
FREE_KEYS = frozenset(
    {
        "run_dir",
        "data.train",  # the fingerprint of its annotations decides
        "data.test",
        "data.train_images",
        "data.test_images",
        "trials",
        "num_threads",
        "checkpoint_every_steps",
    }
)


def check_config(cfg: DetectConfig, ranks: Ranks) -> None:
    """Refuse settings that cannot work together, before anything is opened.

    Raises:
        UsageError: One line that names the option to change.
    """
    wanted = {
        DetectionTask.segment: AnnotationFormat.voc,
        DetectionTask.masks: AnnotationFormat.coco,
        DetectionTask.keypoints: AnnotationFormat.coco,
    }
    layout = wanted.get(cfg.task, cfg.layout)
    if cfg.layout is not layout:
        raise UsageError(
            f"task={cfg.task.value} is read from layout={layout.value} alone; set layout="
            f"{layout.value} and data.train"
        )
    if cfg.init is DetectionInit.random and cfg.batch_norm is DetectionNorm.frozen:
        raise UsageError(
            "batch_norm=frozen keeps statistics that a random backbone does not have; set "
            "batch_norm=synchronized or init=pretrained"
        )
    for name in ("steps", "trials", "log_every_steps", "checkpoint_every_steps", "test_size"):
        if getattr(cfg, name) < 1:
            raise UsageError(f"{name}={getattr(cfg, name)} must be 1 or more")
    if not cfg.train_sizes or min(cfg.train_sizes) < 1 or cfg.max_size < 1:
        raise UsageError("train_sizes and max_size must be 1 or more, such as train_sizes=[800]")
    low, high = (*cfg.scale_range, 0.0, 0.0)[:2]
    if not 0 < low <= high or cfg.crop_size < 1:
        raise UsageError("scale_range must be two rising positive numbers, crop_size 1 or more")
    if cfg.global_batch_size < 1 or cfg.global_batch_size % ranks.world_size:
        raise UsageError(
            f"global_batch_size={cfg.global_batch_size} is not a positive multiple of the "
            f"{ranks.world_size} devices; set it to one"
        )


def detect(run: Path, cfg: DetectConfig) -> DetectResult:
    """Fine-tune and measure ``trials`` detectors, or go on where the same command stopped.

    Where torchrun started several processes, each calls this; the first one writes and measures.

    Args:
        run: Run folder or checkpoint of the encoder.
        cfg: Data, task and protocol.

    Returns:
        The figures; also written as ``result.json`` in the folder of the trials, and with each
        trial's own in its folder ``seed-N``.

    Raises:
        UsageError: If settings do not fit each other, the data, or the folder.
        AnnotationError: If an annotation or an image is broken.
        CheckpointError: If there is no sound checkpoint.
        Interrupted: After SIGINT or SIGTERM, with the state saved.
    """
    ranks = environment_ranks()
    check_config(cfg, ranks)
    check_metrics(cfg.task)
    train, test = open_sets(cfg)
    folder = cfg.run_dir or default_folder(run, cfg)
    device = resolve_rank_device(cfg.device, ranks)
    trials = []
    with process_group(ranks, device), stop_signals() as stop:
        for seed in range(cfg.seed, cfg.seed + cfg.trials):
            trial = dataclasses.replace(cfg, seed=seed)
            place = RunFolder(folder / f"seed-{seed}")
            with claim_run_folder(place, RunIdentity(trial, FREE_KEYS), ranks):
                trials.append(_run_trial(run, trial, place, train, test, device, ranks, stop))
    counts = len(train.scenes), len(test.scenes)
    protocol = protocol_of(run, cfg, train=train.name, test=test.name, counts=counts)
    result = DetectResult(trials, protocol)
    if ranks.is_first:
        _write_json(folder / "result.json", result.to_json())
    return result


def default_folder(run: Path, cfg: DetectConfig) -> Path:
    """``RUN/detect/TASK-ARCH-INIT``; of a checkpoint file, in the run that holds it."""
    if not run.is_dir():
        run = run.parent.parent if run.parent.name == "checkpoints" else run.parent
    arch = "fcn" if cfg.task is DetectionTask.segment else cfg.arch.value
    return run / "detect" / f"{cfg.task.value}-{arch}-{cfg.init.value}"


def _run_trial(
    run: Path,
    cfg: DetectConfig,
    place: RunFolder,
    train: SceneSet,
    test: SceneSet,
    device: torch.device,
    ranks: Ranks,
    stop: StopRequest,
) -> dict[str, Any]:
    """Train and measure one seed; what is finished already is read back."""
    fitting = build_fitting(run, cfg, train, device, ranks)
    if saved := newest_checkpoint(place.checkpoints):
        fitting.restore(saved)
    check_same_step(fitting.steps_done, ranks)
    path = place.path / "result.json"
    if fitting.is_finished() and (figures := _figures_of(path, test)):
        return figures
    with run_logger(place, ranks) as logger:
        log_header(logger, fitting, place, train, test)
        if not fitting.is_finished():
            fit(fitting, train, place, logger, stop)
        if not ranks.is_first:
            wait_for_all(ranks)
            return {}
        start = time.perf_counter()
        figures = {"seed": cfg.seed, **measure(fitting.model, cfg, test, device, stop)}
        figures["seconds"] = time.perf_counter() - start
        figures["test_fingerprint"] = test.fingerprint
        _write_json(path, figures)
        wait_for_all(ranks)
    return figures


def _figures_of(path: Path, test: SceneSet) -> dict[str, Any]:
    """What a finished trial wrote; empty where it was not on this test set."""
    if not path.exists():
        return {}
    figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return figures if figures["test_fingerprint"] == test.fingerprint else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    atomic_write_text(path, json.dumps(content, indent=1) + "\n")
