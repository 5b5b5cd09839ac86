"""`fastmoco request`: choose the unlabeled images that are most worth a label.

Images are ranked (`pretext_scores`, `sample_runs`, or at random). They are then taken in that order
without duplicates and, if wanted, spread over the feature space (`selection`). `request_files` and
`request_record` write the result.
"""

import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from fastmoco.configuration import config_to_dict
from fastmoco.data.dataset import Dataset, open_dataset
from fastmoco.draws.streams import INT64, Stream
from fastmoco.errors import UsageError
from fastmoco.evaluate.features import dataset_features, features_folder, request_of
from fastmoco.evaluate.frozen_encoder import open_encoder
from fastmoco.labeling.pretext_scores import build_scorer, rank_by_scores
from fastmoco.labeling.ranking import Ranking, random_order
from fastmoco.labeling.request_files import write_request_files
from fastmoco.labeling.request_record import (
    SCORES,
    LabelRequest,
    mark_finished,
    mark_unfinished,
    read_finished,
    recipe_of,
)
from fastmoco.labeling.sample_runs import rank_by_sample_runs, sample_settings
from fastmoco.labeling.selection import (
    CHUNK_ROWS,
    Distinct,
    Vectors,
    chunks,
    cluster,
    digest,
    k_center,
    shares,
    spread,
)
from fastmoco.labeling.settings import Balance, RequestConfig, RequestMode
from fastmoco.runs.checkpoint import Checkpoint, load_checkpoint, weights_sha256

Ranker = Callable[[Dataset, INT64], Ranking]


def request(run: Path, cfg: RequestConfig) -> LabelRequest:
    """Choose images to be labeled, and record which checkpoint and options chose them.

    Args:
        run: A run folder or one of its checkpoints.
        cfg: From `load_config`.

    Returns:
        The request. A finished one with the same options is read, not made again.

    Raises:
        UsageError: If an option is missing or invalid, or ``out`` holds other files.
        ValueError: If the checkpoint or the dataset is damaged.
        OSError: If a file cannot be read or written.
        Interrupted: If stopped while samples are trained; the same call resumes.
    """
    start = time.monotonic()
    data = _checked(cfg)
    checkpoint = load_checkpoint(run)
    assert checkpoint.path is not None  # it was read from there
    with open_dataset(data) as dataset:
        candidates, labeled = _candidates(dataset, cfg.count)
        sha256 = weights_sha256(checkpoint)
        recipe = recipe_of(cfg, sha256, dataset.fingerprint)
        if finished := read_finished(cfg.out, recipe):
            return finished
        rank = _ranker(checkpoint, len(candidates), cfg, recipe)
        mark_unfinished(cfg.out, recipe)
        vectors = _unit_vectors(run, checkpoint, dataset, cfg)
        ranking = rank(dataset, candidates)
        chosen, found = _chosen(dataset, ranking, labeled, vectors, cfg)
        write_request_files(cfg, dataset, ranking, chosen)
        made = LabelRequest(
            out=str(cfg.out),
            count=len(chosen),
            num_candidates=len(candidates),
            mode=cfg.mode.value,
            run=str(run),
            checkpoint=str(checkpoint.path.with_suffix(".safetensors")),
            checkpoint_sha256=sha256,
            step=checkpoint.step,
            data=str(data),
            dataset_fingerprint=dataset.fingerprint,
            recipe=recipe,
            options=config_to_dict(cfg),
            ranking=ranking.facts,
            seconds=time.monotonic() - start,
            **found,
        )
    mark_finished(cfg.out, made)
    return made


def _checked(cfg: RequestConfig) -> Path:
    """The dataset file.

    Raises:
        UsageError: If it is missing.
    """
    if cfg.data.train is None:
        raise UsageError("data.train is not set; give the unlabeled images, data.train=FILE.beton")
    return cfg.data.train


def _candidates(dataset: Dataset, count: int) -> tuple[INT64, INT64]:
    """Ids of the images that can be requested, and ids of the labeled ones.

    If all are labeled, as in a trial of the method, all are candidates and their labels are
    ignored.

    Raises:
        UsageError: If there are fewer candidates than `count`.
    """
    labeled = dataset.labels >= 0
    if labeled.all():
        warnings.warn(
            f"{dataset.path}: all images are labeled already; all are candidates, and their labels "
            "are ignored",
            stacklevel=3,
        )
        labeled = np.zeros_like(labeled)
    candidates = np.flatnonzero(~labeled)
    if count > len(candidates):
        raise UsageError(
            f"count must be at most {len(candidates)}, the images that can be requested, "
            f"got {count}"
        )
    return candidates, np.flatnonzero(labeled)


