"""`fastmoco detect`: fine-tune a detector on a pretrained backbone and measure it."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from fastmoco.detection.annotations import SceneSet
from fastmoco.detection.fitting import Fitting
from fastmoco.detection.metrics import check_metrics
from fastmoco.detection.result import DetectResult, protocol_of
from fastmoco.detection.settings import (
    AnnotationFormat,
    DetectConfig,
    DetectionNorm,
    DetectionTask,
)
from fastmoco.detection.starting import open_sets
from fastmoco.detection.trial import build_fitting, fit, log_header, measure
from fastmoco.errors import UsageError
from fastmoco.files import atomic_write_text, read_json_object
from fastmoco.moco.settings import Precision
from fastmoco.optim.precision import choose_precision
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
from fastmoco.train.number_format import kept_precision
from fastmoco.weights.settings import RANDOM, start_name

# Keys that do not change what is learned: a trial may resume with other values.
# The fingerprint of the annotations is compared instead of data.train.
# `init`, which older trials have, does not bind: the fingerprint of the backbone does.
FREE_KEYS = frozenset(
    {
        "run_dir",
        "trials",
        "pipeline.num_threads",
        "checkpoint.every_steps",
        "allow_overlap",
        "init",
    }
) | {f"data.{name}" for name in ("train", "test", "train_images", "test_images")}


def check_config(cfg: DetectConfig, ranks: Ranks) -> None:
    """Check that the settings fit each other, before anything is opened.

    Raises:
        UsageError: If not; one line that names the option to change.
    """
    wanted = {
        DetectionTask.segment: AnnotationFormat.voc,
        DetectionTask.masks: AnnotationFormat.coco,
        DetectionTask.keypoints: AnnotationFormat.coco,
    }
    layout = wanted.get(cfg.task, cfg.layout)
    if cfg.layout is not layout:
        raise UsageError(
            f"task={cfg.task.value} needs layout={layout.value}, got layout={cfg.layout.value}; "
            f"set layout={layout.value} and data.train"
        )
    if cfg.weights == RANDOM and cfg.batch_norm is DetectionNorm.frozen:
        raise UsageError(
            "batch_norm=frozen needs pretrained statistics, but weights=random has none; set "
            "batch_norm=synchronized, or leave out weights=random"
        )
    if not cfg.train_sizes:
        raise UsageError("train_sizes must name a size or more, such as train_sizes=[800]; got []")
    if len(cfg.scale_range) != 2 or cfg.scale_range[0] > cfg.scale_range[1]:
        raise UsageError(f"scale_range must be [low,high] with low <= high, got {cfg.scale_range}")
    if cfg.global_batch_size % ranks.world_size:
        raise UsageError(
            f"global_batch_size must be a positive multiple of the {ranks.world_size} devices, got "
            f"{cfg.global_batch_size}"
        )


def detect(run: Path, cfg: DetectConfig) -> DetectResult:
    """Fine-tune and measure ``trials`` detectors, or resume where the same command stopped.

    With torchrun each process calls this; the first one writes and measures.

    Args:
        run: Run folder or checkpoint of the encoder.
        cfg: Data, task and protocol.

    Returns:
        The figures; also written to ``result.json`` in the folder of the trials. The folder
        ``seed-N`` of a trial has the ``result.json`` of that trial.

    Raises:
        UsageError: If settings do not fit each other, the data or the folder.
        AnnotationError: If an annotation or an image is broken.
        CheckpointError: If the encoder's checkpoint is missing or damaged.
        Interrupted: After SIGINT or SIGTERM, with the state saved.
    """
    ranks = environment_ranks()
    check_config(cfg, ranks)
    check_metrics(cfg.task)
    train, test = open_sets(cfg)
    folder = cfg.run_dir or default_folder(run, cfg)
    device = resolve_rank_device(cfg.device, ranks)
    seeds = range(cfg.seed, cfg.seed + cfg.trials)
    if cfg.precision is Precision.auto:
        kept = [kept_precision(RunFolder(folder / f"seed-{seed}")) for seed in seeds]
        chosen = next(filter(None, kept), choose_precision(device)[0])
        cfg = dataclasses.replace(cfg, precision=chosen)
    trials = []
    with process_group(ranks, device), stop_signals() as stop:
        for seed in seeds:
            trial = dataclasses.replace(cfg, seed=seed)
            own = RunFolder(folder / f"seed-{seed}")
            with claim_run_folder(own, RunIdentity(trial, FREE_KEYS), ranks):
                # Not in a variable, which would keep this model while the next one is built.
                trials.append(
                    _run_trial(
                        build_fitting(run, trial, train, device, ranks), own, train, test, stop
                    )
                )
    result = DetectResult(trials, protocol_of(run, cfg, train, test))
    if ranks.is_first:
        _write_json(folder / "result.json", result.to_json())
    return result


def default_folder(run: Path, cfg: DetectConfig) -> Path:
    """``RUN/detect/TASK-ARCH-START``; for a checkpoint file, RUN is the run that contains it."""
    if not run.is_dir():
        run = run.parent.parent if run.parent.name == "checkpoints" else run.parent
    arch = "fcn" if cfg.task is DetectionTask.segment else cfg.arch.value
    return run / "detect" / f"{cfg.task.value}-{arch}-{start_name(cfg.weights)}"


def _run_trial(
    fitting: Fitting, folder: RunFolder, train: SceneSet, test: SceneSet, stop: StopRequest
) -> dict[str, Any]:
    """Train and measure one seed; the figures of a finished trial are read from its folder."""
    ranks = fitting.ranks
    if saved := newest_checkpoint(folder.checkpoints):
        fitting.restore(saved)
    check_same_step(fitting.steps_done, ranks)
    path = folder.path / "result.json"
    if fitting.is_finished() and (figures := _figures_of(path, test)):
        return figures
    with run_logger(folder, ranks) as logger:
        log_header(logger, fitting, folder, train, test)
        if not fitting.is_finished():
            fit(fitting, train, folder, logger, stop)
        figures = {}
        if ranks.is_first:
            start = time.perf_counter()
            figures = {"seed": fitting.cfg.seed, **measure(fitting, test, stop)}
            figures["seconds"] = time.perf_counter() - start
            figures["test_fingerprint"] = test.fingerprint
            _write_json(path, figures)
        wait_for_all(ranks)
    return figures


def _figures_of(path: Path, test: SceneSet) -> dict[str, Any]:
    """The figures that a finished trial wrote; empty if it was not tested on this test set."""
    if not path.exists():
        return {}
    advice = "remove it; the trial is then measured again"
    types = {"seed": int, "test_fingerprint": str}
    figures = read_json_object(path, types, advice=advice)
    return figures if figures["test_fingerprint"] == test.fingerprint else {}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    atomic_write_text(path, json.dumps(content, indent=1) + "\n")
