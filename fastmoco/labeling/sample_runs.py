"""Ranking of images by how pretraining on random samples of them ends, as a competition did it.

Each sample is pretrained in a separate run, with the settings of the given run. An interrupted run
resumes, and a finished one is not repeated.
"""

import json
import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fastmoco.configuration import config_from_dict
from fastmoco.data.beton_format import sidecar_path
from fastmoco.data.dataset import Dataset
from fastmoco.data.part import write_part
from fastmoco.data.settings import DataConfig
from fastmoco.draws.streams import INT64, Stream
from fastmoco.errors import UsageError
from fastmoco.evaluate.settings import MonitorConfig
from fastmoco.files import atomic_write_text, json_types, read_json_object
from fastmoco.labeling.ranking import Ranking, badness, random_order
from fastmoco.labeling.settings import RankBy, RequestConfig
from fastmoco.runs.checkpoint import Checkpoint
from fastmoco.runs.metrics_file import read_metrics
from fastmoco.runs.run_folder import RunFolder
from fastmoco.train.checks import check_config
from fastmoco.train.loop import train
from fastmoco.train.settings import TrainConfig


@dataclass(slots=True)
class Outcome:
    """Means over the last epoch of a sample's run."""

    sample: int
    accuracy_top1: float
    """Accuracy of the (K+1)-way look-up, percent."""
    loss: float
    """Contrastive loss in nats."""


def sample_settings(checkpoint: Checkpoint, cfg: RequestConfig, num_candidates: int) -> TrainConfig:
    """The settings of every sample's run, except its dataset and its folder.

    Args:
        checkpoint: Checkpoint of the run whose settings are used.
        cfg: `sample_size`, `epochs` and `device` are used.
        num_candidates: Number of images to draw samples from.

    Raises:
        UsageError: If the checkpoint is imported, or the settings do not allow such runs.
    """
    base = config_from_dict(TrainConfig, checkpoint.facts["config"])
    if "imported" in checkpoint.facts:
        raise UsageError(
            f"mode=per_sample_runs needs the settings of a training run, but {checkpoint.path} is "
            "imported; give a run of fastmoco train"
        )
    if not base.global_batch_size <= cfg.sample_size <= num_candidates:
        raise UsageError(
            f"sample_size must be from {base.global_batch_size} (the run's global_batch_size) to "
            f"{num_candidates} (the images to draw from), got {cfg.sample_size}"
        )
    epochs = cfg.epochs or base.train.epochs
    loop = replace(base.train, epochs=epochs, max_steps=0, dry_run=False, profile=False)
    newest = replace(base.checkpoint, keep=1)
    found = replace(base, device=cfg.device, train=loop, monitor=MonitorConfig(), checkpoint=newest)
    check_config(replace(found, data=DataConfig(train=Path("sample"))))
    return found


def rank_by_sample_runs(
    settings: TrainConfig, dataset: Dataset, candidates: INT64, *, cfg: RequestConfig, folder: Path
) -> Ranking:
    """Pretrain each sample, and rank images by how badly their samples ended.

    Args:
        settings: Settings of every run, from `sample_settings`.
        dataset: Open dataset.
        candidates: Sample ids to draw from, ``(n,)``.
        cfg: `samples`, `sample_size`, `rank_by`, `seed` and `keep_runs` are used.
        folder: Folder of the runs.

    Returns:
        The images of the worst sample first, in the order in which they were drawn; an image of
        several samples is listed in the worst of them. Images in no sample are left out.

    Raises:
        Interrupted: After SIGINT or SIGTERM, with the state saved.
    """
    drawn = [
        sample_ids(candidates, number, cfg.sample_size, cfg.seed) for number in range(cfg.samples)
    ]
    outcomes = []
    for number, ids in enumerate(drawn):
        run = RunFolder(folder / f"sample-{number:02d}")
        outcomes.append(_outcome(settings, dataset, ids, number, run))
        if not cfg.keep_runs:
            shutil.rmtree(run.checkpoints, ignore_errors=True)
    order = worst_samples(outcomes, cfg.rank_by)
    images = np.concatenate([drawn[number] for number in order])
    ids, first = np.unique(images, return_index=True)
    owner = np.array(order)[np.sort(first) // cfg.sample_size]
    return Ranking(
        ids=ids[np.argsort(first)],
        columns={
            "sample": owner,
            "accuracy_top1": np.array([outcomes[number].accuracy_top1 for number in owner]),
            "loss": np.array([outcomes[number].loss for number in owner]),
        },
        facts={"samples_worst_first": [asdict(outcomes[number]) for number in order]},
    )


def sample_ids(candidates: INT64, number: int, size: int, seed: int) -> INT64:
    """Sample `number`: the first `size` of the candidates in a random order of its own."""
    return random_order(candidates, seed, Stream.SAMPLE + number)[:size]


def worst_samples(outcomes: list[Outcome], by: RankBy) -> list[int]:
    """Numbers of the samples, the one with the lowest accuracy and the highest loss first."""
    loss = np.array([one.loss for one in outcomes])
    accuracy = np.array([one.accuracy_top1 for one in outcomes])
    worst: list[int] = np.argsort(-badness(loss, -accuracy, by), kind="stable").tolist()
    return worst


def _outcome(
    settings: TrainConfig, dataset: Dataset, ids: INT64, number: int, run: RunFolder
) -> Outcome:
    """The outcome of a sample's run, which is trained now unless it is finished."""
    record, data = run.path.with_suffix(".json"), run.path.with_suffix(".beton")
    if not record.exists():
        # The file is the same each time, so an interrupted run resumes with the same dataset.
        origin = {"source": str(dataset.path), "sample": number}
        labels = dataset.labels[ids]
        write_part(data, dataset, ids, labels=labels, classes=dataset.classes, origin=origin)
        drawn = DataConfig(train=data)
        cfg = replace(settings, name=run.path.name, run_dir=run.path, data=drawn)
        train(cfg)
        ending = asdict(_ending(number, run, cfg))
        atomic_write_text(record, json.dumps(ending) + "\n")
    data.unlink(missing_ok=True)
    sidecar_path(data).unlink(missing_ok=True)
    advice = f"remove it and {run.path}; the sample is then trained again"
    types = json_types(Outcome)
    ended = read_json_object(record, types, advice=advice)
    return Outcome(**{key: ended[key] for key in types})


def _ending(number: int, run: RunFolder, cfg: TrainConfig) -> Outcome:
    """Means over the metrics rows of the last epoch, or the last row if that epoch has none."""
    rows: list[dict[str, Any]] = read_metrics(run.metrics)
    last = [row for row in rows if row["epoch"] > cfg.train.epochs - 1] or rows[-1:]
    return Outcome(
        sample=number,
        accuracy_top1=float(np.mean([row["accuracy_top1"] for row in last])),
        loss=float(np.mean([row["loss"] for row in last])),
    )
