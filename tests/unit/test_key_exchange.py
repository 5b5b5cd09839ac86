"""Hosts that plan for themselves fit together: each key crop arrives where its key is encoded."""

import numpy as np
import pytest
import torch

from fastmoco.draws.host import draw_keys, shuffled_order
from fastmoco.moco import key_exchange as module
from fastmoco.moco.key_exchange import key_exchange
from fastmoco.pipelines.contract import EpochPlan
from fastmoco.ranks import Ranks
from fastmoco.train.key_orders import KeyOrders

CPU = torch.device("cpu")


class Machine:
    """All ranks in one process: what they send is collected, then delivered."""

    def __init__(self, plans, monkeypatch):
        self.plans = plans
        monkeypatch.setattr(module, "exchange_rows", self.send)

    def send(self, rows, counts, back):
        if self.delivered is None:
            self.sent.append(rows.split(counts[int(back)].tolist()))
            return rows
        found = torch.cat([parts[len(self.delivered)] for parts in self.sent])
        received = [len(parts[len(self.delivered)]) for parts in self.sent]
        assert received == counts[1 - int(back)].tolist()
        self.delivered.append(found)
        return found

    def run(self, method, rows):
        self.sent, self.delivered = [], None
        calls = [(getattr(plan, method), own) for plan, own in zip(self.plans, rows, strict=True)]
        for call, own in calls:
            call(own)
        self.delivered = []
        return [call(own) for call, own in calls]


@pytest.mark.parametrize(("world_size", "count"), [(2, 1), (2, 6), (3, 5), (8, 4), (64, 3)])
def test_rows_come_to_the_rank_that_encodes_them_and_back(world_size, count, monkeypatch):
    keys = draw_keys(world_size, 0, np.arange(world_size * count, dtype=np.int64))
    plans = [key_exchange(keys, Ranks(rank, world_size), CPU) for rank in range(world_size)]
    machine = Machine(plans, monkeypatch)
    images = torch.arange(world_size * count * 2).view(-1, 2)
    own = images.chunk(world_size)
    order = torch.from_numpy(shuffled_order(keys))
    there = machine.run("scattered", own)
    assert torch.equal(torch.cat(there), images[order])
    assert torch.equal(torch.cat([plan.draw_key for plan in plans]), torch.from_numpy(keys)[order])
    assert torch.equal(torch.cat(machine.run("returned", there)), images)


def test_the_exchange_of_a_step_is_that_of_its_global_batch():
    """Of any step, in any order: a run resumes in the middle of an epoch."""
    plan = EpochPlan(seed=5, epoch=0, num_samples=26, global_batch_size=8, rank=1, world_size=2)
    orders = KeyOrders(plan, Ranks(1, 2), CPU)
    wholes = [EpochPlan(seed=5, epoch=e, num_samples=26, global_batch_size=8) for e in range(2)]
    batches = [(whole.epoch, ids) for whole in wholes for ids in whole.batches()]
    assert len(batches) == 6
    for step in (0, 1, 4, 5, 2):
        epoch, ids = batches[step]
        expected = key_exchange(draw_keys(5, epoch, ids), Ranks(1, 2), CPU)
        for found, same in zip(orders.of_step(step), expected, strict=True):
            assert torch.equal(found, same)
