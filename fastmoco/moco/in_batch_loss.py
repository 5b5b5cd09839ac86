"""InfoNCE where the negatives are the batch's other keys, in its textbook form.

All N x K logits are in memory at once: K is the size of a batch here, not of a queue, and gradients
may flow to the keys. NT-Xent over a global batch of 4,096 images on one device holds several
matrices of 8,192 x 8,192 logits, 268 MB each in float32 (computed).
"""

import torch
from torch import Tensor


def in_batch_info_nce(
    query: Tensor, keys: Tensor, positive: Tensor, temperature: float, own: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Cross-entropy of each query's positive among all keys but its own.

    ``L = -log(exp(q.k+/T) / sum_{i != own} exp(q.k_i/T))``, the mean over queries: Eq. 1 of
    arXiv:1911.05722 with one key as positive and the others as negatives, and Eq. 1 of
    arXiv:2002.05709 where the keys are the queries themselves and `own` leaves each one out.

    Args:
        query: Unit-norm queries, ``(N, C)`` float; gradients flow.
        keys: Unit-norm keys, ``(M, C)``; gradients flow if they require them.
        positive: Index of each query's positive key, ``(N,)`` int64.
        temperature: tau > 0, dimensionless.
        own: Index of the key that is the query itself and is left out, ``(N,)`` int64; None if no
            key is a query.

    Returns:
        Scalar mean loss in nats; the number of negatives above the positive per query, ``(N,)``
        int64; and the mean ``q.k`` over queries and their negatives, a scalar without gradient.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        similarity = query.to(dtype) @ keys.to(dtype).T  # (N, M)
        logits = similarity / temperature
        negatives = len(keys) - 1
        if own is not None:
            logits = logits.scatter(1, own[:, None], -torch.inf)
            negatives -= 1
        positive_logits = logits.gather(1, positive[:, None])  # (N, 1)
        loss = (torch.logsumexp(logits, dim=1) - positive_logits[:, 0]).mean()
    with torch.no_grad():
        rank = (logits > positive_logits).sum(dim=1)  # (N,)
        left_out = [positive] if own is None else [positive, own]
        total = similarity.sum() - sum(similarity.gather(1, i[:, None]).sum() for i in left_out)
        return loss, rank, total / max(1, len(query) * negatives)
