"""A linear classifier on a frozen encoder, the protocol of arXiv:1911.05722, section 4.1.

Two heads try each learning rate of a grid at once. One does not see the held-out images and is
measured on them; the other learns from all labels and is reported if its rate is best. The test set
chooses nothing.

Deviations from the official code: the last partial batch of an epoch is dropped, and a cosine
schedule changes at every step.
"""

import dataclasses
import math
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmoco.evaluate.classes import top_accuracies
from fastmoco.evaluate.features import FeatureSet, dataset_features, features_folder, request_of
from fastmoco.evaluate.frozen_encoder import PIXELS, FrozenEncoder, open_encoder
from fastmoco.evaluate.labeled_task import LabeledTask, is_measured, open_task, out_folder
from fastmoco.evaluate.linear.heads import Heads
from fastmoco.evaluate.linear.rate_grid import RateGrid
from fastmoco.evaluate.linear.steps import Steps, cached_steps, encoded_steps
from fastmoco.evaluate.results import ClassifierResult
from fastmoco.evaluate.settings import LinearConfig, LinearViews
from fastmoco.optim.schedules import learning_rate

BASELINE_RATES = [0.001, 0.01, 0.1, 1.0, 10.0, 100.0]
"""Rates that baselines choose from: a rate that suits trained features need not suit pixels."""
EXTRACTION_BATCH = 256
CURVE_POINTS = 20


def linear(run: Path, cfg: LinearConfig, *, pixels: bool = True) -> ClassifierResult:
    """Evaluate a run by a linear classifier, and its baselines if ``cfg.baselines``.

    Args:
        run: Run folder or checkpoint.
        cfg: Datasets and protocol.
        pixels: Whether raw pixels are among the baselines.

    Returns:
        The result; also written, with its curves, to ``evaluation/linear-NAME`` in the run folder.

    Raises:
        UsageError: If a dataset is missing or unsuitable, or a setting is out of range.
        CheckpointError: If there is no checkpoint, or it is damaged.
    """
    folder = features_folder(run) if cfg.cache else None
    with open_task(cfg) as task:
        trained = open_encoder(run, cfg)
        result = fit_linear(trained, task, cfg, folder)
        if cfg.baselines:
            untrained = open_encoder(run, cfg, untrained=True)
            result.baselines["untrained"] = fit_linear(untrained, task, _choosing(cfg), folder)
            if pixels:
                of_pixels = dataclasses.replace(_choosing(cfg), views=LinearViews.cached)
                result.baselines["pixels"] = fit_linear(trained, task, of_pixels, None, PIXELS)
            for name, baseline in result.baselines.items():
                baseline.protocol["init"] = name
    result.write(out_folder(run, cfg, "linear"))
    return result


def _choosing(cfg: LinearConfig) -> LinearConfig:
    """The configuration of a baseline, which chooses its rate if the optimizer is SGD."""
    if cfg.optimizer.name != "sgd":
        return cfg
    return dataclasses.replace(cfg, learning_rates=cfg.learning_rates or BASELINE_RATES)


def fit_linear(
    encoder: FrozenEncoder,
    task: LabeledTask,
    cfg: LinearConfig,
    folder: Path | None,
    features: str | None = None,
) -> ClassifierResult:
    """Train and measure linear classifiers of one encoder.

    Args:
        encoder: The encoder on its device; at the end it is checked to be unchanged.
        task: Images and labels.
        cfg: Protocol.
        folder: Folder for the features; None: do not keep them.
        features: Kind of vectors, if not the configuration's.

    Raises:
        UsageError: If a setting is out of range.
        RuntimeError: If a weight or statistic of the encoder changed, which is a bug.
    """
    start, before = time.perf_counter(), encoder.fingerprint()
    request = dataclasses.replace(
        request_of(cfg, features), batch_size=max(EXTRACTION_BATCH, cfg.global_batch_size)
    )
    grid, device = RateGrid.of(cfg, task), encoder.mean.device
    test = dataset_features(encoder, task.test, request, folder)
    cached, steps = None, encoded_steps(encoder, task, cfg, request)
    if cfg.views is LinearViews.cached:
        cached = dataset_features(encoder, task.train, request, folder)
        steps = cached_steps(cached, task, cfg, device)
    size = {"dim": test.vectors.shape[1], "classes": task.classes.count}
    heads = Heads(grid.heads, **size, cfg=cfg.optimizer, device=device, seed=cfg.seed)
    curve, seconds = _train(heads, steps, task, cfg, grid, test)
    held_out = grid.accuracies(heads, encoder, task, request, cached)
    best = grid.best(held_out)
    if encoder.fingerprint() != before:
        raise RuntimeError("a frozen weight or statistic of the encoder moved in the evaluation")
    found = {
        "features": request.features,
        "learning_rate": heads.rates[best],
        "held_out_top1": dict(zip(map(str, grid.rates), held_out, strict=False)),
        "features_reused": test.reused and (cached is None or cached.reused),
    }
    return ClassifierResult(
        top1=curve[-1]["top1"][best],
        top5=curve[-1]["top5"][best],
        about=_about(cfg, task, grid, best, request.features),
        protocol=_protocol(cfg, task) | found,
        seconds=time.perf_counter() - start,
        seconds_training=seconds,
        curve=[_of_head(row, best) for row in curve],
    )


