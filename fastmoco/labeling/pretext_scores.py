"""How badly a trained model tells each image of a dataset from others: loss and rank, averaged.

Both encoders run in evaluation mode: an image's figures then do not depend on its batch. (The
queue's keys were made in training mode, as the official code makes them.) Scores of a long run are
saved as they come, and the next one goes on from there.
"""

import time
import zipfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fastmoco.configuration import config_from_dict
from fastmoco.data.dataset import Dataset
from fastmoco.data.progress import show_progress
from fastmoco.draws.host import draw_keys
from fastmoco.draws.streams import INT64
from fastmoco.errors import UsageError
from fastmoco.files import atomic_path
from fastmoco.labeling.ranking import FLOAT64
from fastmoco.labeling.settings import NegativesFrom
from fastmoco.moco.build import build_model
from fastmoco.moco.encoder import unit_norm
from fastmoco.moco.model import MoCo
from fastmoco.moco.settings import Mechanism, Pretext
from fastmoco.optim.precision import AUTOCAST_DTYPES
from fastmoco.pipelines.augment import augment_views
from fastmoco.pipelines.build import build_loader
from fastmoco.pipelines.contract import Batch, EpochPlan, LoaderSpec, ViewLoader
from fastmoco.pipelines.policies import Policy
from fastmoco.runs.checkpoint import Checkpoint, restore_module, under_prefix
from fastmoco.train.settings import TrainConfig

SAVE_SECONDS = 60.0
_NEGATIVES = 2**30 + 16  # in place of the epoch in a draw's key, far from any epoch


@dataclass(kw_only=True, slots=True)
class Scorer:
    """A trained model and all that its views are made of."""

    model: MoCo
    """In evaluation mode, on the device."""
    policy: Policy
    view_size: int
    mean: Tensor
    """``(3,)`` in 0..1, on the device."""
    std: Tensor
    dtype: torch.dtype
    """Of the encoders, by autocast."""
    loader: str
    num_threads: int
    batch_size: int
    seed: int

    @torch.no_grad()
    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Unit-norm queries of the first views, and keys of the second, ``(N, C)`` float32."""
        device = self.mean.device.type
        views = augment_views(
            batch.crops, batch.draw_key, self.policy, self.mean, self.std, torch.float32
        )
        with torch.autocast(device, self.dtype, enabled=self.dtype is not torch.float32):
            query = unit_norm(self.model.query_encoder(views[0]))
            return query.float(), self.model.embed_keys(views[1]).float()

    def open_loader(self, dataset: Dataset, plan: EpochPlan, stop_epoch: int) -> ViewLoader:
        """Two crops of each image of the plan."""
        spec = LoaderSpec(
            view_size=self.view_size, policy=self.policy, num_threads=self.num_threads
        )
        return build_loader(
            dataset,
            plan,
            spec=spec,
            stop_epoch=stop_epoch,
            device=self.mean.device,
            name=self.loader,
        )

    def plan(self, ids: INT64, epoch: int, start_batch: int = 0) -> EpochPlan:
        """Some samples in the order given."""
        return EpochPlan(
            seed=self.seed,
            epoch=epoch,
            num_samples=len(ids),
            global_batch_size=self.batch_size,
            training=False,
            start_batch=start_batch,
            sample_ids=ids,
        )


def load_moco(checkpoint: Checkpoint, device: torch.device) -> tuple[MoCo, TrainConfig]:
    """The whole model of a checkpoint, in evaluation mode.

    Raises:
        UsageError: If it has no key encoder and no queue, or another pretext task.
        CheckpointError: If it is damaged.
    """
    cfg = config_from_dict(TrainConfig, checkpoint.facts["config"])
    if cfg.moco.mechanism is not Mechanism.moco or "model.queue.keys" not in checkpoint.tensors:
        what = f"moco.mechanism={cfg.moco.mechanism}"
        if cfg.moco.mechanism is Mechanism.moco:
            what = "an exported or imported encoder"
        raise UsageError(
            f"{checkpoint.path} is of {what}, which has no key encoder and no queue to rank images "
            "by; give a run of moco.mechanism=moco, or mode=per_sample_runs or mode=random"
        )
    if cfg.moco.pretext is not Pretext.instance:
        raise UsageError(
            f"{checkpoint.path} has moco.pretext={cfg.moco.pretext}; images are ranked by runs of "
            "moco.pretext=instance, or with mode=per_sample_runs or mode=random"
        )
    model = build_model(cfg.model, cfg.moco, view_size=cfg.pipeline.view_size)
    assert isinstance(model, MoCo)
    restore_module(model, under_prefix("model", checkpoint.tensors), checkpoint)
    model.requires_grad_(False).eval()
    return model.to(device).to(memory_format=torch.channels_last), cfg


def build_scorer(checkpoint: Checkpoint, device: torch.device, **options: Any) -> Scorer:
    """A scorer of a run's checkpoint, with the run's policy, view size and normalization."""
    model, cfg = load_moco(checkpoint, device)
    facts = checkpoint.facts
    precision = options.pop("precision")
    return Scorer(
        model=model,
        policy=cfg.policy,
        view_size=cfg.pipeline.view_size,
        mean=torch.tensor(facts["channel_mean"], device=device),
        std=torch.tensor(facts["channel_std"], device=device),
        dtype=AUTOCAST_DTYPES[precision],
        **options,
    )


def look_up(
    query: Tensor, key: Tensor, negatives: Tensor, temperature: float, left_out: Tensor | None
) -> tuple[Tensor, Tensor]:
    """InfoNCE of each query (arXiv:1911.05722, Eq. 1) and its place in the (K+1)-way look-up.

    Args:
        query: Unit-norm, ``(N, C)``.
        key: The positive of each, ``(N, C)``.
        negatives: Unit-norm, ``(K, C)``.
        temperature: tau > 0.
        left_out: ``(N, K)`` bool: negatives that do not count for a query; None: all count.

    Returns:
        Loss in nats and number of negatives above the positive, ``(N,)`` float32 and int64.
    """
    positive = (query * key).sum(1, keepdim=True)
    similarity = query @ negatives.T
    if left_out is not None:
        similarity = similarity.masked_fill(left_out, -torch.inf)
    logits = torch.cat([positive, similarity], 1) / temperature
    return logits.logsumexp(1) - logits[:, 0], (similarity > positive).sum(1)


@dataclass(slots=True)
class PretextScores:
    """Of each candidate, the sums over the pairs of views done so far, and how far that is."""

    loss: FLOAT64
    rank: FLOAT64
    pair: int = 0
    """Pairs of views that all candidates have behind them."""
    batch: int = 0
    """Batches of the next pair that are done."""

    def save(self, path: Path, recipe: str) -> None:
        """Write the state, whole or not at all."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            place = np.array([self.pair, self.batch])
            np.savez(file, loss=self.loss, rank=self.rank, place=place, recipe=np.array(recipe))

    @classmethod
    def resume(cls, path: Path, recipe: str, count: int) -> "PretextScores":
        """What an interrupted run saved, or the start where there is nothing of this recipe."""
        try:
            with np.load(path, allow_pickle=False) as saved:
                if str(saved["recipe"]) == recipe and len(saved["loss"]) == count:
                    return cls(saved["loss"], saved["rank"], *map(int, saved["place"]))
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            pass  # missing or damaged: computed anew
        return cls(np.zeros(count), np.zeros(count))


