"""Noise-contrastive estimation against a queue: one yes-or-no question for each key.

HobbitLong's CMC code trains MoCo by it unless told otherwise (`NCEAverage.py`, `NCECriterion.py`),
after arXiv:1805.01978. It holds all N x K logits; `loss.info_nce` is the way without them.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmoco.moco.collectives import gather_rows
from fastmoco.ranks import Ranks


def chance_binary_nce(num_negatives: int) -> float:
    """Least loss in nats with all keys equally similar: ``ln(K + 1) + K ln(1 + 1/K)``.

    With ``r = s / Z`` it is ``ln(1 + K/r) + K ln(1 + r/K)``, which is least at r = 1.
    """
    return math.log(num_negatives + 1) + num_negatives * math.log1p(1 / num_negatives)


class BinaryNce(nn.Module):
    """``L = -log h(k+) - sum_i log(1 - h(k_i))`` with ``h(k) = s / (s + K Z)``, ``s = exp(q.k/T)``.

    Z is the mean of s over the first batch's queries with their positives and negatives, of all
    ranks, and then stays fixed. The code divides by M Z for M images and takes 1/M as the noise's
    probability, so that M cancels; its 1e-7 in the denominator is left out.

    Attributes:
        normalizer: Buffer ``(2,)`` float32: 1 once Z is fixed, else 0; and ln Z.
    """

    normalizer: Tensor

    def __init__(self, temperature: float, ranks: Ranks) -> None:
        """Set tau, and the ranks that agree on Z."""
        super().__init__()
        self.temperature, self.ranks = temperature, ranks
        self.register_buffer("normalizer", torch.zeros(2))

    def forward(self, query: Tensor, key: Tensor, queue: Tensor) -> tuple[Tensor, Tensor]:
        """Compute the loss; the first call fixes Z, in place.

        Args:
            query: Unit-norm queries, ``(N, C)`` float; gradients flow.
            key: Unit-norm positive keys, ``(N, C)``; no gradient.
            queue: Unit-norm negatives, ``(K, C)``, any float dtype.

        Returns:
            Scalar mean loss in nats, and the rank of each positive, as `loss.info_nce`.
        """
        dtype = torch.promote_types(query.dtype, torch.float32)
        with torch.autocast(query.device.type, enabled=False):
            query, key = query.to(dtype), key.detach().to(dtype)
            positive = (query * key).sum(dim=1) / self.temperature  # (N,)
            negatives = query @ queue.to(dtype).T / self.temperature  # (N, K)
            noise = self._fixed(positive, negatives) + math.log(len(queue))  # (), ln(K Z)
            wrong = F.softplus(negatives - noise).sum(dim=1)  # (N,)
            value = (F.softplus(noise - positive) + wrong).mean()
        return value, (negatives.detach() > positive.detach()[:, None]).sum(dim=1)

    @torch.no_grad()
    def _fixed(self, positive: Tensor, negatives: Tensor) -> Tensor:
        """Return ln Z; the first time it is measured."""
        logits = torch.cat([positive[:, None], negatives], dim=1).float()  # (N, 1 + K)
        own = torch.logsumexp(logits.flatten(), dim=0) - math.log(logits.numel())
        every = gather_rows(own[None], self.ranks)  # (ranks,)
        measured = torch.logsumexp(every, dim=0) - math.log(len(every))
        known, fixed = self.normalizer.unbind()
        value = torch.where(known > 0, fixed, measured)
        self.normalizer.copy_(torch.stack([torch.ones_like(value), value]))
        return value
