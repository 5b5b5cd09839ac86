"""Learning rates tried at the same time, and the images that choose among them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastmoco.errors import UsageError
from fastmoco.evaluate.classes import top_accuracies
from fastmoco.evaluate.features import (
    FeatureRequest,
    FeatureSet,
    FrozenEncoder,
    extract_features,
)
from fastmoco.evaluate.labeled_task import LabeledTask
from fastmoco.evaluate.labels import hold_out
from fastmoco.evaluate.linear.heads import Heads
from fastmoco.evaluate.settings import LinearConfig


@dataclass(frozen=True, slots=True)
class Grid:
    """The rates that are tried, and the images that choose among them.

    Heads come in this order: of several rates, those without the held-out images, then those with.
    """

    rates: list[float]
    held: npt.NDArray[np.bool_] | None
    """``(n,)`` of all training images; None where there is nothing to choose."""

    @classmethod
    def of(cls, cfg: LinearConfig, task: LabeledTask) -> "Grid":
        """The grid of a configuration."""
        rates = cfg.learning_rates or [cfg.optimizer.learning_rate]
        if any(rate <= 0 for rate in rates):
            raise UsageError(f"learning_rates={rates} holds one that is not positive")
        if len(rates) == 1:
            return cls(rates, None)
        if not 0 < cfg.holdout < 1:
            raise UsageError(f"holdout={cfg.holdout} is no share; set it to 0.1, for example")
        held = np.zeros(len(task.train), bool)
        held[task.ids[hold_out(task.labels[task.ids], cfg.holdout, cfg.seed)]] = True
        if not held.any():
            raise UsageError(
                "no class has two labeled images, so none can be held out to choose among "
                "learning_rates; set one, learning_rates=[30]"
            )
        return cls(rates, held)

    @property
    def heads(self) -> list[float]:
        """The rate of each head."""
        return self.rates if self.held is None else self.rates * 2

    def weights(self, device: torch.device) -> Tensor | None:
        """How much each image counts for each head, ``(n, heads)``."""
        if self.held is None:
            return None
        kept = torch.from_numpy(~self.held).to(device, torch.float32)[:, None]
        half = kept.expand(-1, len(self.rates))
        return torch.cat([half, torch.ones_like(half)], dim=1)

    def accuracies(
        self,
        heads: Heads,
        encoder: FrozenEncoder,
        task: LabeledTask,
        request: FeatureRequest,
        cached: FeatureSet | None,
    ) -> list[float]:
        """Top-1 in percent on the held-out images of the heads that did not see them; or none."""
        if self.held is None:
            return []
        ids = np.flatnonzero(self.held).astype(np.int64)
        if cached is not None:
            vectors = cached.vectors[torch.from_numpy(ids)].to(heads.weight.device)
        else:
            held = dataclasses.replace(request, sample_ids=ids)
            vectors = extract_features(encoder, task.train, held).vectors
        labels = torch.from_numpy(task.labels[ids]).to(vectors.device)
        ranks = heads.ranks(vectors, labels)[:, : len(self.rates)]
        return [top_accuracies(column)[0] for column in ranks.unbind(1)]

    def best(self, held_out: Sequence[float]) -> int:
        """The head that reports: of the best rate, with all images; of equals the first."""
        if self.held is None:
            return 0
        return len(self.rates) + int(np.argmax(held_out))
