"""Exchange of key crops in each step of a run on several ranks."""

from dataclasses import replace

import torch

from fastmoco.draws.host import draw_keys
from fastmoco.draws.streams import INT64
from fastmoco.moco.key_exchange import KeyExchange, key_exchange
from fastmoco.pipelines.contract import EpochPlan
from fastmoco.ranks import Ranks


class KeyOrders:
    """A pure function of seed and step, which every host computes for itself.

    It keeps the order of the current epoch (10 MB for ImageNet, and 0.2 s at an epoch's start).
    """

    def __init__(self, plan: EpochPlan, ranks: Ranks, device: torch.device) -> None:
        """Set the run.

        Args:
            plan: Plan of any epoch of the run.
            ranks: Several ranks.
            device: Device of this rank.
        """
        self._plan = replace(plan, rank=0, world_size=1, start_batch=0)
        self._ranks, self._device = ranks, device
        self._order: INT64 | None = None

    def of_step(self, step: int) -> KeyExchange:
        """The exchange of a step of the run, counted from 0."""
        epoch, batch = divmod(step, self._plan.num_batches)
        if self._order is None or epoch != self._plan.epoch:
            self._plan = replace(self._plan, epoch=epoch)
            self._order = self._plan.order()
        size = self._plan.global_batch_size
        ids = self._order[batch * size :][:size]
        return key_exchange(draw_keys(self._plan.seed, epoch, ids), self._ranks, self._device)
