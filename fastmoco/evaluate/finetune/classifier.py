"""Fine-tuning of a complete encoder or its last stages, with few or all labels.

It starts from a run's encoder, from the same encoder untrained (a supervised run from scratch, the
baseline of the others), or from other weights (`read_start`). Trained stages have plain batch
norm, over the batch; frozen stages keep their statistics. The result is that of the last epoch: the
test set chooses nothing.
"""

import dataclasses
import math
import time
from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor, nn

from fastmoco.errors import DivergedError
from fastmoco.evaluate.classes import class_ranks, top_accuracies
from fastmoco.evaluate.features import feature_batches, request_of
from fastmoco.evaluate.finetune.tuning import Tuning
from fastmoco.evaluate.frozen_encoder import FrozenEncoder, open_encoder
from fastmoco.evaluate.labeled_task import LabeledTask, is_measured, open_task, out_folder
from fastmoco.evaluate.results import ClassifierResult
from fastmoco.evaluate.settings import FinetuneConfig, Trainable
from fastmoco.moco.batchnorm import SplitBatchNorm2d
from fastmoco.optim.schedules import learning_rate
from fastmoco.weights.settings import RANDOM, start_name

CURVE_POINTS = 5  # all test images go through the encoder each time


def finetune(run: Path, cfg: FinetuneConfig) -> ClassifierResult:
    """Fine-tune a run's encoder and measure it, and the run from scratch if ``cfg.baselines``.

    A repeated command resumes after the last complete epoch.

    Args:
        run: Run folder or checkpoint.
        cfg: Datasets and protocol.

    Returns:
        The result; also written, with curves and weights, to ``evaluation/finetune-NAME`` in the
        run folder.

    Raises:
        UsageError: If a dataset is missing or unsuitable, or a setting is out of range.
        CheckpointError: If there is no checkpoint, or it is damaged.
        DivergedError: If the loss is not finite.
    """
    cfg = dataclasses.replace(cfg, name=cfg.name or start_name(cfg.weights))
    folder = out_folder(run, cfg, "finetune")
    with open_task(cfg) as task:
        result = fit_finetuned(run, task, cfg, folder)
        if cfg.baselines and cfg.weights != RANDOM:
            scratch = dataclasses.replace(
                cfg, name="random", weights=RANDOM, trainable=Trainable.all
            )
            result.baselines["random"] = fit_finetuned(run, task, scratch, folder / "random")
    result.write(folder)
    return result


def fit_finetuned(
    run: Path, task: LabeledTask, cfg: FinetuneConfig, folder: Path
) -> ClassifierResult:
    """Train and measure one classifier, whose state is kept in a folder."""
    start = time.perf_counter()
    tuning = Tuning(start_encoder(run, cfg), task, cfg, folder)
    tuning.restore()
    _train(tuning)
    last = tuning.curve[-1]
    return ClassifierResult(
        top1=last["top1"],
        top5=last["top5"],
        about=(
            f"finetune, from {start_name(cfg.weights)}, {cfg.trainable.value} trained, "
            f"{cfg.train.epochs} epochs, batch {task.batch_size(cfg)}, {cfg.optimizer.name}, "
            f"learning rates {tuning.encoder_rate:g} and {cfg.head_learning_rate:g} (head), "
            f"{task.described(cfg)}"
        ),
        protocol={
            "init": start_name(cfg.weights),
            "trainable": cfg.trainable.value,
            "epochs": cfg.train.epochs,
            "global_batch_size": task.batch_size(cfg),
            "optimizer": cfg.optimizer.name,
            "learning_rate": tuning.encoder_rate,
            "head_learning_rate": cfg.head_learning_rate,
            **task.facts(cfg),
        },
        seconds=time.perf_counter() - start,
        seconds_training=tuning.seconds,
        curve=tuning.curve,
    )


def start_encoder(run: Path, cfg: FinetuneConfig) -> FrozenEncoder:
    """Load the encoder to train onto its device, with plain batch norm.

    Raises:
        UsageError: If the weights are of another architecture.
    """
    encoder = open_encoder(run, cfg, weights=cfg.weights)
    for module in encoder.modules():
        if isinstance(module, SplitBatchNorm2d):
            module.num_splits = 1
    return encoder


def _train(tuning: Tuning) -> None:
    """Train the remaining epochs; extend the curve and save the state after each."""
    task, cfg, encoder = tuning.task, tuning.cfg, tuning.encoder
    done, epochs = len(tuning.curve), cfg.train.epochs
    if done == epochs:
        return
    steps = task.plan(cfg).num_batches
    with closing(task.loader(cfg, encoder, cfg.policy, epoch=done)) as loader:
        for epoch in range(done, epochs):
            start, losses, factor = time.perf_counter(), [], 1.0
            tuning.train_mode()
            for step in range(epoch * steps, (epoch + 1) * steps):
                factor = learning_rate(
                    cfg.optimizer, step, peak=1.0, steps_per_epoch=steps, epochs=epochs
                )
                losses.append(tuning.step(next(loader), factor))
            loss = torch.stack(losses).mean().item()
            if not math.isfinite(loss):
                raise DivergedError(
                    f"the loss is not finite in epoch {epoch + 1}; lower the encoder's "
                    f"learning rate (now {tuning.encoder_rate:g}) and head_learning_rate "
                    f"(now {cfg.head_learning_rate:g})"
                )
            tuning.seconds += time.perf_counter() - start
            row = {"epoch": epoch + 1, "loss_train": loss}
            row["learning_rate"] = tuning.encoder_rate * factor
            if is_measured(epoch, epochs, CURVE_POINTS):
                row["top1"], row["top5"] = measure(tuning.encoder, tuning.head, task, cfg)
            tuning.curve.append(row)
            tuning.save()


@torch.no_grad()
def measure(
    encoder: FrozenEncoder, head: nn.Linear, task: LabeledTask, cfg: FinetuneConfig
) -> tuple[float, float]:
    """Measure top-1 and top-5 in percent on central crops; set the encoder to evaluation mode."""
    encoder.eval()
    labels = torch.tensor(task.test.labels, device=encoder.mean.device)
    ranks: list[Tensor] = []
    done = 0
    for vectors in feature_batches(encoder, task.test, request_of(cfg, "backbone")):
        ranks.append(class_ranks(head(vectors), labels[done : done + len(vectors)]))
        done += len(vectors)
    return top_accuracies(torch.cat(ranks))
