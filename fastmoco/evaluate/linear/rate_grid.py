"""Learning rates tried at the same time, and the held-out images that choose among them."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fastmoco.errors import UsageError
from fastmoco.evaluate.classes import top_accuracies
from fastmoco.evaluate.features import FeatureRequest, FeatureSet, extract_features
from fastmoco.evaluate.frozen_encoder import FrozenEncoder
from fastmoco.evaluate.labeled_task import LabeledTask
from fastmoco.evaluate.labels import hold_out
from fastmoco.evaluate.linear.heads import Heads
from fastmoco.evaluate.settings import LinearConfig


@dataclass(frozen=True, slots=True)
class RateGrid:
    """The rates to try, and the held-out images that choose among them.

    With several rates, the heads that do not see the held-out images come before those that do.
    """

    rates: list[float]
    held: npt.NDArray[np.bool_] | None
    """Which training images are held out, ``(n,)``; None if there is only one rate."""

    @classmethod
    def of(cls, cfg: LinearConfig, task: LabeledTask) -> "RateGrid":
        """The grid of a configuration."""
        rates = cfg.learning_rates or [cfg.optimizer.learning_rate]
        if len(rates) == 1:
            return cls(rates, None)
        held = np.zeros(len(task.train), bool)
        held[task.ids[hold_out(task.labels[task.ids], cfg.holdout, cfg.seed)]] = True
        if not held.any():
            raise UsageError(
                "no class has two labeled images, so no image can be held out to choose among "
                "learning_rates; set only one rate, learning_rates=[30]"
            )
        return cls(rates, held)

    @property
    def heads(self) -> list[float]:
        """The rate of each head."""
        return self.rates if self.held is None else self.rates * 2

    def weights(self, device: torch.device) -> Tensor | None:
        """Weight of each training image for each head, ``(n, heads)`` float32; None: all equal."""
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
        """Measure the heads that did not see the held-out images on these; top-1 in percent."""
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
        """The head to report: that of the best rate with all images; the first one in ties."""
        if self.held is None:
            return 0
        return len(self.rates) + int(np.argmax(held_out))
