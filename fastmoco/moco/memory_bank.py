"""Memory bank: an entry for each image, and negatives drawn from it (arXiv:1805.01978).

With InfoNCE in the place of NCE, as MoCo compares it (arXiv:1911.05722, section 4.1).
"""

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmoco.draws.device import fork, stream_integers
from fastmoco.draws.streams import Draw
from fastmoco.moco.backbone import Backbone
from fastmoco.moco.collectives import gather_rows
from fastmoco.moco.encoder import Encoder, unit_norm
from fastmoco.moco.loss import info_nce, resolve_loss
from fastmoco.moco.mechanism import ContrastiveModel, Parts, StepOutput, Views
from fastmoco.moco.settings import Loss
from fastmoco.ranks import ALONE, Ranks


def draw_others(sample_id: Tensor, stream: Tensor, count: int, num_samples: int) -> Tensor:
    """Ids of the images outside a batch, drawn uniformly and with replacement.

    Args:
        sample_id: ``(B,)`` int64, different ids: of the batch.
        stream: ``(1,)`` int64, from `draws.fork`: the draws are a pure function of it.
        count: K, how many.
        num_samples: M > B, of all images.

    Returns:
        ``(count,)`` int64 in [0, M), none of them in `sample_id`.

    Raises:
        ValueError: If the batch is the whole dataset.
    """
    if len(sample_id) >= num_samples:
        raise ValueError(
            f"global_batch_size={len(sample_id)} leaves none of the dataset's {num_samples} images "
            "to be a negative of moco.mechanism=memory_bank; set a smaller global_batch_size"
        )
    drawn = stream_integers(stream, 0, count, num_samples - len(sample_id))[0]
    # The i-th smallest id of the batch has as many others below it as it is larger than i.
    taken, _ = torch.sort(sample_id)
    others_below = taken - torch.arange(len(taken), device=taken.device)
    return drawn + torch.searchsorted(others_below, drawn, right=True)


class MemoryBank(ContrastiveModel):
    """One encoder, and a unit vector for each image of the dataset; no key encoder.

    A query's positive is its image's entry, of the epoch before. Its K negatives are entries of
    other images, one draw for the global batch, with replacement, that leaves out the images of the
    batch themselves: no image is a negative of its own, nor of one that it is learned with.

    Attributes:
        bank: Buffer ``(M, C)``, row-major, a row for each sample id; starts as random unit vectors.
    """

    bank: Tensor
    num_views = 1

    def __init__(
        self,
        backbone: Backbone,
        head: nn.Module,
        *,
        dim: int,
        num_samples: int,
        num_negatives: int,
        bank_momentum: float,
        temperature: float,
        ranks: Ranks = ALONE,
        loss: Loss = Loss.plain,
    ) -> None:
        """Take the encoder's two parts and fill the bank.

        Args:
            backbone: Images to features.
            head: Features to embeddings.
            dim: C, the embedding's length.
            num_samples: M, images of the dataset; more than a global batch.
            num_negatives: K.
            bank_momentum: Share of an entry that stays when its image is seen, in [0, 1).
            temperature: tau > 0.
            ranks: Which part of a global batch this process sees.
            loss: How InfoNCE is computed; not ``auto``.
        """
        super().__init__(ranks)
        self.query_encoder = Encoder(backbone, head)
        self.register_buffer("bank", F.normalize(torch.randn(num_samples, dim)))
        self.count = num_negatives
        self.bank_momentum = bank_momentum
        self.temperature = temperature
        self.loss = loss
        self.train()

    @classmethod
    def build(cls, parts: Parts) -> Self:
        """The mechanism that a configuration describes."""
        moco = parts.moco
        return cls(
            parts.backbone,
            cls.make_head(parts),
            dim=moco.dim,
            num_samples=parts.num_samples,
            num_negatives=moco.queue_size,
            bank_momentum=moco.bank_momentum,
            temperature=moco.temperature,
            ranks=parts.ranks,
        )

    def forward(self, views: Views) -> StepOutput:
        """InfoNCE of first views against the bank; see `ContrastiveModel.forward`."""
        query = unit_norm(self.query_encoder(views.query))  # (N, C)
        stream = fork(gather_rows(views.draw_key, self.ranks)[:1], Draw.NEGATIVES, 0)
        batch_ids = gather_rows(views.sample_id, self.ranks)  # (B,)
        others = draw_others(batch_ids, stream, self.count, len(self.bank))  # (K,)
        negatives, key = self.bank[others], self.bank[views.sample_id]  # (K, C), (N, C)
        loss, rank = info_nce(query, key, negatives, self.temperature, self.loss)
        query = query.detach()
        similarity = (query.mean(dim=0) * negatives.to(query.dtype).mean(dim=0)).sum()
        return StepOutput(
            loss, query, key.to(query.dtype), rank, similarity, sample_id=views.sample_id
        )

    @torch.no_grad()
    def after_step(self, output: StepOutput, learned: Tensor | None = None) -> None:
        """Move the entries of all ranks' images: ``v <- normalize(m v + (1 - m) q)``, in place."""
        assert output.sample_id is not None
        ids = gather_rows(output.sample_id, self.ranks)
        queries = gather_rows(output.query, self.ranks)
        before = self.bank[ids]
        moved = F.normalize(torch.lerp(queries, before.to(queries.dtype), self.bank_momentum))
        after = moved.to(before.dtype)
        self.bank.index_copy_(0, ids, after if learned is None else after.where(learned, before))

    def num_negatives(self, global_batch_size: int) -> int:
        """As many as are drawn, whatever the batch."""
        del global_batch_size
        return self.count

    def describe(self, global_batch_size: int) -> str:
        """For the run's header."""
        del global_batch_size
        return f"memory_bank, {self.count} negatives of {len(self.bank)} entries"

    def prepare_for_device(self, device: torch.device, loss: Loss) -> None:
        """On a GPU the bank is float16: eight times finer than bfloat16 for unit vectors."""
        if device.type == "cuda":
            self.bank = self.bank.half()
        self.loss = resolve_loss(loss, device, self.bank.shape[1])
