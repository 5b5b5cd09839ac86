"""The pretext task: what is a query's positive, of a pair of views.

``instance``: the other view of its image, whole (`model.MoCo`). ``cross_channel``: the other half
of the channels of the other view (`CrossChannel`).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from fastmoco.errors import UsageError
from fastmoco.moco.backbone import Backbone
from fastmoco.moco.encoder import build_head, unit_norm
from fastmoco.moco.lab_pair import LabPair, LabPairHead
from fastmoco.moco.loss import info_nce
from fastmoco.moco.mechanism import Parts, StepOutput
from fastmoco.moco.model import MoCo


def _halves(rows: Tensor) -> list[Tensor]:
    return [half.contiguous() for half in rows.chunk(2, dim=1)]


def crossed(embedding: Tensor) -> Tensor:
    """Embeddings ``(N, 2C)`` with the columns of both halves exchanged: a query's positive."""
    return torch.cat(_halves(embedding)[::-1], dim=1)


def unit_halves(embedding: Tensor) -> Tensor:
    """Rows of length 1 whose halves have equal lengths, sqrt(1/2); float32 at least."""
    return torch.cat([unit_norm(half) for half in _halves(embedding)], dim=1) * math.sqrt(0.5)


class CrossChannel(MoCo):
    """MoCo across channels: lightness L against colors ab, and back.

    ``L = InfoNCE(q_L, k_ab, queue_ab) + InfoNCE(q_ab, k_L, queue_L)``: contrastive multiview coding
    (arXiv:1906.05849, Eq. 6) by a queue and a momentum encoder. There L and ab are of one crop;
    here q is of one view and k of the other, each cropped and augmented on its own, as everywhere
    in MoCo.

    A query, a key and a row of the queue are ``(2C,)``, [q_L, q_ab] and [k_ab, k_L], each half of
    length sqrt(1/2): a dot product of rows is the mean of both halves', so that all that reads
    unit vectors, such as the metrics, holds.

    Attributes:
        queue: ``(K, 2C)``: keys of colors, then of lightness.
    """

    def __init__(self, backbone: Backbone, head: nn.Module, *, dim: int, **options: Any) -> None:
        """Take the encoder's two parts and make its momentum copy.

        Args:
            backbone: A `lab_pair.LabPair`.
            head: A `lab_pair.LabPairHead`: embeddings ``(N, 2C)``.
            dim: C of each half.
            options: As of `MoCo`.
        """
        super().__init__(backbone, head, dim=2 * dim, **options)
        self.queue.keys.copy_(unit_halves(self.queue.keys))

    @classmethod
    def make_head(cls, parts: Parts) -> nn.Module:
        """A head for each of the pair of encoders.

        Raises:
            UsageError: If the encoder is no pair.
        """
        name, moco = parts.model.encoder, parts.moco
        if not isinstance(parts.backbone, LabPair):
            raise UsageError(
                f"moco.pretext=cross_channel needs a pair of encoders, got model.encoder={name}; "
                f"set model.encoder=halves:{name if ':' not in name else 'resnet50'}"
            )
        heads = (
            build_head(moco.head, half.feature_dim, moco.dim, moco.head_hidden_dim)
            for half in (parts.backbone.lightness, parts.backbone.color)
        )
        return LabPairHead(*heads)

    def contrast(self, query_view: Tensor, key: Tensor) -> StepOutput:
        """Contrast views with keys.

        Args:
            query_view: ``(N, 3, H, W)``, RGB in 0..1, channels_last.
            key: From `embed_keys`, ``(N, 2C)``.

        Returns:
            With a rank for each look-up, ``(2N,)``: those of lightness, then those of colors.
        """
        query = unit_halves(self.query_encoder(query_view))
        queue = self.queue.keys
        # LabPair of length sqrt(1/2): half the temperature gives the logits of unit vectors.
        halves = zip(_halves(query), _halves(key), _halves(queue), strict=True)
        found = [info_nce(q, k, n, self.temperature / 2, self.loss) for q, k, n in halves]
        losses, ranks = zip(*found, strict=True)
        query = query.detach()
        similarity = (query.mean(dim=0) * queue.to(query.dtype).mean(dim=0)).sum()
        return StepOutput(
            losses[0] + losses[1], query, key, torch.cat(ranks), similarity, factor=2.0
        )

    def embed_keys(self, key_view: Tensor) -> Tensor:
        """Views ``(N, 3, H, W)`` to keys ``(N, 2C)``; called without gradient."""
        return crossed(unit_halves(self.key_encoder(key_view)))

    def describe(self, global_batch_size: int) -> str:
        """For the run's header."""
        return f"{super().describe(global_batch_size)}, L against ab"
