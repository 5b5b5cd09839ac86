"""MoCo v3: a momentum encoder, a prediction head, and the batch as dictionary (arXiv:2104.02057).

Written from Algorithm 1 of the paper.
"""

import copy
from itertools import pairwise
from typing import Self

import torch
from torch import Tensor, nn

from fastmoco.moco.backbone import Backbone
from fastmoco.moco.batchnorm import HeadNorm, head_norm_layer
from fastmoco.moco.collectives import gather_rows
from fastmoco.moco.encoder import Encoder, unit_norm
from fastmoco.moco.in_batch_loss import in_batch_info_nce
from fastmoco.moco.mechanism import ContrastiveModel, Parts, StepOutput, Views, floating_buffers
from fastmoco.moco.momentum import KeyMomentum, follow
from fastmoco.ranks import ALONE, Ranks


def batch_norm_mlp(widths: list[int], norm_layer: HeadNorm) -> nn.Sequential:
    """Linear layers, each with batch norm, and ReLU between them; the last norm is not affine.

    No linear layer has a bias: the batch norm after it would take it away.

    Args:
        widths: Of the input, of the hidden layers, and of the output.
        norm_layer: Makes the batch norms.
    """
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        last = index == len(widths) - 2
        layers += [nn.Linear(inputs, outputs, bias=False), norm_layer(outputs, affine=not last)]
        layers += [] if last else [nn.ReLU(inplace=True)]
    return nn.Sequential(*layers)


def projection_head(
    feature_dim: int, hidden_dim: int, dim: int, norm_layer: HeadNorm
) -> nn.Sequential:
    """The 3-layer MLP after the backbone; of both encoders."""
    return batch_norm_mlp([feature_dim, hidden_dim, hidden_dim, dim], norm_layer)


class MoCoV3(ContrastiveModel):
    """Query encoder with a predictor, key encoder; no queue.

    Attributes:
        query_encoder: Backbone and projection head: Algorithm 1's f_q without its predictor, which
            is what f_k follows and what is evaluated.
        predictor: The 2-layer MLP that turns projections into queries.
        key_encoder: Starts as a copy; batch norm in training mode.
        momentum: m of the key encoder; rises by half a cosine.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        *,
        dim: int,
        hidden_dim: int,
        momentum: float,
        temperature: float,
        final_momentum: float = 1.0,
        norm_layer: HeadNorm = nn.BatchNorm1d,
        ranks: Ranks = ALONE,
    ) -> None:
        """Take the encoder's two parts and make its momentum copy.

        Args:
            backbone: Images to features; parameters that need no gradient stay as they are.
            head: From `projection_head`.
            dim: C, the embedding's length.
            hidden_dim: Width of the predictor's hidden layer.
            momentum: m of the key encoder at the start, in [0, 1].
            temperature: tau > 0.
            final_momentum: m at the end.
            norm_layer: Makes the predictor's batch norms.
            ranks: Which part of a global batch this process sees.
        """
        super().__init__(ranks)
        self.query_encoder = Encoder(backbone, head)
        self.key_encoder = copy.deepcopy(self.query_encoder).requires_grad_(False)
        self.predictor = batch_norm_mlp([dim, hidden_dim, dim], norm_layer)
        self.momentum = KeyMomentum(momentum, final_momentum)
        self.temperature = temperature
        self.train()

    @classmethod
    def build(cls, parts: Parts) -> Self:
        """The mechanism that a configuration describes."""
        moco = parts.moco
        return cls(
            parts.backbone,
            cls.make_head(parts),
            dim=moco.dim,
            hidden_dim=moco.hidden_dim,
            momentum=moco.momentum,
            final_momentum=1.0 if moco.final_momentum is None else moco.final_momentum,
            temperature=moco.temperature,
            norm_layer=head_norm_layer(moco, parts.ranks),
            ranks=parts.ranks,
        )

    @classmethod
    def make_head(cls, parts: Parts) -> nn.Module:
        """The 3-layer MLP after the backbone."""
        moco, norm_layer = parts.moco, head_norm_layer(parts.moco, parts.ranks)
        return projection_head(parts.backbone.feature_dim, moco.hidden_dim, moco.dim, norm_layer)

    def forward(self, views: Views) -> StepOutput:
        """``ctr(q1, k2) + ctr(q2, k1)`` of Algorithm 1; see `ContrastiveModel.forward`.

        Keys are gathered over ranks, and carry no gradient.
        """
        pair = (views.query, views.key)  # (N, 3, H, W) each
        queries = [unit_norm(self.predictor(self.query_encoder(view))) for view in pair]  # (N, C)
        with torch.no_grad():
            keys = [unit_norm(self.key_encoder(view)) for view in pair]  # (N, C)
        count = len(views.query)
        place = torch.arange(count, device=views.query.device) + self.ranks.rank * count  # (N,)
        halves = [
            in_batch_info_nce(query, gather_rows(key, self.ranks), place, self.temperature)
            for query, key in zip(queries, keys[::-1], strict=True)
        ]
        factor = 2 * self.temperature
        losses, ranks, similarities = zip(*halves, strict=True)
        return StepOutput(
            factor * (losses[0] + losses[1]),
            torch.cat(queries).detach(),
            torch.cat(keys[::-1]),
            torch.cat(ranks),
            (similarities[0] + similarities[1]) / 2,
            terms=2,
            factor=factor,
        )

    def after_step(self, output: StepOutput, learned: Tensor | None = None) -> None:
        """The momentum update of the key encoder's parameters."""
        del output
        query, key = (list(e.parameters()) for e in (self.query_encoder, self.key_encoder))
        follow(key, query, self.momentum.step, learned)

    def set_progress(self, progress: float) -> None:
        """Move m: to 1, ``m = 1 - (1 - m_0) (cos(pi progress) + 1) / 2``."""
        self.momentum.set_progress(progress)

    def running_statistics(self) -> tuple[list[Tensor], list[Tensor]]:
        """Of query encoder and predictor, and of the key encoder."""
        query = floating_buffers(self.query_encoder) + floating_buffers(self.predictor)
        return query, floating_buffers(self.key_encoder)

    def num_negatives(self, global_batch_size: int) -> int:
        """The other images' keys."""
        return global_batch_size - 1

    def describe(self, global_batch_size: int) -> str:
        """For the run's header."""
        negatives = self.num_negatives(global_batch_size)
        return f"moco_v3, {negatives} negatives of the batch{self.momentum.describe()}"
