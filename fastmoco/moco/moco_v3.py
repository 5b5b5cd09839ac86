"""MoCo v3: a momentum encoder, a prediction head, and the batch as dictionary (arXiv:2104.02057).

Written from Algorithm 1 of the paper; heads and `zero_init_residual` of ResNets follow the official
code (`builder.py`, `main_moco.py`), which the preset ``moco_v3`` sets.
"""

import copy
from itertools import pairwise

import torch
from torch import Tensor, nn

from fastmoco.moco.batchnorm import HeadNorm, head_norm_layer
from fastmoco.moco.collectives import gather_rows, own_indices
from fastmoco.moco.encoder import unit_norm
from fastmoco.moco.in_batch_loss import in_batch_info_nce
from fastmoco.moco.mechanism import (
    ContrastiveModel,
    Parts,
    StepOutput,
    Views,
    floating_buffers,
    join_outputs,
)
from fastmoco.moco.momentum import KeyMomentum, follow
from fastmoco.moco.settings import MocoConfig, V3Heads


def batch_norm_mlp(
    widths: list[int], norm_layer: HeadNorm, *, last_norm: bool = True, last_affine: bool = False
) -> nn.Sequential:
    """Linear layers, each with batch norm, and ReLU between them.

    No linear layer has a bias: the batch norm after it would subtract it again, and the code's
    predictor without a last norm has none either.

    Args:
        widths: Widths of the input, of the hidden layers, and of the output.
        norm_layer: Makes the batch norms.
        last_norm: Whether a batch norm follows the last layer.
        last_affine: Whether that one has a learned scale and shift.
    """
    layers: list[nn.Module] = []
    for index, (inputs, outputs) in enumerate(pairwise(widths)):
        last = index == len(widths) - 2
        layers.append(nn.Linear(inputs, outputs, bias=False))
        if not last:
            layers += [norm_layer(outputs), nn.ReLU(inplace=True)]
        elif last_norm:
            layers.append(norm_layer(outputs, affine=last_affine))
    return nn.Sequential(*layers)


class MoCoV3(ContrastiveModel):
    """Query encoder with a predictor, key encoder; no queue.

    Attributes:
        query_encoder: Backbone and projection head: Algorithm 1's f_q without its predictor. f_k
            follows it, and it is evaluated.
        predictor: The 2-layer MLP that turns projections into queries.
        key_encoder: Starts as a copy; batch norm in training mode.
        momentum: m of the key encoder; rises by half a cosine, to 1 by default.
        factor: Factor of each direction's loss.
        label: What the run's header calls the mechanism.
        default_end: m at the end without `moco.final_momentum`; None is as at the start.
    """

    label = "moco_v3"
    default_end: float | None = 1.0

    def __init__(self, parts: Parts) -> None:
        """Build the encoder, its momentum copy and the predictor."""
        super().__init__(parts)
        moco = parts.moco
        end = self.default_end if moco.final_momentum is None else moco.final_momentum
        self.key_encoder = copy.deepcopy(self.query_encoder).requires_grad_(False)
        self.predictor = self.make_predictor(moco, head_norm_layer(moco, parts.ranks))
        self.momentum = KeyMomentum(moco.momentum, end)
        self.factor = 2 * self.temperature

    @classmethod
    def make_head(cls, parts: Parts) -> nn.Module:
        """Build the MLP after the backbone, of 2 layers or 3."""
        moco, norm_layer = parts.moco, head_norm_layer(parts.moco, parts.ranks)
        hidden = [moco.hidden_dim] * (1 if moco.v3_heads is V3Heads.resnet else 2)
        return batch_norm_mlp([parts.backbone.feature_dim, *hidden, moco.dim], norm_layer)

    @classmethod
    def make_predictor(cls, moco: MocoConfig, norm_layer: HeadNorm) -> nn.Module:
        """Build the MLP that turns projections into queries, of 2 layers."""
        widths, last_norm = [moco.dim, moco.hidden_dim, moco.dim], moco.v3_heads is V3Heads.vit
        return batch_norm_mlp(widths, norm_layer, last_norm=last_norm)

    def forward(self, views: Views) -> StepOutput:
        """``ctr(q1, k2) + ctr(q2, k1)`` of Algorithm 1; see `ContrastiveModel.forward`.

        Keys are gathered over ranks, and carry no gradient.
        """
        pair = (views.query, views.key)  # (N, 3, H, W) each
        queries = [unit_norm(self.predictor(self.project(view))) for view in pair]  # (P N, C)
        with torch.no_grad():
            keys = [unit_norm(self.key_encoder(view)) for view in pair]  # (N, C) each
        outputs = [self._contrast(queries[0], keys[1]), self._contrast(queries[1], keys[0])]
        loss = self.factor * (outputs[0].loss + outputs[1].loss)  # ()
        return join_outputs(outputs, loss, terms=2)  # (2 P N, C)

    def project(self, view: Tensor) -> Tensor:
        """Projections of a view ``(N, 3, H, W)``, ``(P N, C)``: P of each image; P is 1 here."""
        projections: Tensor = self.query_encoder(view)
        return projections

    def _contrast(self, query: Tensor, key: Tensor) -> StepOutput:
        """InfoNCE of queries ``(P N, C)``, of which P have the same positive among ``(N, C)``."""
        keys, index = gather_rows(key, self.ranks), own_indices(key, self.ranks)  # (B, C), (N,)
        each = len(query) // len(key)  # P
        key, index = key.repeat(each, 1), index.repeat(each)  # (P N, C), (P N,)
        loss, rank, similarity = in_batch_info_nce(
            query, keys, index, self.temperature
        )  # (), (P N,), ()
        return StepOutput(loss, query.detach(), key, rank, similarity, factor=self.factor)

    def after_step(self, output: StepOutput, learned: Tensor | None = None) -> None:  # noqa: ARG002
        """Update the key encoder's parameters by momentum."""
        parameters = self.key_encoder.parameters(), self.query_encoder.parameters()
        follow(*parameters, self.momentum.step, learned)

    def set_progress(self, progress: float) -> None:
        """Move m: to 1, ``m = 1 - (1 - m_0) (cos(pi progress) + 1) / 2``."""
        self.momentum.set_progress(progress)

    def running_statistics(self) -> tuple[list[Tensor], list[Tensor]]:
        """Those of query encoder and predictor, and those of the key encoder."""
        query = floating_buffers(self.query_encoder) + floating_buffers(self.predictor)
        return query, floating_buffers(self.key_encoder)

    def num_negatives(self, global_batch_size: int) -> int:
        """B - 1 for a global batch of B images: the other images' keys."""
        return global_batch_size - 1

    def describe(self, global_batch_size: int) -> str:
        """The mechanism, the number of negatives, and the momentum if it moves."""
        negatives = self.num_negatives(global_batch_size)
        return f"{self.label}, {negatives} negatives of the batch{self.momentum.describe()}"
