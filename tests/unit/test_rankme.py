"""Effective rank against the paper's formula on singular values."""

import pytest
import torch

from fastmoco.evaluate import rankme
from fastmoco.evaluate.rankme import effective_rank


def plain(vectors):
    """Eq. 1 of arXiv:2210.02885, by a singular value decomposition."""
    values = torch.linalg.svdvals(vectors.double())
    shares = values / values.sum() + 1e-7
    return torch.exp(-(shares * shares.log()).sum()).item()


@pytest.mark.parametrize("shape", [(200, 12), (9, 30)])
def test_it_is_the_formula_on_singular_values(shape, monkeypatch):
    monkeypatch.setattr(rankme, "CHUNK_ROWS", 64)
    torch.manual_seed(0)
    vectors = torch.randn(shape) * torch.logspace(0, -6, shape[1])
    assert effective_rank(vectors) == pytest.approx(plain(vectors), rel=1e-3)


def test_known_ranks():
    assert effective_rank(torch.eye(7) * 3) == pytest.approx(7, abs=1e-3)
    assert effective_rank(torch.ones(5, 4)) == pytest.approx(1, abs=1e-3)
    assert effective_rank(torch.zeros(5, 4)) == pytest.approx(1, abs=1e-3)  # collapsed, too
