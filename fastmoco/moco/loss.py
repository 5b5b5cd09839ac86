"""InfoNCE, the contrastive loss of MoCo."""

import torch
from torch import Tensor


def info_nce(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float
) -> tuple[Tensor, Tensor]:
    """InfoNCE over one positive and K queued negatives (arXiv:1911.05722, Eq. 1).

    ``L = -log(exp(q.k+/T) / (exp(q.k+/T) + sum_i exp(q.k_i/T)))``, the mean over queries.

    Args:
        query: Unit-norm queries, ``(N, C)`` float; gradients flow.
        key: Unit-norm positive keys, ``(N, C)``; no gradient.
        queue: Unit-norm negatives, ``(K, C)``, any float dtype.
        temperature: tau > 0, dimensionless.

    Returns:
        Scalar mean loss in nats, and the number of negatives above the positive per query, ``(N,)``
        int64: the query's (K+1)-way look-up is right at top-k where it is below k.

    Raises:
        ValueError: If temperature <= 0 or shapes disagree.
    """
    if temperature <= 0:
        raise ValueError(
            f"temperature={temperature} is not positive; set moco.temperature to 0.2 or the like"
        )
    if query.shape != key.shape or query.shape[1:] != queue.shape[1:]:
        raise ValueError(
            f"query {tuple(query.shape)}, key {tuple(key.shape)} and queue {tuple(queue.shape)} "
            "do not fit: they must be (N, C), (N, C) and (K, C)"
        )
    # float32 at least: bfloat16 logits near 14 would be quantized to 0.0625.
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        query, key, queue = query.to(dtype), key.detach().to(dtype), queue.to(dtype)
        positive = (query * key).sum(dim=1) / temperature  # (N,)
        negatives = query @ queue.T / temperature  # (N, K)
        logits = torch.cat([positive[:, None], negatives], dim=1)  # (N, 1 + K)
        loss = (torch.logsumexp(logits, dim=1) - positive).mean()
    return loss, (negatives.detach() > positive.detach()[:, None]).sum(dim=1)
