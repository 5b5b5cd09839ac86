"""RankMe: how many dimensions features use, without labels (arXiv:2210.02885)."""

import torch
from torch import Tensor

CHUNK_ROWS = 8_192
"""Rows that are float64 at a time."""
EPSILON = 1e-7
"""Added to each share of the singular values, as in the paper."""


@torch.no_grad()
def effective_rank(vectors: Tensor) -> float:
    """``exp(-sum p_k log p_k)`` over the normalized singular values ``p_k = s_k / sum s + 1e-7``.

    The singular values are roots of the eigenvalues of ``Z^T Z``, which is summed in float64 over
    chunks of rows: no second copy of the features, and values below 1e-8 of the largest are lost,
    which add nothing here. The paper takes 25,600 embeddings; with fewer rows than some ten times
    the length of a feature the result is lower. Features that are all zero have no shares, which
    the paper leaves open: they count as 0 here, so that only the 1e-7 remain.

    Args:
        vectors: Z, ``(n, D)``, any float dtype, on any device; not centered, not normalized.

    Returns:
        1 (all rows point one way, or are zero) to min(n, D).
    """
    gram = vectors.new_zeros(vectors.shape[1], vectors.shape[1], dtype=torch.float64)
    for rows in torch.split(vectors, CHUNK_ROWS):
        gram.addmm_(rows.T.double(), rows.double())
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    tiny = torch.finfo(values.dtype).tiny
    shares = values / values.sum().clamp(min=tiny) + EPSILON
    return float((-shares * shares.log()).sum().exp())
