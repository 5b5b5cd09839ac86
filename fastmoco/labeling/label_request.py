"""`fastmoco request`: the unlabeled images that are most worth a label.

Images are ranked (`pretext_scores`, `sample_runs`, or at random), then taken in that order without
duplicates and, where wanted, spread over the features (`selection`); `request_files` writes them.
"""

import hashlib
import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from fastmoco.configuration import config_to_dict
from fastmoco.data.dataset import Dataset, open_dataset
from fastmoco.device import resolve_device
from fastmoco.draws.host import draw_keys
from fastmoco.draws.streams import INT64
from fastmoco.errors import UsageError
from fastmoco.evaluate.features import (
    FeatureRequest,
    dataset_features,
    features_folder,
    open_encoder,
    request_of,
)
from fastmoco.files import atomic_write_text, read_json_object
from fastmoco.labeling.pretext_scores import Scorer, build_scorer, score_images
from fastmoco.labeling.ranking import Ranking, badness
from fastmoco.labeling.request_files import write_request_files
from fastmoco.labeling.sample_runs import rank_by_sample_runs, sample_settings
from fastmoco.labeling.selection import (
    CHUNK_ROWS,
    Distinct,
    Vectors,
    cluster,
    digest,
    k_center,
    shares,
    spread,
)
from fastmoco.labeling.settings import Balance, RequestConfig, RequestMode
from fastmoco.runs.checkpoint import Checkpoint, load_checkpoint, weights_sha256

_RANDOM = 2**30 + 32
"""In place of the epoch in a draw's key, far from any epoch."""
UNFINISHED, FINISHED, SCORES = "unfinished.json", "request.json", "scores.npz"
Ranker = Callable[[Dataset, INT64], Ranking]
_FREE = ("out", "data", "device", "cache", "pipeline")
"""Options that do not change what is requested, or that the recipe has otherwise."""


@dataclass(kw_only=True, slots=True)
class LabelRequest:
    """A request, as ``request.json`` keeps it."""

    out: str
    count: int
    """Images requested."""
    num_candidates: int
    num_same_bytes: int
    """Candidates passed over as equal to another one or to a labeled image, byte for byte."""
    num_alike: int
    """Likewise, by their features."""
    mode: str
    run: str
    checkpoint: str
    """File of the weights that ranked."""
    checkpoint_sha256: str
    step: int
    data: str
    dataset_fingerprint: str
    recipe: str
    """Hash of all that decides the request."""
    options: dict[str, Any]
    ranking: dict[str, Any] = field(default_factory=dict)
    """What the ranking was decided by, of all images together."""
    cluster_sizes: list[int] = field(default_factory=list)
    """balance=clusters: candidates in each cluster."""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    def to_text(self) -> str:
        """For people."""
        passed = f"{self.num_same_bytes + self.num_alike:,} duplicates passed over"
        return (
            f"{self.out}: {self.count:,} of {self.num_candidates:,} images to label, {self.mode}, "
            f"{passed}; request.csv, label_studio.json, contact_sheet.png"
        )


def request(run: Path, cfg: RequestConfig) -> LabelRequest:
    """Choose images to be labeled, and write who asked for them and why.

    Args:
        run: A run folder or one of its checkpoints.
        cfg: From `load_config`.

    Returns:
        The request; a finished one of the same options is read, not made again.

    Raises:
        UsageError: If an option is missing or does not fit, or ``out`` holds something else.
        ValueError: If the checkpoint or the dataset is damaged.
        OSError: If a file cannot be read or written.
        Interrupted: While samples are trained; the same call goes on.
    """
    start = time.monotonic()
    _check(cfg)
    assert cfg.data.train is not None
    checkpoint = load_checkpoint(run)
    assert checkpoint.path is not None  # it was read from there
    with open_dataset(cfg.data.train) as dataset:
        candidates, labeled = _candidates(dataset, cfg.count)
        sha256 = weights_sha256(checkpoint.path)
        recipe = _recipe(cfg, sha256, dataset.fingerprint)
        if finished := _finished(cfg.out, recipe):
            return finished
        rank = _ranker(checkpoint, len(candidates), cfg, recipe)
        atomic_write_text(cfg.out / UNFINISHED, json.dumps({"recipe": recipe}) + "\n")
        vectors = _unit_vectors(run, dataset, cfg) if _compares_features(cfg) else None
        ranking = rank(dataset, candidates)
        chosen, found = _chosen(dataset, ranking, labeled, vectors, cfg)
        write_request_files(cfg, dataset, ranking, chosen)
        facts = {"dataset_fingerprint": dataset.fingerprint, "ranking": ranking.facts, **found}
    made = LabelRequest(
        out=str(cfg.out),
        count=len(chosen),
        num_candidates=len(candidates),
        mode=cfg.mode.value,
        run=str(run),
        data=str(cfg.data.train),
        checkpoint_sha256=sha256,
        recipe=recipe,
        options=config_to_dict(cfg),
        seconds=time.monotonic() - start,
        **_origin(checkpoint),
        **facts,
    )
    atomic_write_text(cfg.out / FINISHED, json.dumps(made.to_json(), indent=1) + "\n")
    for name in (UNFINISHED, SCORES):
        (cfg.out / name).unlink(missing_ok=True)
    return made


