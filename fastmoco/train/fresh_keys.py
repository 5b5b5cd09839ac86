"""Is a low loss learned, or is it the age of the queue? The same look-up against keys made anew.

Early in a run the query learns to be "newer than the queue": while keys drift fast, an old key is
told from the positive by its age alone, and loss and look-up are better than what was learned. As
drift stops, the logged loss rises to the true one. So the queries of the next steps meet the same
images' keys twice: as the queue holds them, and as the key encoder of this step makes them.

Trade-off: a copy of the model, and some 3,000 images through one encoder at each measurement. They
are decoded on the CPU, whatever loader the run has: on a GPU pixels may differ by a level. At most
2,048 rows of the queue are used, so both losses are lower than ``loss``, which has all K: compare
them with each other.
"""

import copy
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from fastmoco.draws.device import permutation
from fastmoco.draws.host import draw_keys
from fastmoco.draws.streams import INT64, hashed_order
from fastmoco.moco.batchnorm import resolve_batch_norm
from fastmoco.moco.model import MoCo
from fastmoco.moco.queue import UNKNOWN, of_first_view
from fastmoco.moco.settings import BatchNorm, Loss
from fastmoco.optim.precision import autocast
from fastmoco.pipelines.augment import augment_views
from fastmoco.pipelines.beton_loader import build_for_requests
from fastmoco.pipelines.contract import Batch, LoaderSpec
from fastmoco.pipelines.crops import request_of
from fastmoco.ranks import ALONE, Ranks
from fastmoco.runs.distributed import loader_threads
from fastmoco.train.metrics import STEP_METRICS, step_metrics
from fastmoco.train.trainer import Trainer

FRESH_METRICS = ("loss_stale", "loss_fresh", "accuracy_top1_fresh", "key_drift")
MOST_ROWS = 2_048
"""Rows of the queue that are compared."""
QUERIES = 512
"""Least number of queries, or an epoch's; of complete batches, so that keys can be shuffled."""


def fresh_metrics(trainer: Trainer) -> dict[str, float]:
    """Compare the queue's keys with the same keys made anew; `FRESH_METRICS`, or nothing.

    Nothing without a queue, and while a compared row's image is unknown: until the queue was filled
    once. The rows are the same in each call. Nothing of the run changes, and nothing is drawn from
    a generator.
    """
    model = trainer.step.model
    if not isinstance(model, MoCo):
        return {}
    rows = torch.from_numpy(hashed_order(len(model.queue.keys))[:MOST_ROWS]).to(trainer.device)
    source: INT64 = model.queue.source[rows].cpu().numpy()
    if (source[:, 0] == UNKNOWN).any():
        return {}
    return _Comparison(trainer, model).measure(model.queue.keys[rows], source)


