"""Images ranked by how pretraining on random samples of them ends, as a competition's report did.

Each sample is pretrained apart, by the settings of a run, as a run of its own that resumes. What is
done is not done again.
"""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fastmoco.configuration import config_from_dict
from fastmoco.data.beton_format import sidecar_path
from fastmoco.data.dataset import Dataset
from fastmoco.data.part import write_part
from fastmoco.data.settings import DataConfig
from fastmoco.draws.host import draw_keys
from fastmoco.draws.streams import INT64
from fastmoco.errors import UsageError
from fastmoco.evaluate.settings import MonitorConfig
from fastmoco.files import atomic_write_text, read_json_object
from fastmoco.labeling.ranking import Ranking, badness
from fastmoco.labeling.settings import RankBy, RequestConfig
from fastmoco.runs.checkpoint import Checkpoint
from fastmoco.runs.metrics_file import read_metrics
from fastmoco.runs.run_folder import RunFolder
from fastmoco.train.checks import check_config
from fastmoco.train.loop import train
from fastmoco.train.settings import TrainConfig

_SAMPLES = 2**30 + 64
"""In place of the epoch in a draw's key, far from any epoch: the first sample's stream."""


@dataclass(slots=True)
class Outcome:
    """How the run of a sample ended: means over its last epoch."""

    sample: int
    accuracy_top1: float
    """Of the (K+1)-way look-up, percent."""
    loss: float
    """In nats."""


def sample_settings(checkpoint: Checkpoint, cfg: RequestConfig, num_candidates: int) -> TrainConfig:
    """The settings of every sample's run, all but its data and its folder.

    Args:
        checkpoint: Of the run whose settings they are.
        cfg: `sample_size`, `epochs` and `device`.
        num_candidates: Images to draw samples from.

    Raises:
        UsageError: If they cannot serve.
    """
    base = config_from_dict(TrainConfig, checkpoint.facts["config"])
    if "imported" in checkpoint.facts:
        raise UsageError(
            f"{checkpoint.path} is imported and has no settings to train samples by; give a run of "
            "fastmoco train"
        )
    if not base.global_batch_size <= cfg.sample_size <= num_candidates:
        raise UsageError(
            f"sample_size={cfg.sample_size} does not fit; set it to {base.global_batch_size}, a "
            f"batch of that run, to {num_candidates}, the images to draw from"
        )
    loop = dataclasses.replace(
        base.train,
        epochs=cfg.epochs or base.train.epochs,
        max_steps=0,
        dry_run=False,
        profile=False,
    )
    found = dataclasses.replace(
        base,
        device=cfg.device,
        train=loop,
        monitor=MonitorConfig(),
        checkpoint=dataclasses.replace(base.checkpoint, keep=1),
    )
    check_config(dataclasses.replace(found, data=DataConfig(train=Path("sample"))))
    return found


def rank_by_sample_runs(
    settings: TrainConfig,
    dataset: Dataset,
    candidates: INT64,
    *,
    cfg: RequestConfig,
    folder: Path,
) -> Ranking:
    """Pretrain each sample, and rank images by how badly theirs went.

    Args:
        settings: Of every run.
        dataset: Open.
        candidates: Ids to draw samples from.
        cfg: `samples`, `sample_size`, `rank_by` and `seed`.
        folder: Of the runs.

    Returns:
        The images of the worst sample first, in the order in which they were drawn; each image
        where its first sample has it. Images of no sample are left out.

    Raises:
        Interrupted: After SIGINT or SIGTERM, with the state saved.
    """
    outcomes = []
    for number in range(cfg.samples):
        ids = sample_ids(candidates, number, cfg.sample_size, cfg.seed)
        outcomes.append(_outcome(settings, dataset, ids, number, cfg.keep_runs, folder))
    order = worst_samples(outcomes, cfg.rank_by)
    drawn = [sample_ids(candidates, number, cfg.sample_size, cfg.seed) for number in order]
    ids, first = np.unique(np.concatenate(drawn), return_index=True)
    place = np.sort(first)
    owner = np.array(order)[place // cfg.sample_size]
    return Ranking(
        ids=ids[np.argsort(first)],
        columns={
            "sample": owner,
            "accuracy_top1": np.array([outcomes[number].accuracy_top1 for number in owner]),
            "loss": np.array([outcomes[number].loss for number in owner]),
        },
        facts={"samples_worst_first": [dataclasses.asdict(outcomes[number]) for number in order]},
    )


def sample_ids(candidates: INT64, number: int, size: int, seed: int) -> INT64:
    """Sample `number`: the first of a random order of the candidates, which is its own."""
    keys = draw_keys(seed, _SAMPLES + number, candidates).view(np.uint64)
    return candidates[np.argsort(keys, kind="stable")[:size]]


def worst_samples(outcomes: list[Outcome], by: RankBy) -> list[int]:
    """Numbers of the samples, that of the lowest accuracy and highest loss first."""
    loss = np.array([one.loss for one in outcomes])
    accuracy = np.array([one.accuracy_top1 for one in outcomes])
    worst: list[int] = np.argsort(-badness(loss, -accuracy, by), kind="stable").tolist()
    return worst


def _outcome(
    settings: TrainConfig,
    dataset: Dataset,
    ids: INT64,
    number: int,
    keep_runs: bool,
    folder: Path,
) -> Outcome:
    """Of a sample's run; trained now unless that is done."""
    run_dir = folder / f"sample-{number:02d}"
    record, data = run_dir.with_suffix(".json"), run_dir.with_suffix(".beton")
    if not record.exists():
        # Equal each time: a run that was interrupted finds the dataset that it began with.
        origin = {"source": str(dataset.path), "sample": number}
        labels = dataset.labels[ids]
        write_part(data, dataset, ids, labels=labels, classes=dataset.classes, origin=origin)
        made_of = DataConfig(train=data)
        cfg = dataclasses.replace(settings, name=run_dir.name, run_dir=run_dir, data=made_of)
        train(cfg)
        ending = dataclasses.asdict(_ending(number, RunFolder(run_dir), cfg))
        atomic_write_text(record, json.dumps(ending) + "\n")
    data.unlink(missing_ok=True)
    sidecar_path(data).unlink(missing_ok=True)
    if not keep_runs:
        shutil.rmtree(RunFolder(run_dir).checkpoints, ignore_errors=True)
    mend = f"remove it and {run_dir}, and the sample is trained again"
    keys = [one.name for one in dataclasses.fields(Outcome)]
    ended = read_json_object(record, keys, mend=mend)
    return Outcome(**{key: ended[key] for key in keys})


def _ending(number: int, run: RunFolder, cfg: TrainConfig) -> Outcome:
    """Means over the rows of the last epoch, or the last row where an epoch has none."""
    rows: list[dict[str, Any]] = read_metrics(run.metrics)
    last = [row for row in rows if row["epoch"] > cfg.train.epochs - 1] or rows[-1:]
    return Outcome(
        sample=number,
        accuracy_top1=float(np.mean([row["accuracy_top1"] for row in last])),
        loss=float(np.mean([row["loss"] for row in last])),
    )