def _origin(checkpoint: Checkpoint) -> dict[str, Any]:
    assert checkpoint.path is not None  # it was read from there
    return {"checkpoint": str(checkpoint.path.with_suffix(".safetensors")), "step": checkpoint.step}


def _check(cfg: RequestConfig) -> None:
    if cfg.data.train is None:
        raise UsageError("data.train is not set; give the unlabeled images, data.train=FILE.beton")
    least = {"count": 1, "views": 1, "samples": 1, "sample_size": 2, "pool": 1, "sheet": 1}
    for name, low in (least | {"epochs": 0, "clusters": 0, "global_batch_size": 1}).items():
        if getattr(cfg, name) < low:
            raise UsageError(f"{name}={getattr(cfg, name)} does not fit; set it to {low} or more")
    if not 0 < cfg.max_similarity <= 1:
        raise UsageError(
            f"max_similarity={cfg.max_similarity} does not fit; set it above 0, at most 1"
        )


def _candidates(dataset: Dataset, count: int) -> tuple[INT64, INT64]:
    """Ids of the images that can be requested, and of those that are labeled.

    Where all are labeled, as in a trial of the method, all are candidates and their labels do not
    count.

    Raises:
        UsageError: If there are fewer than asked for.
    """
    labeled = dataset.labels >= 0
    if labeled.all():
        warnings.warn(
            f"{dataset.path}: all images are labeled already; all are candidates, and their labels "
            "are not looked at",
            stacklevel=3,
        )
        labeled = np.zeros_like(labeled)
    candidates = np.flatnonzero(~labeled)
    if count > len(candidates):
        raise UsageError(
            f"count={count} is more than the {len(candidates)} images that can be requested; set "
            f"it to {len(candidates)} or less"
        )
    return candidates, np.flatnonzero(labeled)


def _recipe(cfg: RequestConfig, sha256: str, fingerprint: str) -> str:
    options = {k: v for k, v in config_to_dict(cfg).items() if k not in _FREE}
    crops = {k: v for k, v in config_to_dict(cfg)["pipeline"].items() if k != "num_threads"}
    facts = {"checkpoint": sha256, "dataset": fingerprint, "pipeline": crops, **options}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _finished(out: Path, recipe: str) -> LabelRequest | None:
    """The request that a folder holds already; None where it is to be made or gone on with.

    Raises:
        UsageError: If another request or something else is in it.
        ValueError: If the request in it is damaged.
    """
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    names.discard(f".{UNFINISHED}.partial")  # killed while it was written
    known = names & {FINISHED, UNFINISHED}
    if (out.exists() and not out.is_dir()) or (names and not known):
        raise UsageError(f"out={out} exists and is no request; give a new or empty folder")
    if names <= {UNFINISHED}:
        return None
    name = FINISHED if FINISHED in known else UNFINISHED
    keys = [one.name for one in fields(LabelRequest)] if name == FINISHED else ["recipe"]
    mend = "remove the folder and make the request anew"
    saved = read_json_object(out / name, keys, mend=mend)
    if saved["recipe"] != recipe:
        raise UsageError(
            f"out={out} holds a request of another checkpoint, dataset or options; give another "
            "folder, or remove it"
        )
    return LabelRequest(**{key: saved[key] for key in keys}) if name == FINISHED else None


def _ranker(checkpoint: Checkpoint, num_candidates: int, cfg: RequestConfig, recipe: str) -> Ranker:
    """What ranks candidates; whatever it cannot do is found now.

    Raises:
        UsageError: If the checkpoint or an option does not fit.
    """
    if cfg.mode is RequestMode.random:
        return partial(_rank_at_random, seed=cfg.seed)
    if cfg.mode is RequestMode.per_sample_runs:
        settings = sample_settings(checkpoint, cfg, num_candidates)
        return partial(rank_by_sample_runs, settings, cfg=cfg, folder=cfg.out / "runs")
    scorer = build_scorer(
        checkpoint,
        resolve_device(cfg.device),
        precision=cfg.precision,
        loader=cfg.pipeline.name,
        num_threads=cfg.pipeline.num_threads,
        batch_size=cfg.global_batch_size,
        seed=cfg.seed,
    )
    return partial(_rank_by_model, scorer, cfg=cfg, recipe=recipe)


