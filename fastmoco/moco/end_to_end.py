"""End to end: the dictionary is the batch, and its keys carry gradients too.

SimCLR (arXiv:2002.05709) where each view meets both views of all other images; or the end-to-end
mechanism that MoCo is compared with (arXiv:1911.05722, Figures 2a and 3), where queries are of one
view and keys of the other, by one encoder for both.
"""

from typing import Self

import torch
from torch import Tensor, nn

from fastmoco.moco.backbone import Backbone
from fastmoco.moco.collectives import gather_rows
from fastmoco.moco.encoder import Encoder, unit_norm
from fastmoco.moco.in_batch_loss import in_batch_info_nce
from fastmoco.moco.mechanism import ContrastiveModel, Parts, StepOutput, Views
from fastmoco.moco.settings import Negatives
from fastmoco.ranks import ALONE, Ranks


class EndToEnd(ContrastiveModel):
    """One encoder; both views of a batch pass it together, so batch norm sees 2N of them.

    Embeddings are gathered over ranks with their gradients: two ranks learn as one with the whole
    batch would.
    """

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        *,
        temperature: float,
        negatives: Negatives = Negatives.both_views,
        ranks: Ranks = ALONE,
    ) -> None:
        """Take the encoder's two parts.

        Args:
            backbone: Images to features.
            head: Features to embeddings.
            temperature: tau > 0.
            negatives: Of a query: both views of all other images (NT-Xent, each view a query once),
                or their other view (only first views are queries).
            ranks: Which part of a global batch this process sees.
        """
        super().__init__(ranks)
        self.query_encoder = Encoder(backbone, head)
        self.temperature = temperature
        self.both_views = negatives is Negatives.both_views
        self.train()

    @classmethod
    def build(cls, parts: Parts) -> Self:
        """The mechanism that a configuration describes."""
        moco = parts.moco
        return cls(
            parts.backbone,
            cls.make_head(parts),
            temperature=moco.temperature,
            negatives=moco.negatives,
            ranks=parts.ranks,
        )

    def forward(self, views: Views) -> StepOutput:
        """NT-Xent or InfoNCE over the global batch; see `ContrastiveModel.forward`."""
        images = torch.cat([views.query, views.key])  # (2N, 3, H, W)
        first, second = unit_norm(self.query_encoder(images)).chunk(2)  # (N, C) each
        all_first, all_second = (
            gather_rows(rows, self.ranks) for rows in (first, second)
        )  # (B, C)
        count, batch = len(first), len(all_first)
        place = self.ranks.rank * count + torch.arange(count, device=first.device)
        if self.both_views:
            query, key = torch.cat([first, second]), torch.cat([second, first])
            keys = torch.cat([all_first, all_second])
            own = torch.cat([place, place + batch])
            positive = torch.cat([place + batch, place])
        else:
            query, key, keys, own, positive = first, second, all_second, None, place
        loss, rank, similarity = in_batch_info_nce(query, keys, positive, self.temperature, own)
        return StepOutput(loss, query.detach(), key.detach(), rank, similarity)

    def after_step(self, output: StepOutput, learned: Tensor | None = None) -> None:
        """Nothing: it remembers nothing."""

    def num_negatives(self, global_batch_size: int) -> int:
        """2 (B - 1) for a global batch of B images, or B - 1."""
        return (2 if self.both_views else 1) * (global_batch_size - 1)

    def describe(self, global_batch_size: int) -> str:
        """For the run's header."""
        loss = "NT-Xent" if self.both_views else "InfoNCE"
        return f"end_to_end, {loss}, {self.num_negatives(global_batch_size)} negatives of the batch"
