"""Mean contrastive loss and rank of each image: how badly a trained model tells it from others.

Both encoders run in evaluation mode, so that an image's scores do not depend on its batch. (The
queue's keys were made in training mode, as in the official code.) Scores are saved at intervals,
so that an interrupted ranking resumes.
"""

import time
import zipfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fastmoco.configuration import config_from_dict
from fastmoco.data.dataset import Dataset
from fastmoco.data.progress import show_progress
from fastmoco.device import resolve_device
from fastmoco.draws.host import draw_keys
from fastmoco.draws.streams import INT64, Stream
from fastmoco.errors import UsageError
from fastmoco.files import atomic_path
from fastmoco.labeling.ranking import FLOAT64, Ranking, badness
from fastmoco.labeling.settings import NegativesFrom, RequestConfig
from fastmoco.moco.build import build_model
from fastmoco.moco.encoder import unit_norm
from fastmoco.moco.model import MoCo
from fastmoco.moco.settings import Mechanism, Pretext
from fastmoco.optim.precision import autocast, dtype_of
from fastmoco.pipelines.augment import augment_views
from fastmoco.pipelines.build import build_loader
from fastmoco.pipelines.contract import Batch, EpochPlan, LoaderSpec, ViewLoader
from fastmoco.pipelines.policies import Policy
from fastmoco.runs.checkpoint import Checkpoint, restore_module, under_prefix
from fastmoco.train.settings import TrainConfig

SAVE_SECONDS = 60.0


