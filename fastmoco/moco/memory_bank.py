"""Memory bank: an entry for each image, and negatives drawn from it (arXiv:1805.01978).

With InfoNCE instead of NCE, as MoCo compares it (arXiv:1911.05722, section 4.1).
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from fastmoco.draws.device import fork, stream_integers
from fastmoco.draws.streams import Draw
from fastmoco.moco.collectives import gather_rows
from fastmoco.moco.encoder import unit_norm
from fastmoco.moco.loss import info_nce, mean_similarity
from fastmoco.moco.loss_choice import resolve_loss
from fastmoco.moco.mechanism import ContrastiveModel, Parts, StepOutput, Views
from fastmoco.moco.settings import Loss


def draw_others(sample_id: Tensor, stream: Tensor, count: int, num_samples: int) -> Tensor:
    """Draw ids of images outside a batch, uniformly and with replacement.

    Args:
        sample_id: Ids of the batch, all different, ``(B,)`` int64.
        stream: ``(1,)`` int64, from `draws.fork`; the draws are a pure function of it.
        count: K, number of draws.
        num_samples: M > B, images of the dataset.

    Returns:
        ``(count,)`` int64 in [0, M), none of them in `sample_id`.

    Raises:
        ValueError: If the batch holds all images of the dataset.
    """
    if len(sample_id) >= num_samples:
        raise ValueError(
            f"global_batch_size={len(sample_id)} leaves none of the dataset's {num_samples} images "
            "as a negative of moco.mechanism=memory_bank; set a smaller global_batch_size"
        )
    drawn = stream_integers(stream, 0, count, num_samples - len(sample_id))[0]
    # Below the i-th smallest id of the batch there are (that id - i) ids outside the batch.
    taken, _ = torch.sort(sample_id)
    others_below = taken - torch.arange(len(taken), device=taken.device)
    return drawn + torch.searchsorted(others_below, drawn, right=True)


class MemoryBank(ContrastiveModel):
    """One encoder, and a unit vector for each image of the dataset; no key encoder.

    A query's positive is its image's entry, written in the epoch before. Its K negatives are
    entries of other images: one draw with replacement for the global batch, which leaves out the
    images of the batch. So no image is a negative of itself or of another image of its batch.

    Attributes:
        bank: Buffer ``(M, C)``, row-major, a row for each sample id; starts as random unit vectors.
        num_drawn: K, negatives that a step draws.
        bank_momentum: Fraction of an entry that is kept when its image is seen, in [0, 1).
    """

    bank: Tensor
    num_views = 1

    def __init__(self, parts: Parts) -> None:
        """Build the encoder and fill the bank with random vectors."""
        super().__init__(parts)
        moco = parts.moco
        self.register_buffer("bank", F.normalize(torch.randn(parts.num_samples, moco.dim)))
        self.num_drawn, self.bank_momentum = moco.queue_size, moco.bank_momentum

    def forward(self, views: Views) -> StepOutput:
        """InfoNCE of first views against the bank; see `ContrastiveModel.forward`."""
        query = unit_norm(self.query_encoder(views.query))  # (N, C)
        stream = fork(gather_rows(views.draw_key, self.ranks)[:1], Draw.NEGATIVES, 0)  # (1,)
        batch_ids = gather_rows(views.sample_id, self.ranks)  # (B,)
        others = draw_others(batch_ids, stream, self.num_drawn, len(self.bank))  # (K,)
        negatives, key = self.bank[others], self.bank[views.sample_id]  # (K, C), (N, C)
        loss, rank = info_nce(query, key, negatives, self.temperature, self.loss)  # (), (N,)
        similarity = mean_similarity(query, negatives)  # ()
        query, key = query.detach(), key.to(query.dtype)  # (N, C) each
        return StepOutput(loss, query, key, rank, similarity, sample_id=views.sample_id)

    @torch.no_grad()
    def after_step(self, output: StepOutput, learned: Tensor | None = None) -> None:
        """Move the entries of all ranks' images: ``v <- normalize(m v + (1 - m) q)``, in place."""
        assert output.sample_id is not None
        ids = gather_rows(output.sample_id, self.ranks)  # (B,)
        queries = gather_rows(output.query, self.ranks)  # (B, C)
        before = self.bank[ids]  # (B, C)
        moved = F.normalize(torch.lerp(queries, before.to(queries.dtype), self.bank_momentum))
        after = moved.to(before.dtype)  # (B, C)
        self.bank.index_copy_(0, ids, after if learned is None else after.where(learned, before))

    def num_negatives(self, _: int) -> int:
        """Number of draws, for any batch."""
        return self.num_drawn

    def describe(self, _: int) -> str:
        """``memory_bank`` and the numbers of negatives and entries."""
        return f"memory_bank, {self.num_drawn} negatives of {len(self.bank)} entries"

    def prepare_for_device(self, device: torch.device, loss: Loss) -> None:
        """On a GPU the bank is float16: eight times finer than bfloat16 for unit vectors."""
        if device.type == "cuda":
            self.bank = self.bank.half()
        self.loss = resolve_loss(loss, device, self.bank.shape[1], self.ranks)
