"""MoCo: query encoder, momentum-updated key encoder, queue (arXiv:1911.05722, Algorithm 1)."""

import copy
from typing import Self

import torch
from torch import Tensor

from fastmoco.moco.batchnorm import resolve_batch_norm
from fastmoco.moco.binary_nce import BinaryNce, chance_binary_nce
from fastmoco.moco.collectives import gather_rows
from fastmoco.moco.encoder import unit_norm
from fastmoco.moco.loss import info_nce, mean_similarity
from fastmoco.moco.loss_choice import resolve_loss
from fastmoco.moco.mechanism import (
    ContrastiveModel,
    Parts,
    StepOutput,
    Views,
    floating_buffers,
    join_outputs,
)
from fastmoco.moco.momentum import KeyMomentum, follow
from fastmoco.moco.queue import Queue, of_first_view
from fastmoco.moco.settings import BatchNorm, Loss, Objective


class MoCo(ContrastiveModel):
    """Query encoder, key encoder and queue.

    Attributes:
        key_encoder: Starts as a copy of the query encoder; only `update_key_encoder` moves it. Its
            batch norm runs in training mode and its buffers are its own, as in the official code
            (but see `running_keys`).
        queue: The negatives; equal on all ranks.
        momentum: m of the key encoder.
        running_keys: Whether the key encoder normalizes by running statistics, which follow those
            of the query encoder by `momentum`: EMAN, another algorithm (arXiv:2101.08482, Eq. 5).
        vectors_per_view: Embeddings of a view, side by side in a row of the queue.
    """

    vectors_per_view = 1

    def __init__(self, parts: Parts) -> None:
        """Build the encoder and its momentum copy, and fill the queue with random vectors."""
        super().__init__(parts)
        moco = parts.moco
        kind, groups = resolve_batch_norm(moco, parts.ranks, parts.accumulate)
        self.key_encoder = copy.deepcopy(self.query_encoder).requires_grad_(False)
        self.queue = Queue(moco.queue_size, self.vectors_per_view * moco.dim)
        self.momentum = KeyMomentum(moco.momentum, moco.final_momentum)
        # Groups of a split batch norm, or the ranks' batches, must differ between query and key.
        self.shuffle_keys = kind is BatchNorm.shuffled and groups > 1
        self.symmetric = moco.symmetric
        self.running_keys = kind is BatchNorm.eman
        is_binary = moco.objective is Objective.binary_nce
        self.binary_nce = BinaryNce(moco.temperature, parts.ranks) if is_binary else None
        self.chance_form = "ln(K+1) + K ln(1+1/K)" if is_binary else self.chance_form
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; with `running_keys` the key encoder only evaluates."""
        super().train(mode)
        self.key_encoder.train(mode and not self.running_keys)
        return self

    def forward(self, views: Views) -> StepOutput:
        """Contrast two views of each image; see `ContrastiveModel.forward`."""
        output = self._contrast_views(views)  # (N, C)
        if self.symmetric:
            # Both directions meet the same queue: no image is a negative of its other view.
            other = self._contrast_views(views.swapped())  # (N, C)
            output = join_outputs([output, other], output.loss + other.loss, terms=2)  # (2N, C)
        output.source = self.key_sources(views)
        return output

    def key_sources(self, views: Views) -> Tensor:
        """Sample id and draw key of each key of `forward`, ``(N, 2)`` or ``(2N, 2)`` int64."""
        ids, draw_keys = views.sample_id, views.draw_key
        if self.symmetric:
            ids, draw_keys = torch.cat([ids, of_first_view(ids)]), draw_keys.repeat(2)
        return torch.stack([ids, draw_keys], dim=1)

    def _contrast_views(self, views: Views) -> StepOutput:
        with torch.no_grad():
            key = self.unshuffled(self.embed_keys(self.shuffled(views)), views)  # (N, C)
        return self.contrast(views.query, key)  # (N, C)

    def contrast(self, query_view: Tensor, key: Tensor) -> StepOutput:
        """Contrast views with keys; also for a part of a batch (`MicroBatches`).

        Args:
            query_view: ``(N, 3, H, W)``, normalized, channels_last.
            key: Unit-norm positive key of each query, ``(N, C)``.
        """
        return self.look_up(self.embed_queries(query_view), key)

    def look_up(self, query: Tensor, key: Tensor) -> StepOutput:
        """Contrast unit-norm queries with their positive keys, ``(N, C)`` each, and the queue."""
        loss, rank = self._objective(query, key)  # (), (N,)
        similarity = mean_similarity(query, self.queue.keys)  # ()
        return StepOutput(loss, query.detach(), key, rank, similarity)

    def _objective(self, query: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        if self.binary_nce is not None:
            return self.binary_nce(query, key, self.queue.keys)  # type: ignore[no-any-return]
        return info_nce(query, key, self.queue.keys, self.temperature, self.loss)

    def embed_queries(self, query_view: Tensor) -> Tensor:
        """Views ``(N, 3, H, W)`` to unit-norm queries ``(N, C)``; gradients flow."""
        return unit_norm(self.query_encoder(query_view))  # (N, C)

    def embed_keys(self, key_view: Tensor) -> Tensor:
        """Views ``(N, 3, H, W)`` to unit-norm keys ``(N, C)``; called without gradient."""
        return unit_norm(self.key_encoder(key_view))  # (N, C)

    def shuffled(self, views: Views) -> Tensor:
        """Key views in the order in which this rank encodes them, ``(N, 3, H, W)``."""
        if not self.shuffle_keys:
            return views.key
        if views.exchange is None:
            return views.key[views.permutation]
        if not self.symmetric:
            return views.key  # the step has exchanged the crops
        # Each view is a query here and a key elsewhere.
        return views.exchange.scattered(views.key.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)

    def unshuffled(self, key: Tensor, views: Views) -> Tensor:
        """Put keys ``(N, C)`` of `shuffled` views back into the order of this rank's images."""
        if not self.shuffle_keys:
            return key
        if views.exchange is None:
            return torch.empty_like(key).index_copy_(0, views.permutation, key)
        return views.exchange.returned(key)

    def running_statistics(self) -> tuple[list[Tensor], list[Tensor]]:
        """Running means and variances of the query and of the key encoder: the buffers."""
        return floating_buffers(self.query_encoder), floating_buffers(self.key_encoder)

    def moved_by_forward(self) -> list[Tensor]:
        """Running statistics, and the normalizer that the first forward pass fixes."""
        fixed = [] if self.binary_nce is None else [self.binary_nce.normalizer]
        return super().moved_by_forward() + fixed

    def chance_among(self, num_negatives: int) -> float:
        """Loss of a random guess in nats, by the objective."""
        if self.binary_nce is not None:
            return chance_binary_nce(num_negatives)
        return super().chance_among(num_negatives)

    def num_negatives(self, _: int) -> int:
        """Length of the queue, for any batch."""
        return len(self.queue.keys)

    def describe(self, global_batch_size: int) -> str:
        """``moco, queue K``, the momentum if it moves, and an objective other than InfoNCE."""
        objective = "" if self.binary_nce is None else ", binary NCE"
        moves = self.momentum.describe()
        return f"moco, queue {self.num_negatives(global_batch_size)}{moves}{objective}"

    def set_progress(self, progress: float) -> None:
        """Move m, if it is scheduled."""
        self.momentum.set_progress(progress)

    def prepare_for_device(self, device: torch.device, loss: Loss) -> None:
        """On a GPU the queue is float16: eight times finer than bfloat16 for unit vectors."""
        if device.type == "cuda":
            self.queue.half()
        if self.binary_nce is None:  # the other objective has the plain form only
            self.loss = resolve_loss(loss, device, self.queue.keys.shape[1], self.ranks)

    @torch.no_grad()
    def after_step(self, output: StepOutput, learned: Tensor | None = None) -> None:
        """Update the key encoder, then enqueue the keys of all ranks in the order of one rank."""
        assert output.source is not None
        self.update_key_encoder(learned)
        keys, source = (self._of_all(rows, output.terms) for rows in (output.key, output.source))
        self.queue.enqueue(keys, learned, source=source)  # (B, C), (B, 2)

    def _of_all(self, rows: Tensor, terms: int) -> Tensor:
        """Gather rows of all ranks; those of a symmetric loss one direction after the other."""
        parts = [gather_rows(part, self.ranks) for part in rows.chunk(terms)]
        return torch.cat(parts) if terms > 1 else parts[0]  # a cat of one part is a launch

    @torch.no_grad()
    def update_key_encoder(self, learned: Tensor | None = None) -> None:
        """``k <- m k + (1 - m) q`` over the parameters, in place (Eq. 2); EMAN's statistics too.

        The official code does it at the start of the next forward pass, Algorithm 1 after the
        optimizer's step, as here: the encoders start equal, so queries and keys are the same at
        every step.

        Args:
            learned: See `after_step`.
        """
        query: list[Tensor] = list(self.query_encoder.parameters())
        key: list[Tensor] = list(self.key_encoder.parameters())
        if self.running_keys:
            running = self.running_statistics()
            query, key = query + running[0], key + running[1]
        follow(key, query, self.momentum.step, learned)