@dataclass(kw_only=True, slots=True)
class Scorer:
    """A trained model, and what its views are made with."""

    model: MoCo
    """In evaluation mode, on the device."""
    policy: Policy
    view_size: int
    mean: Tensor
    """Channel mean, ``(3,)`` in 0..1, on the device."""
    std: Tensor
    cfg: RequestConfig

    @torch.no_grad()
    def embed(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Unit-norm queries of the first views, and keys of the second, ``(N, C)`` float32."""
        views = augment_views(
            batch.crops, batch.draw_key, self.policy, self.mean, self.std, torch.float32
        )
        with autocast(self.mean.device, dtype_of(self.cfg.precision, self.mean.device)):
            query = unit_norm(self.model.query_encoder(views[0]))
            return query.float(), self.model.embed_keys(views[1]).float()

    def open_loader(self, dataset: Dataset, plan: EpochPlan, stop_epoch: int) -> ViewLoader:
        """Open a loader of two crops of each image of the plan."""
        threads = self.cfg.pipeline.num_threads
        spec = LoaderSpec(view_size=self.view_size, policy=self.policy, num_threads=threads)
        return build_loader(
            dataset,
            plan,
            spec=spec,
            stop_epoch=stop_epoch,
            device=self.mean.device,
            name=self.cfg.pipeline.name,
        )

    def plan(self, ids: INT64, epoch: int, start_batch: int = 0) -> EpochPlan:
        """A plan that visits samples in the given order."""
        return EpochPlan(
            seed=self.cfg.seed,
            epoch=epoch,
            num_samples=len(ids),
            global_batch_size=self.cfg.global_batch_size,
            training=False,
            start_batch=start_batch,
            sample_ids=ids,
        )


def load_moco(checkpoint: Checkpoint, device: torch.device) -> tuple[MoCo, TrainConfig]:
    """Both encoders and the queue of a checkpoint, in evaluation mode, and its configuration.

    Raises:
        UsageError: If it has no key encoder and no queue, or another pretext task.
        CheckpointError: If it is damaged.
    """
    advice = "or use mode=per_sample_runs or mode=random"
    cfg = config_from_dict(TrainConfig, checkpoint.facts["config"])
    if cfg.moco.mechanism is not Mechanism.moco or "model.queue.keys" not in checkpoint.tensors:
        exported = cfg.moco.mechanism is Mechanism.moco
        what = "is exported or imported" if exported else f"has moco.mechanism={cfg.moco.mechanism}"
        raise UsageError(
            f"mode=trained needs a key encoder and a queue, but {checkpoint.path} {what}; "
            f"give a run of moco.mechanism=moco, {advice}"
        )
    if cfg.moco.pretext is not Pretext.instance:
        raise UsageError(
            f"mode=trained needs moco.pretext=instance, but {checkpoint.path} has "
            f"moco.pretext={cfg.moco.pretext}; give a run of moco.pretext=instance, {advice}"
        )
    model = build_model(cfg.model, cfg.moco, view_size=cfg.pipeline.view_size)
    assert isinstance(model, MoCo)
    restore_module(model, under_prefix("model", checkpoint.tensors), checkpoint)
    model.requires_grad_(False).eval()
    return model.to(device).to(memory_format=torch.channels_last), cfg


def build_scorer(checkpoint: Checkpoint, cfg: RequestConfig) -> Scorer:
    """A scorer with the policy, view size and normalization of a checkpoint's run.

    Raises:
        UsageError: If the checkpoint cannot rank images, or there is no such device.
        CheckpointError: If it is damaged.
    """
    device = resolve_device(cfg.device)
    model, trained = load_moco(checkpoint, device)
    return Scorer(
        model=model,
        policy=trained.policy,
        view_size=trained.pipeline.view_size,
        mean=torch.tensor(checkpoint.facts["channel_mean"], device=device),
        std=torch.tensor(checkpoint.facts["channel_std"], device=device),
        cfg=cfg,
    )


def look_up(
    query: Tensor, key: Tensor, negatives: Tensor, temperature: float, left_out: Tensor | None
) -> tuple[Tensor, Tensor]:
    """InfoNCE of each query (arXiv:1911.05722, Eq. 1) and its rank in the (K+1)-way look-up.

    Args:
        query: Unit-norm queries, ``(N, C)``.
        key: Unit-norm positive key of each query, ``(N, C)``.
        negatives: Unit-norm negatives, ``(K, C)``.
        temperature: tau > 0.
        left_out: Mask of the negatives that each query ignores, ``(N, K)`` bool; None ignores none.

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
    """Each candidate's sums over the pairs of views scored so far, and the progress."""

    path: Path
    """File that keeps this state."""
    recipe: str
    """Hash of everything that decides the scores."""
    loss: FLOAT64
    rank: FLOAT64
    pair: int = 0
    """Number of pairs of views that all candidates are scored on."""
    batch: int = 0
    """Number of finished batches of the next pair."""

    def save(self) -> None:
        """Write the state atomically."""
        recipe, place = np.array(self.recipe), np.array([self.pair, self.batch])
        with atomic_path(self.path) as temporary, temporary.open("wb") as file:
            np.savez(file, loss=self.loss, rank=self.rank, place=place, recipe=recipe)

    @classmethod
    def resume(cls, path: Path, recipe: str, count: int) -> "PretextScores":
        """Read what an interrupted run with this recipe saved, or start at zero."""
        try:
            with np.load(path, allow_pickle=False) as saved:
                if str(saved["recipe"]) == recipe and len(saved["loss"]) == count:
                    progress = map(int, saved["place"])
                    return cls(path, recipe, saved["loss"], saved["rank"], *progress)
        except (OSError, ValueError, KeyError, zipfile.BadZipFile):
            pass  # missing or damaged: computed again
        return cls(path, recipe, np.zeros(count), np.zeros(count))


def rank_by_scores(
    scorer: Scorer, dataset: Dataset, ids: INT64, *, state: Path, recipe: str
) -> Ranking:
    """Rank images by loss and rank, each the mean over `views` pairs of views.

    Pair p has the views that epoch p of a run with this seed would see.

    Args:
        scorer: The trained model and the request's options.
        dataset: Open dataset.
        ids: Sample ids of the images, ``(n,)``.
        state: File that keeps finished work, so that an interrupted ranking resumes.
        recipe: Hash of everything that decides the scores; a state with another one is ignored.

    Returns:
        The hardest image first, with ``loss`` in nats and ``rank``, the mean number of negatives
        above the positive, as float64 columns.
    """
    scores, cfg = PretextScores.resume(state, recipe, len(ids)), scorer.cfg
    if scores.pair < cfg.views:
        _score(scorer, dataset, ids, scores)
        scores.save()
    loss, rank = scores.loss / cfg.views, scores.rank / cfg.views
    columns = {"loss": loss, "rank": rank}
    ranking = Ranking.worst_first(ids, badness(loss, rank, cfg.rank_by), columns)
    ranking.facts = {"loss_mean": float(loss.mean()), "rank_mean": float(rank.mean())}
    return ranking


def _score(scorer: Scorer, dataset: Dataset, ids: INT64, scores: PretextScores) -> None:
    """Add the remaining pairs of views to the scores."""
    (negatives, owners), pairs = _negatives(scorer, dataset), scorer.cfg.views
    plan = scorer.plan(ids, scores.pair, scores.batch)
    size, saved = plan.global_batch_size, time.monotonic()
    done = scores.pair * len(ids) + min(scores.batch * size, len(ids))
    with (
        show_progress(pairs * len(ids), done) as advance,
        closing(scorer.open_loader(dataset, plan, pairs)) as loader,
    ):
        for batch in loader:
            query, key = scorer.embed(batch)
            left_out = None if owners is None else batch.sample_id[:, None] == owners
            loss, rank = look_up(query, key, negatives, scorer.model.temperature, left_out)
            rows = slice(scores.batch * size, scores.batch * size + len(loss))
            scores.loss[rows] += loss.double().cpu().numpy()
            scores.rank[rows] += rank.cpu().numpy()
            scores.batch += 1
            if scores.batch == plan.num_batches:
                scores.pair, scores.batch = scores.pair + 1, 0
            advance(len(loss), int(dataset.sizes[ids[rows]].sum()))
            if time.monotonic() - saved >= SAVE_SECONDS:
                scores.save()
                saved = time.monotonic()


@torch.no_grad()
def _negatives(scorer: Scorer, dataset: Dataset) -> tuple[Tensor, Tensor | None]:
    """The queue, or new keys of as many random images of the dataset.

    Returns:
        Keys, ``(K, C)`` float32, and the sample id of each key, ``(K,)``, or None if unknown.
    """
    keys = scorer.model.queue.keys.float()
    if scorer.cfg.negatives is NegativesFrom.queue:
        return keys, None
    epoch = int(Stream.SCORE_NEGATIVES)
    order = np.argsort(draw_keys(scorer.cfg.seed, epoch, np.arange(len(dataset))), kind="stable")
    chosen = np.sort(order[: len(keys)])
    plan = scorer.plan(chosen, epoch)
    with closing(scorer.open_loader(dataset, plan, epoch + 1)) as loader:
        made = [scorer.embed(batch)[1] for batch in loader]
    return torch.cat(made), torch.from_numpy(chosen).to(keys.device)