def _ranker(checkpoint: Checkpoint, num_candidates: int, cfg: RequestConfig, recipe: str) -> Ranker:
    """The function that ranks candidates; what makes it impossible is detected now.

    Raises:
        UsageError: If the checkpoint or an option does not suit the mode.
    """
    if cfg.mode is RequestMode.random:
        return lambda _, ids: Ranking(random_order(ids, cfg.seed, Stream.RANDOM_REQUEST))
    if cfg.mode is RequestMode.per_sample_runs:
        settings = sample_settings(checkpoint, cfg, num_candidates)
        return partial(rank_by_sample_runs, settings, cfg=cfg, folder=cfg.out / "runs")
    scorer = build_scorer(checkpoint, cfg)
    return partial(rank_by_scores, scorer, state=cfg.out / SCORES, recipe=recipe)


def _chosen(
    dataset: Dataset, ranking: Ranking, labeled: INT64, vectors: Vectors | None, cfg: RequestConfig
) -> tuple[INT64, dict[str, Any]]:
    """Indices into the ranking of the requested images, ascending, and counts for the record."""
    groups = _groups(dataset, ranking, vectors, cfg)
    sizes = [len(group) for group in groups] if len(groups) > 1 else []
    distinct = Distinct(
        lambda sample: digest(dataset.blob(sample)),
        vectors if cfg.max_similarity < 1 else None,
        cfg.max_similarity,
    )
    distinct.add_known(labeled)
    groups = spread(groups, distinct, cfg.count * (cfg.pool if cfg.diversity else 1))
    if cfg.diversity and vectors is not None:
        wanted = shares([len(group) for group in groups], cfg.count)
        # What the labeled images show needs no label any more.
        parts = list(chunks(vectors, labeled))
        covered = torch.cat(parts) if parts else None
        groups = [
            group[k_center(vectors(group), share, covered)] if share else group[:0]
            for group, share in zip(groups, wanted, strict=True)
        ]
    chosen = np.flatnonzero(np.isin(ranking.ids, np.concatenate(groups)))
    if len(chosen) < cfg.count:
        warnings.warn(
            f"only {len(chosen)} of count={cfg.count} images are requested: the others are "
            "duplicates or were not ranked; raise max_similarity (or samples) for more",
            stacklevel=3,
        )
    counts = {"num_same_bytes": distinct.same_bytes, "num_alike": distinct.alike}
    return chosen, {**counts, "cluster_sizes": sizes}


def _groups(
    dataset: Dataset, ranking: Ranking, vectors: Vectors | None, cfg: RequestConfig
) -> list[INT64]:
    """Candidates in the order of the ranking, grouped by cluster if ``balance=clusters``.

    The ranking then gets a column with the clusters.
    """
    if vectors is None or cfg.balance is Balance.none:
        return [ranking.ids]
    number = min(cfg.clusters or len(dataset.classes) or 10, len(ranking.ids))
    of = cluster(vectors, ranking.ids, number, cfg.seed)
    ranking.columns = {**ranking.columns, "cluster": of}
    return [ranking.ids[of == one] for one in range(number)]


def _unit_vectors(
    run: Path, checkpoint: Checkpoint, dataset: Dataset, cfg: RequestConfig
) -> Vectors | None:
    """Features minus their mean, scaled to length 1; uncentered features of a ReLU are all alike.

    They are memory-mapped from the run's cache: only the rows asked for are in memory. None if no
    option compares features.
    """
    if cfg.max_similarity == 1 and not cfg.diversity and cfg.balance is Balance.none:
        return None
    encoder = open_encoder(checkpoint, cfg)
    folder = features_folder(run) if cfg.cache else None
    rows = dataset_features(encoder, dataset, request_of(cfg), folder).vectors
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    for part in torch.split(rows, CHUNK_ROWS):
        total += part.double().sum(0)
    mean, device = (total / len(rows)).float(), encoder.mean.device

    def vectors(ids: INT64) -> Tensor:
        found = rows[torch.from_numpy(ids).to(rows.device)] - mean
        return F.normalize(found.to(device), dim=1)

    return vectors
