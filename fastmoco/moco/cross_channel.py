"""MoCo across channels: a query's positive is the other channels of the other view."""

import math

import torch
from torch import Tensor, nn

from fastmoco.errors import UsageError
from fastmoco.moco.encoder import build_head, unit_norm
from fastmoco.moco.lab_pair import LabPair, LabPairHead
from fastmoco.moco.loss import info_nce, mean_similarity
from fastmoco.moco.mechanism import Parts, StepOutput
from fastmoco.moco.model import MoCo


def _halves(rows: Tensor) -> list[Tensor]:
    return [half.contiguous() for half in rows.chunk(2, dim=1)]


def crossed(embedding: Tensor) -> Tensor:
    """Exchange the halves of embeddings ``(N, 2C)``: a query's positive is the other half."""
    return torch.cat(_halves(embedding)[::-1], dim=1)


def unit_halves(embedding: Tensor) -> Tensor:
    """Scale both halves of each row to length sqrt(1/2): rows have length 1; float32 or wider."""
    return torch.cat([unit_norm(half) for half in _halves(embedding)], dim=1) * math.sqrt(0.5)


class CrossChannel(MoCo):
    """MoCo of lightness L against colors ab, and back.

    ``L = InfoNCE(q_L, k_ab, queue_ab) + InfoNCE(q_ab, k_L, queue_L)``: contrastive multiview coding
    (arXiv:1906.05849, Eq. 6) by a queue and a momentum encoder. There L and ab come from one crop;
    here q and k come from two views, each cropped and augmented separately, as everywhere in MoCo.

    A query, a key and a row of the queue are ``(2C,)``, [q_L, q_ab] and [k_ab, k_L], each half of
    length sqrt(1/2): rows have length 1, as the metrics need, and a dot product of rows is the mean
    of both halves' products.

    Attributes:
        queue: ``(K, 2C)``: keys of colors, then of lightness.
    """

    vectors_per_view = 2

    def __init__(self, parts: Parts) -> None:
        """Build the pair of encoders and its momentum copy, and fill the queue."""
        super().__init__(parts)
        self.queue.keys.copy_(unit_halves(self.queue.keys))

    @classmethod
    def make_head(cls, parts: Parts) -> nn.Module:
        """Build a head for each encoder of the pair.

        Raises:
            UsageError: If the encoder is not a `LabPair`.
        """
        name, moco = parts.model.encoder, parts.moco
        if not isinstance(parts.backbone, LabPair):
            raise UsageError(
                f"moco.pretext=cross_channel needs a pair of encoders, got model.encoder={name}; "
                f"set model.encoder=halves:{name if ':' not in name else 'resnet50'}"
            )
        heads = (
            build_head(moco.head, backbone.feature_dim, moco.dim, moco.head_hidden_dim)
            for backbone in (parts.backbone.lightness, parts.backbone.color)
        )
        return LabPairHead(*heads)

    def look_up(self, query: Tensor, key: Tensor) -> StepOutput:
        """Contrast queries with keys.

        Args:
            query: From `embed_queries`, ``(N, 2C)``.
            key: From `embed_keys`, ``(N, 2C)``.

        Returns:
            Output with a rank for each look-up, ``(2N,)``: of lightness, then of colors.
        """
        queue = self.queue.keys  # (K, 2C)
        # Halves of length sqrt(1/2): half the temperature gives the logits of unit vectors.
        halves = zip(_halves(query), _halves(key), _halves(queue), strict=True)  # (N or K, C) each
        results = [info_nce(q, k, n, self.temperature / 2, self.loss) for q, k, n in halves]
        (lightness, lightness_rank), (color, color_rank) = results  # (), (N,)
        rank = torch.cat([lightness_rank, color_rank])  # (2N,)
        similarity = mean_similarity(query, queue)  # ()
        return StepOutput(lightness + color, query.detach(), key, rank, similarity, factor=2.0)

    def embed_queries(self, query_view: Tensor) -> Tensor:
        """Views ``(N, 3, H, W)``, RGB in 0..1, to queries ``(N, 2C)``; gradients flow."""
        return unit_halves(self.query_encoder(query_view))  # (N, 2C)

    def embed_keys(self, key_view: Tensor) -> Tensor:
        """Views ``(N, 3, H, W)`` to keys ``(N, 2C)``; called without gradient."""
        return crossed(unit_halves(self.key_encoder(key_view)))  # (N, 2C)

    def describe(self, global_batch_size: int) -> str:
        """MoCo's description, and the two kinds of channels."""
        return f"{super().describe(global_batch_size)}, L against ab"
