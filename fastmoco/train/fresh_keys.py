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
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice

import numpy as np
import torch
from torch import Tensor

from fastmoco.draws.device import permutation
from fastmoco.draws.streams import INT64, hashed_order
from fastmoco.moco.batchnorm import SynchronizedBatchNorm2d, resolve_batch_norm
from fastmoco.moco.model import MoCo
from fastmoco.moco.queue import UNKNOWN, of_first_view
from fastmoco.moco.settings import BatchNorm, Loss
from fastmoco.optim.precision import autocast
from fastmoco.pipelines.augment import augment_views
from fastmoco.pipelines.beton_loader import build_for_requests
from fastmoco.pipelines.contract import Batch, LoaderSpec
from fastmoco.pipelines.crops import BatchRequest, batch_requests, request_of
from fastmoco.ranks import ALONE
from fastmoco.runs.distributed import loader_threads
from fastmoco.train.metrics import STEP_METRICS, step_metrics
from fastmoco.train.trainer import Trainer

FRESH_METRICS = ("loss_stale", "loss_fresh", "accuracy_top1_fresh", "key_drift")
MOST_ROWS = 2_048
"""Rows of the queue that are compared."""
QUERIES = 512
"""Least number of queries; they are a few batches of one group each."""


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
        self._model.loss, self._model.ranks = Loss.plain, ALONE
        for module in self._model.modules():
            if isinstance(module, SynchronizedBatchNorm2d):
                module.ranks = ALONE
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
            fresh = self._made_anew(source)[: len(stale)].to(stale.dtype)
            found = [self._look_up(batch, stale, fresh) for batch in self._batches(self._queries())]
        loss, top1 = (STEP_METRICS.index(name) for name in ("loss", "accuracy_top1"))
        against_stale, against_fresh = torch.stack(found).mean(0).tolist()
        return {
            "loss_stale": against_stale[loss],
            "loss_fresh": against_fresh[loss],
            "accuracy_top1_fresh": against_fresh[top1],
            "key_drift": (1 - (stale.float() * fresh.float()).sum(1).mean()).item(),
        }

    def _batches(self, requests: Iterator[BatchRequest]) -> Iterator[Batch]:
        dataset, device = self._trainer.dataset, self._trainer.device
        arguments = (dataset.decode, dataset, requests, self._count, self._spec, device)
        with closing(build_for_requests(*arguments)) as loader:
            yield from loader

    def _made_anew(self, source: INT64) -> Tensor:
        """Keys of the rows' images, ``(R, C)``; the last batch is filled up with the first rows."""
        padded = np.resize(source, (-(-len(source) // self._count) * self._count, 2))
        of_first = padded[:, 0] < 0
        ids = np.where(of_first, of_first_view(padded[:, 0]), padded[:, 0])
        parts = np.arange(len(padded)).reshape(-1, self._count)
        requests = (
            request_of(self._trainer.dataset, ids[part], padded[part, 1], self._spec)
            for part in parts
        )
        flags = torch.from_numpy(of_first[parts]).to(self._trainer.device)
        keys = []
        for batch, is_first in zip(self._batches(requests), flags, strict=True):
            first, second = self._views(batch)
            view = torch.where(is_first[:, None, None, None], first, second)
            keys.append(self._model.embed_keys(view))
        return torch.cat(keys)

    def _queries(self) -> Iterator[BatchRequest]:
        """The images of the next steps: at the end of the run, of the steps that would follow."""
        trainer = self._trainer
        epoch, batch = divmod(trainer.steps_done, trainer.steps_per_epoch)
        plan = trainer.plan(epoch=epoch, start_batch=batch)
        plan = replace(plan, rank=0, world_size=1)
        steps = batch_requests(trainer.dataset, plan, self._spec, stop_epoch=epoch + 1 + QUERIES)
        parts = (part for step in steps for part in _parts(step, self._count))
        return islice(parts, -(-QUERIES // self._count))

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

    def _look_up(self, batch: Batch, *negatives: Tensor) -> Tensor:
        """`step_metrics` of a batch against each of the ``(R, C)``; keys are shuffled."""
        view, key_view = self._views(batch)
        order, query = permutation(batch.draw_key), self._model.embed_queries(view)
        shuffled = self._model.embed_keys(self._model.shuffled(key_view, order))
        key, found = self._model.unshuffled(shuffled, order), []
        for rows in negatives:
            self._model.queue.keys = rows
            found.append(step_metrics(self._model.look_up(query, key)))
        return torch.stack(found)


def _parts(request: BatchRequest, count: int) -> Iterator[BatchRequest]:
    """Cut a batch into parts of `count` images."""
    for start in range(0, len(request.sample_id), count):
        rows = slice(start, start + count)
        yield BatchRequest(
            request.sample_id[rows],
            request.draw_key[rows],
            request.label[rows],
            request.boxes[rows],
        )
