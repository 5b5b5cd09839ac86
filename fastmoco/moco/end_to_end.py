"""End to end: the dictionary is the batch, and gradients flow to its keys too.

SimCLR (arXiv:2002.05709), where each view meets both views of all other images; or the end-to-end
mechanism that MoCo is compared with (arXiv:1911.05722, Figures 2a and 3), where first views are
queries and second views keys, with one encoder for both.
"""

import torch
from torch import Tensor, nn

from fastmoco.moco.batchnorm import head_norm_layer
from fastmoco.moco.collectives import gather_rows, own_indices
from fastmoco.moco.encoder import unit_norm
from fastmoco.moco.in_batch_loss import in_batch_info_nce
from fastmoco.moco.mechanism import ContrastiveModel, Parts, StepOutput, Views
from fastmoco.moco.settings import Head, Negatives


class EndToEnd(ContrastiveModel):
    """One encoder; both views of a batch pass it together, so batch norm sees 2N of them.

    Embeddings are gathered over ranks with their gradients: two ranks learn the same as one with
    the complete batch.

    Attributes:
        both_views: Whether both views of the other images are negatives (NT-Xent, each view is a
            query once), or second views only (first views are the queries).
    """

    def __init__(self, parts: Parts) -> None:
        """Build the encoder."""
        super().__init__(parts)
        self.both_views = parts.moco.negatives is Negatives.both_views

    @classmethod
    def make_head(cls, parts: Parts) -> nn.Module:
        """Build the projection head; ``mlp_norm`` has batch norm, over all ranks."""
        moco = parts.moco
        if moco.head is not Head.mlp_norm:
            return super().make_head(parts)
        features, norm_layer = parts.backbone.feature_dim, head_norm_layer(moco, parts.ranks)
        width = moco.head_hidden_dim or features
        last_norm = norm_layer(moco.dim, affine=True)
        last_norm.bias.requires_grad_(False)  # the code's last batch norm has a scale and no shift
        return nn.Sequential(
            nn.Linear(features, width, bias=False),
            norm_layer(width),
            nn.ReLU(inplace=True),
            nn.Linear(width, moco.dim, bias=False),
            last_norm,
        )

    def forward(self, views: Views) -> StepOutput:
        """NT-Xent or InfoNCE over the global batch; see `ContrastiveModel.forward`."""
        images = torch.cat([views.query, views.key])  # (2N, 3, H, W)
        first, second = unit_norm(self.query_encoder(images)).chunk(2)  # (N, C) each
        all_first, all_second = (gather_rows(v, self.ranks) for v in (first, second))  # (B, C)
        batch = len(all_first)
        index = own_indices(first, self.ranks)  # (N,)
        if self.both_views:
            query, key = torch.cat([first, second]), torch.cat([second, first])  # (2N, C) each
            keys = torch.cat([all_first, all_second])  # (2B, C)
            own = torch.cat([index, index + batch])  # (2N,)
            positive = torch.cat([index + batch, index])  # (2N,)
        else:
            query, key, keys = first, second, all_second  # (N, C), (N, C), (B, C)
            own, positive = None, index  # (N,)
        loss, rank, similarity = in_batch_info_nce(
            query, keys, positive, self.temperature, own
        )  # (), (N or 2N,), ()
        return StepOutput(loss, query.detach(), key.detach(), rank, similarity)

    def after_step(self, output: StepOutput, learned: Tensor | None = None) -> None:
        """Do nothing: this mechanism has no memory."""

    def num_negatives(self, global_batch_size: int) -> int:
        """2 (B - 1) for a global batch of B images, or B - 1."""
        return (2 if self.both_views else 1) * (global_batch_size - 1)

    def describe(self, global_batch_size: int) -> str:
        """``end_to_end``, the loss and the number of negatives."""
        loss = "NT-Xent" if self.both_views else "InfoNCE"
        return f"end_to_end, {loss}, {self.num_negatives(global_batch_size)} negatives of the batch"