def _protocol(cfg: LinearConfig, task: LabeledTask) -> dict[str, Any]:
    return {
        "init": "pretrained",
        "protocol": cfg.name,
        "views": cfg.views.value,
        "epochs": cfg.train.epochs,
        "global_batch_size": task.batch_size(cfg),
        "optimizer": cfg.optimizer.name,
        **task.facts(cfg),
    }


def _of_head(row: dict[str, Any], head: int) -> dict[str, Any]:
    """A row of the curve for one head; None where it diverged, as JSON has no NaN."""
    own = {key: value[head] if isinstance(value, list) else value for key, value in row.items()}
    return {key: value if math.isfinite(value) else None for key, value in own.items()}


def _about(cfg: LinearConfig, task: LabeledTask, grid: RateGrid, best: int, features: str) -> str:
    index = best % len(grid.rates)
    chosen = f"learning rate {grid.rates[index]:g}"
    if grid.held is not None:
        edge = ", the grid's edge" if index in (0, len(grid.rates) - 1) else ""
        chosen += f" (of {len(grid.rates)} by {int(grid.held.sum())} held-out images{edge})"
    return (
        f"linear, protocol {cfg.name}: {cfg.views.value} views, {features}, {cfg.optimizer.name}, "
        f"{chosen}, {cfg.train.epochs} epochs, batch {task.batch_size(cfg)}, {task.described(cfg)}"
    )


def _train(
    heads: Heads,
    steps: Steps,
    task: LabeledTask,
    cfg: LinearConfig,
    grid: RateGrid,
    test: FeatureSet,
) -> tuple[list[dict[str, Any]], float]:
    """Train all epochs; return a curve with a list over heads in each row, and steps' seconds."""
    device, epochs = heads.weight.device, cfg.train.epochs
    labels, weights = torch.tensor(task.labels, device=device), grid.weights(device)
    vectors, right = test.vectors.to(device), test.labels.to(device)
    curve, seconds = [], 0.0
    with closing(steps):
        for epoch in range(epochs):
            start = time.perf_counter()
            row = _epoch(heads, steps, epoch, task.plan(cfg).num_batches, labels, weights, cfg)
            seconds += time.perf_counter() - start
            if is_measured(epoch, epochs, CURVE_POINTS):
                found = [top_accuracies(ranks) for ranks in heads.ranks(vectors, right).unbind(1)]
                row["top1"], row["top5"] = map(list, zip(*found, strict=True))
            curve.append(row)
    return curve, seconds


def _epoch(
    heads: Heads,
    steps: Steps,
    epoch: int,
    count: int,
    labels: Tensor,
    weights: Tensor | None,
    cfg: LinearConfig,
) -> dict[str, Any]:
    """Take the `count` steps of one epoch; return mean loss and last rate of each head."""
    total, rows, factor = torch.zeros(len(heads.rates), device=labels.device), 0, 1.0
    for step in range(epoch * count, (epoch + 1) * count):
        vectors, ids = next(steps)
        factor = learning_rate(
            cfg.optimizer, step, peak=1.0, steps_per_epoch=count, epochs=cfg.train.epochs
        )
        counted = None if weights is None else weights[ids]
        total += heads.step(vectors, labels[ids], factor=factor, weights=counted).sum(0)
        rows += len(vectors)
    rates = [rate * factor for rate in heads.rates]
    return {"epoch": epoch + 1, "loss_train": (total / rows).tolist(), "learning_rate": rates}