@dataclass(slots=True)
class _Negatives:
    """What candidates are told from."""

    keys: Tensor
    """``(K, C)`` float32."""
    ids: Tensor | None
    """``(K,)`` samples that the keys are of; None where that is not known."""

    def left_out(self, sample_id: Tensor) -> Tensor | None:
        """Which keys are of the queries' own images, ``(N, K)``."""
        return None if self.ids is None else sample_id[:, None] == self.ids


def score_images(
    scorer: Scorer,
    dataset: Dataset,
    ids: INT64,
    *,
    pairs: int,
    negatives: NegativesFrom,
    state: Path,
    recipe: str,
) -> tuple[FLOAT64, FLOAT64]:
    """Loss and rank of images, each the mean over pairs of views.

    Args:
        scorer: Of the run.
        dataset: Open.
        ids: Of the images, ``(n,)``.
        pairs: Pairs of views of each image; pair p is what epoch p of a run of this seed would see.
        negatives: From where.
        state: File that keeps what is done.
        recipe: Hash of all that decides the scores: a state of another one does not count.

    Returns:
        Loss in nats and mean number of negatives above the positive, ``(n,)`` float64 each.
    """
    scores = PretextScores.resume(state, recipe, len(ids))
    if scores.pair < pairs:
        others = _negatives(scorer, dataset, negatives)
        _score(scorer, dataset, ids, pairs, others, scores, state, recipe)
        scores.save(state, recipe)
    return scores.loss / pairs, scores.rank / pairs


def _score(
    scorer: Scorer,
    dataset: Dataset,
    ids: INT64,
    pairs: int,
    others: _Negatives,
    scores: PretextScores,
    state: Path,
    recipe: str,
) -> None:
    """The rest of all pairs of views, into the scores."""
    plan = scorer.plan(ids, scores.pair, scores.batch)
    size, saved = scorer.batch_size, time.monotonic()
    done = scores.pair * len(ids) + min(scores.batch * size, len(ids))
    with (
        show_progress(pairs * len(ids), done) as advance,
        closing(scorer.open_loader(dataset, plan, pairs)) as loader,
    ):
        for batch in loader:
            query, key = scorer.embed(batch)
            left_out = others.left_out(batch.sample_id)
            loss, rank = look_up(query, key, others.keys, scorer.model.temperature, left_out)
            rows = slice(scores.batch * size, scores.batch * size + len(loss))
            scores.loss[rows] += loss.double().cpu().numpy()
            scores.rank[rows] += rank.cpu().numpy()
            scores.batch += 1
            if scores.batch == plan.num_batches:
                scores.pair, scores.batch = scores.pair + 1, 0
            advance(len(loss), int(dataset.sizes[ids[rows]].sum()))
            if time.monotonic() - saved >= SAVE_SECONDS:
                scores.save(state, recipe)
                saved = time.monotonic()


@torch.no_grad()
def _negatives(scorer: Scorer, dataset: Dataset, which: NegativesFrom) -> _Negatives:
    """The queue, or keys of as many images of the dataset, drawn at random."""
    keys = scorer.model.queue.keys.float()
    if which is NegativesFrom.queue:
        return _Negatives(keys, None)
    order = np.argsort(draw_keys(scorer.seed, _NEGATIVES, np.arange(len(dataset))), kind="stable")
    chosen = np.sort(order[: len(keys)])
    plan = scorer.plan(chosen, _NEGATIVES)
    with closing(scorer.open_loader(dataset, plan, _NEGATIVES + 1)) as loader:
        made = [scorer.embed(batch)[1] for batch in loader]
    return _Negatives(torch.cat(made), torch.from_numpy(chosen).to(keys.device))