def _rank_at_random(dataset: Dataset, candidates: INT64, *, seed: int) -> Ranking:
    del dataset
    keys = draw_keys(seed, _RANDOM, candidates).view(np.uint64)
    return Ranking(candidates[np.argsort(keys, kind="stable")])


def _rank_by_model(
    scorer: Scorer, dataset: Dataset, candidates: INT64, *, cfg: RequestConfig, recipe: str
) -> Ranking:
    loss, rank = score_images(
        scorer,
        dataset,
        candidates,
        pairs=cfg.views,
        negatives=cfg.negatives,
        state=cfg.out / SCORES,
        recipe=recipe,
    )
    columns = {"loss": loss, "rank": rank}
    ranking = Ranking.worst_first(candidates, badness(loss, rank, cfg.rank_by), columns)
    ranking.facts = {"loss_mean": float(loss.mean()), "rank_mean": float(rank.mean())}
    return ranking


def _compares_features(cfg: RequestConfig) -> bool:
    return cfg.max_similarity < 1 or cfg.diversity or cfg.balance is Balance.clusters


def _chosen(
    dataset: Dataset,
    ranking: Ranking,
    labeled: INT64,
    vectors: Vectors | None,
    cfg: RequestConfig,
) -> tuple[INT64, dict[str, Any]]:
    """Places in the ranking of what is requested, rising, and what was found on the way."""
    groups = _groups(dataset, ranking, vectors, cfg)
    sizes = [len(group) for group in groups] if len(groups) > 1 else []
    distinct = Distinct(
        lambda sample: digest(dataset.blob(sample)),
        vectors if cfg.max_similarity < 1 else None,
        cfg.max_similarity,
    )
    distinct.add_known(labeled)
    factor = cfg.pool if cfg.diversity else 1
    groups = spread(groups, distinct, factor * cfg.count)
    if cfg.diversity and vectors is not None:
        wanted = shares([len(group) for group in groups], cfg.count)
        covered = _covered(vectors, labeled)
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
    return chosen, {
        "num_same_bytes": distinct.same_bytes,
        "num_alike": distinct.alike,
        "cluster_sizes": sizes,
    }


def _groups(
    dataset: Dataset, ranking: Ranking, vectors: Vectors | None, cfg: RequestConfig
) -> list[INT64]:
    """Candidates in the order of the ranking, by their clusters where these are wanted.

    The ranking then gets a column that names them.
    """
    if vectors is None or cfg.balance is Balance.none:
        return [ranking.ids]
    number = min(cfg.clusters or len(dataset.classes) or 10, len(ranking.ids))
    of = cluster(vectors, ranking.ids, number, cfg.seed)
    ranking.columns = {**ranking.columns, "cluster": of}
    return [ranking.ids[of == one] for one in range(number)]


def _covered(vectors: Vectors, labeled: INT64) -> Tensor | None:
    """Of the labeled images: what they show needs no label any more."""
    parts = [
        vectors(labeled[start : start + CHUNK_ROWS]) for start in range(0, len(labeled), CHUNK_ROWS)
    ]
    return torch.cat(parts) if parts else None


def _unit_vectors(run: Path, dataset: Dataset, cfg: RequestConfig) -> Vectors:
    """Features less their mean, of length 1: those of a ReLU alone are all alike.

    They lie in a map of the run's cache; only those asked for are in memory.
    """
    encoder = open_encoder(run, cfg)
    folder = features_folder(run) if cfg.cache else None
    asked: FeatureRequest = request_of(cfg)
    rows = dataset_features(encoder, dataset, asked, folder).vectors
    total = torch.zeros(rows.shape[1], dtype=torch.float64, device=rows.device)
    for part in torch.split(rows, CHUNK_ROWS):
        total += part.double().sum(0)
    mean, device = (total / len(rows)).float(), encoder.mean.device

    def vectors(ids: NDArray[np.int64]) -> Tensor:
        found = rows[torch.from_numpy(ids).to(rows.device)] - mean
        return F.normalize(found.to(device), dim=1)

    return vectors
