"""MoCo: query encoder, momentum-updated key encoder, queue (arXiv:1911.05722, Algorithm 1)."""

import copy
from typing import Self

import torch
from torch import Tensor, nn

from fastmoco.moco.backbone import Backbone
from fastmoco.moco.batchnorm import resolve_batch_norm
from fastmoco.moco.collectives import gather_rows, own_rows
from fastmoco.moco.encoder import Encoder, unit_norm
from fastmoco.moco.loss import info_nce, resolve_loss
from fastmoco.moco.mechanism import ContrastiveModel, Parts, StepOutput, Views, floating_buffers
from fastmoco.moco.momentum import KeyMomentum, follow
from fastmoco.moco.queue import Queue
from fastmoco.moco.settings import BatchNorm, Loss
from fastmoco.ranks import ALONE, Ranks


class MoCo(ContrastiveModel):
    """Query encoder, key encoder and queue.

    Attributes:
        query_encoder: ``backbone`` and ``head``; trained by gradients.
        key_encoder: Starts as a copy; moves by `update_key_encoder` alone. Its batch norm runs in
            training mode and its buffers are its own, as in the official code (but see
            `running_keys`).
        queue: The negatives; equal on all ranks.
        momentum: m of the key encoder.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        *,
        dim: int,
        queue_size: int,
        momentum: float,
        temperature: float,
        shuffle_keys: bool,
        final_momentum: float | None = None,
        symmetric: bool = False,
        running_keys: bool = False,
        ranks: Ranks = ALONE,
        loss: Loss = Loss.plain,
    ) -> None:
        """Take the encoder's two parts and make its momentum copy.

        Args:
            backbone: Images to features.
            head: Features to embeddings.
            dim: C, the embedding's length.
            queue_size: K.
            momentum: m of the key encoder, in [0, 1].
            temperature: tau > 0.
            shuffle_keys: Permute the keys' batch before the key encoder, so that groups of a split
                batch norm, or the ranks' batches, differ between queries and keys.
            final_momentum: m at the end of the run (`KeyMomentum`); None: as at the start.
            symmetric: Each view once as query and once as key; the loss is the sum of both.
            running_keys: The key encoder normalizes by running statistics, which follow those of
                the query encoder by `momentum`: EMAN, another algorithm (arXiv:2101.08482, Eq. 5).
            ranks: Which part of a global batch this process sees.
            loss: How InfoNCE is computed; not ``auto``.
        """
        super().__init__(ranks)
        self.query_encoder = Encoder(backbone, head)
        self.key_encoder = copy.deepcopy(self.query_encoder).requires_grad_(False)
        self.queue = Queue(queue_size, dim)
        self.momentum = KeyMomentum(momentum, final_momentum)
        self.temperature = temperature
        self.shuffle_keys = shuffle_keys
        self.symmetric = symmetric
        self.running_keys = running_keys
        self.loss = loss
        self.train()

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; with `running_keys` the key encoder only evaluates."""
        super().train(mode)
        self.key_encoder.train(mode and not self.running_keys)
        return self

    @classmethod
    def build(cls, parts: Parts) -> Self:
        """The mechanism that a configuration describes."""
        moco = parts.moco
        kind, groups = resolve_batch_norm(moco, parts.ranks, parts.accumulate)
        return cls(
            parts.backbone,
            cls.make_head(parts),
            dim=moco.dim,
            queue_size=moco.queue_size,
            momentum=moco.momentum,
            final_momentum=moco.final_momentum,
            temperature=moco.temperature,
            shuffle_keys=kind is BatchNorm.shuffled and groups > 1,
            running_keys=kind is BatchNorm.eman,
            ranks=parts.ranks,
            symmetric=moco.symmetric,
        )

    def forward(self, views: Views) -> StepOutput:
        """Contrast two views of each image; changes nothing but batch norm's running statistics."""
        output = self._contrast_views(views)
        if not self.symmetric:
            return output
        # Both halves meet the same queue: no image is a negative of its other view.
        other = self._contrast_views(views.swapped())
        return StepOutput(
            output.loss + other.loss,
            torch.cat([output.query, other.query]),  # (2N, C)
            torch.cat([output.key, other.key]),  # (2N, C)
            torch.cat([output.rank, other.rank]),  # (2N,)
            (output.negative_similarity + other.negative_similarity) / 2,
            terms=2,
            factor=output.factor,
        )

    def _contrast_views(self, views: Views) -> StepOutput:
        with torch.no_grad():
            key_view = self.shuffled(views.key, views.permutation)  # (N, 3, H, W)
            key = self.unshuffled(self.embed_keys(key_view), views.permutation)  # (N, C)
        return self.contrast(views.query, key)

    def contrast(self, query_view: Tensor, key: Tensor) -> StepOutput:
        """Contrast views with keys; also for a part of a batch (`MicroBatches`).

        Args:
            query_view: ``(N, 3, H, W)``, normalized, channels_last.
            key: Unit-norm key of each, ``(N, C)``.
        """
        query = unit_norm(self.query_encoder(query_view))  # (N, C)
        loss, rank = info_nce(query, key, self.queue.keys, self.temperature, self.loss)  # (), (N,)
        query = query.detach()
        similarity = (query.mean(dim=0) * self.queue.keys.to(query.dtype).mean(dim=0)).sum()
        return StepOutput(loss, query, key, rank, similarity)

    def embed_keys(self, key_view: Tensor) -> Tensor:
        """Views ``(N, 3, H, W)`` to unit-norm keys ``(N, C)``; called without gradient."""
        return unit_norm(self.key_encoder(key_view))

    def shuffled(self, key_view: Tensor, permutation: Tensor) -> Tensor:
        """The views that this rank's key encoder sees, in its order; as they are if not shuffled.

        Args:
            key_view: As `Views.key`.
            permutation: As `Views.permutation`.
        """
        if not self.shuffle_keys:
            return key_view
        if not self.ranks.several:
            return key_view[permutation]
        if self.symmetric:
            key_view = own_rows(gather_rows(key_view, self.ranks)[permutation], self.ranks)
            return key_view.contiguous(memory_format=torch.channels_last)
        return key_view  # the step has exchanged the crops

    def unshuffled(self, key: Tensor, permutation: Tensor) -> Tensor:
        """Keys ``(N, C)`` of what `shuffled` gave, put in the order of this rank's images."""
        if not self.shuffle_keys:
            return key
        key = gather_rows(key, self.ranks)
        return own_rows(torch.empty_like(key).index_copy_(0, permutation, key), self.ranks)

    def running_statistics(self) -> tuple[list[Tensor], list[Tensor]]:
        """Running means and variances of the query and of the key encoder, the buffers."""
        return floating_buffers(self.query_encoder), floating_buffers(self.key_encoder)

    def num_negatives(self, global_batch_size: int) -> int:
        """The queue's length, whatever the batch."""
        del global_batch_size
        return len(self.queue.keys)

    def describe(self, global_batch_size: int) -> str:
        """For the run's header."""
        queue = self.num_negatives(global_batch_size)
        return f"moco, queue {queue}{self.momentum.describe()}"

    def set_progress(self, progress: float) -> None:
        """Move m, where it moves."""
        self.momentum.set_progress(progress)

    def prepare_for_device(self, device: torch.device, loss: Loss) -> None:
        """On a GPU the queue is float16: eight times finer than bfloat16 for unit vectors."""
        if device.type == "cuda":
            self.queue.half()
        self.loss = resolve_loss(loss, device, self.queue.keys.shape[1])

    @torch.no_grad()
    def after_step(self, output: StepOutput, learned: Tensor | None = None) -> None:
        """What follows the optimizer's step: the momentum update, then enqueue. In place.

        Args:
            output: Of the step, on this rank; the keys of all ranks are enqueued.
            learned: Bool scalar on the device, equal on all ranks: False where loss scaling skipped
                the optimizer's step, and then nothing changes. None is True.
        """
        self.update_key_encoder(learned)
        self.queue.enqueue(self._keys_of_all(output), learned)

    @torch.no_grad()
    def update_key_encoder(self, learned: Tensor | None = None) -> None:
        """``k <- m k + (1 - m) q`` over the parameters, in place (Eq. 2); EMAN's statistics too.

        The official code does it at the start of the next forward pass, Algorithm 1 after the
        optimizer's step, as here: the encoders start equal, so queries and keys are the same at
        every step.

        Args:
            learned: As of `after_step`.
        """
        query: list[Tensor] = list(self.query_encoder.parameters())
        key: list[Tensor] = list(self.key_encoder.parameters())
        if self.running_keys:
            running = self.running_statistics()
            query, key = query + running[0], key + running[1]
        follow(key, query, self.momentum.step, learned)

    def _keys_of_all(self, output: StepOutput) -> Tensor:
        """What every rank enqueues: the keys of all, as one rank would have them in order."""
        halves = output.key.chunk(output.terms)
        return torch.cat([gather_rows(half, self.ranks) for half in halves])