class _Comparison:
    """A copy of the model, in training mode on this rank alone, and the crops to give it."""

    def __init__(self, trainer: Trainer, model: MoCo) -> None:
        self._trainer, self._model = trainer, copy.deepcopy(model)
        self._model.loss = Loss.plain
        for module in self._model.modules():
            if isinstance(vars(module).get("ranks"), Ranks):
                vars(module)["ranks"] = ALONE  # a collective would wait for the others
        cfg, ranks = trainer.cfg, trainer.ranks
        kind, _ = resolve_batch_norm(cfg.moco, ranks, cfg.train.accumulate)
        # Images of one forward pass in training; split batch norm has its groups within.
        parts = cfg.train.accumulate
        parts *= 1 if kind is BatchNorm.synchronized else ranks.world_size
        self._count = cfg.global_batch_size // parts
        threads = loader_threads(cfg.pipeline.num_threads)
        self._spec = LoaderSpec.of(replace(cfg.pipeline, num_threads=threads), cfg.policy)

    @torch.no_grad()
    def measure(self, stale: Tensor, source: INT64) -> dict[str, float]:
        """`FRESH_METRICS` of rows ``(R, C)`` and their sources ``(R, 2)``."""
        with autocast(self._trainer.device, self._trainer.step.autocast_dtype):
            fresh = self._made_anew(source).to(stale.dtype)
            query, key = self._pairs()
            found = [self._look_up(query, key, rows) for rows in (stale, fresh)]
        loss, top1 = (STEP_METRICS.index(name) for name in ("loss", "accuracy_top1"))
        against_stale, against_fresh = torch.stack(found).tolist()
        return {
            "loss_stale": against_stale[loss],
            "loss_fresh": against_fresh[loss],
            "accuracy_top1_fresh": against_fresh[top1],
            "key_drift": (1 - (stale.float() * fresh.float()).sum(1).mean()).item(),
        }

    def _made_anew(self, source: INT64) -> Tensor:
        """Keys of the rows' images, ``(R, C)``; the last part is filled up with the first rows."""
        padded = np.resize(source, (-(-len(source) // self._count) * self._count, 2))
        return self._embedded(padded, self._model.embed_keys)[: len(source)]

    def _pairs(self) -> tuple[Tensor, Tensor]:
        """Queries and keys of the next steps, ``(Q, C)`` each; keys are shuffled as in training."""
        queries, keys = [], []
        for source in self._next_sources():
            first = np.stack([of_first_view(source[:, 0]), source[:, 1]], axis=1)
            queries.append(self._embedded(first, self._model.embed_queries))
            order = permutation(torch.from_numpy(source[:, 1]))  # of the complete batch
            order = order if self._model.shuffle_keys else torch.arange(len(source))
            shuffled = self._embedded(source[order.numpy()], self._model.embed_keys)
            keys.append(
                torch.empty_like(shuffled).index_copy_(0, order.to(shuffled.device), shuffled)
            )
        return torch.cat(queries), torch.cat(keys)

    def _next_sources(self) -> Iterator[INT64]:
        """Sources of each of the next global batches; at the end of the run, of those to follow."""
        trainer = self._trainer
        epoch, batch = divmod(trainer.steps_done, trainer.steps_per_epoch)
        plan = replace(trainer.plan(epoch=epoch, start_batch=batch), rank=0, world_size=1)
        steps = (
            np.stack([ids, draw_keys(one.seed, one.epoch, ids)], axis=1)
            for one in plan.epochs(epoch + 2)
            for ids in one.batches()
        )
        count = -(-QUERIES // trainer.cfg.global_batch_size)
        return islice(steps, min(count, trainer.steps_per_epoch))

    def _embedded(self, source: INT64, encode: Callable[[Tensor], Tensor]) -> Tensor:
        """Embeddings of views, ``(R, C)``, in parts of the size of training.

        Args:
            source: As `Queue.source`, ``(R, 2)``; R is a multiple of the images of a part.
            encode: Views to embeddings.
        """
        dataset, device = self._trainer.dataset, self._trainer.device
        of_first = source[:, 0] < 0
        ids = np.where(of_first, of_first_view(source[:, 0]), source[:, 0])
        parts = np.arange(len(source)).reshape(-1, self._count)
        requests = (request_of(dataset, ids[part], source[part, 1], self._spec) for part in parts)
        flags = torch.from_numpy(of_first[parts]).to(device)[..., None, None, None]
        arguments = (dataset.decode, dataset, requests, self._count, self._spec, device)
        with closing(build_for_requests(*arguments)) as loader:
            views = (self._views(batch) for batch in loader)
            pairs = zip(views, flags, strict=True)
            return torch.cat(
                [encode(torch.where(flag, first, second)) for (first, second), flag in pairs]
            )

    def _views(self, batch: Batch) -> tuple[Tensor, ...]:
        step = self._trainer.step
        return augment_views(
            batch.crops,
            batch.draw_key,
            step.policy,
            step.mean,
            step.std,
            step.view_dtype,
            by_kornia=step.by_kornia,
        )

    def _look_up(self, query: Tensor, key: Tensor, negatives: Tensor) -> Tensor:
        """`step_metrics` against negatives ``(R, C)``."""
        self._model.queue.keys = negatives
        return step_metrics(self._model.look_up(query, key))
