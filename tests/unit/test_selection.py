"""Duplicates, k-center and balance, against loops that can be read at a glance."""

import itertools

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fastmoco.labeling import selection
from fastmoco.labeling.ranking import Ranking, badness, places
from fastmoco.labeling.selection import Distinct, cluster, k_center, shares, spread
from fastmoco.labeling.settings import RankBy


def unit_rows(count, dim, seed=0):
    return F.normalize(
        torch.randn(count, dim, generator=torch.Generator().manual_seed(seed)), dim=1
    )


def picks(rows):
    return lambda ids: rows[torch.from_numpy(ids)]


def contents(of):
    return lambda sample: bytes([of.get(sample, sample)])


def brute_distinct(order, rows, of, limit, known=()):
    """One candidate after the other, against everything that is kept."""
    kept, seen = list(known), {of.get(sample, sample) for sample in known}
    found = []
    for sample in order:
        same = of.get(sample, sample) in seen
        seen.add(of.get(sample, sample))
        if not same and all(float(rows[sample] @ rows[one]) <= limit for one in kept):
            kept.append(sample)
            found.append(sample)
    return found


@pytest.mark.parametrize("block", [1, 7, 512])
@pytest.mark.parametrize("chunk", [5, 1 << 14])
def test_duplicates_equal_a_loop(monkeypatch, block, chunk):
    monkeypatch.setattr(selection, "BLOCK_ROWS", block)
    monkeypatch.setattr(selection, "CHUNK_ROWS", chunk)
    rows = unit_rows(60, 3)
    of = {11: 3, 40: 3, 59: 58}
    order = np.random.default_rng(1).permutation(50)
    known = np.arange(50, 60)
    for limit in (0.7, 0.95):
        distinct = Distinct(contents(of), picks(rows), limit)
        distinct.add_known(known)
        (found,) = spread([order], distinct, 50)
        assert found.tolist() == brute_distinct(order.tolist(), rows, of, limit, known.tolist())
        assert 0 < len(found) < 48
        assert len(found) + distinct.same_bytes + distinct.alike == 50
        assert distinct.same_bytes == 2


def test_without_vectors_only_bytes_count():
    distinct = Distinct(contents({2: 0, 4: 0}), None, 1.0)
    (found,) = spread([np.arange(6)], distinct, 6)
    assert found.tolist() == [0, 1, 3, 5]
    assert (distinct.same_bytes, distinct.alike) == (2, 0)
    assert spread([np.arange(6)], Distinct(contents({}), None, 1.0), 4)[0].tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("known", [0, 4])
def test_k_center_equals_a_loop_and_is_within_twice_the_best(known):
    rows = unit_rows(14, 3, seed=known)
    centers = unit_rows(known, 3, seed=9) if known else None
    found = k_center(rows, 4, centers)
    chosen = [] if known else [0]
    while len(chosen) < 4:
        covering = [*(centers if known else ()), *rows[chosen]]
        distances = [min(float((row - one).norm()) for one in covering) for row in rows]
        chosen.append(int(np.argmax(distances)))
    assert found.tolist() == chosen
    assert len(set(k_center(rows, 14).tolist())) == 14

    def radius(ids):
        covering = [*(centers if known else ()), *rows[list(ids)]]
        return max(min(float((row - one).norm()) for one in covering) for row in rows)

    best = min(radius(ids) for ids in itertools.combinations(range(14), 4))
    assert best <= radius(chosen) <= 2 * best + 1e-6


def test_shares_are_equal_as_far_as_there_are_members():
    assert shares([10, 10, 10], 9) == [3, 3, 3]
    assert shares([10, 1, 10], 9) == [4, 1, 4]
    assert shares([10, 0, 10], 7) == [4, 0, 3]
    assert shares([2, 1], 9) == [2, 1]
    assert shares([5] * 4, 2) == [1, 1, 0, 0]


def test_balance_takes_equally_of_each_group_though_some_are_duplicates():
    """Where duplicates leave a group short, the others get its places."""
    groups = [np.arange(10), np.arange(10, 13), np.arange(13, 30)]
    same = {11: 10, 12: 10}
    found = spread(groups, Distinct(contents(same), None, 1.0), 15)
    assert [len(ids) for ids in found] == [7, 1, 7]
    for ids, group in zip(found, groups, strict=True):
        assert ids.tolist() == group[: len(ids)].tolist()


def test_clusters_are_those_that_are_plain_to_see(monkeypatch):
    monkeypatch.setattr(selection, "FITTED_ROWS", 100)
    monkeypatch.setattr(selection, "CHUNK_ROWS", 64)
    rows = F.normalize(torch.eye(4).repeat_interleave(torch.tensor([80, 20, 50, 30]), 0), dim=1)
    rows = F.normalize(rows + 0.1 * torch.randn(180, 4), dim=1)
    ids = np.random.default_rng(0).permutation(180)
    of = cluster(picks(rows), ids, 4, seed=3)
    assert of.tolist() == cluster(picks(rows), ids, 4, seed=3).tolist()
    truth = rows[torch.from_numpy(ids)].argmax(1).tolist()
    assert len(set(zip(of.tolist(), truth, strict=True))) == 4
    assert set(of.tolist()) == {0, 1, 2, 3}
    same = picks(torch.ones(6, 2) / 2**0.5)
    assert set(cluster(same, np.arange(6), 3, seed=0)) <= {0, 1, 2}


def test_places_and_badness():
    values = np.array([5.0, 1.0, 5.0, 3.0, 9.0])
    # Positions 0 to 4 when sorted; both 5s share 2.5.
    assert (4 * places(values)).tolist() == [2.5, 0.0, 2.5, 1.0, 4.0]
    loss, rank = np.array([1.0, 2.0, 3.0]), np.array([0.0, 9.0, 4.0])
    assert badness(loss, rank, RankBy.loss).tolist() == [0.0, 0.5, 1.0]
    assert badness(loss, rank, RankBy.rank).tolist() == [0.0, 1.0, 0.5]
    assert badness(loss, rank, RankBy.both).tolist() == [0.0, 0.75, 0.75]
    ranking = Ranking.worst_first(
        np.array([7, 4, 2]), badness(loss, rank, RankBy.both), {"loss": loss}
    )
    assert ranking.ids.tolist() == [2, 4, 7]
    assert ranking.columns["loss"].tolist() == [3.0, 2.0, 1.0]
