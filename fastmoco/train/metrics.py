"""Metrics of a step, summed on the device; the host reads them only when a log line is due."""

import math

import torch
from torch import Tensor

from fastmoco.moco.mechanism import StepOutput

STEP_METRICS = (
    "loss",
    "accuracy_top1",
    "accuracy_top5",
    "positive_similarity",
    "negative_similarity",
    "alignment",
    "uniformity",
    "feature_deviation",
)


def step_metrics(output: StepOutput) -> Tensor:
    """Compute the values of `STEP_METRICS` for one batch, ``(8,)`` float32 on the device.

    Accuracies are percentages of the (K+1)-way look-up. Alignment is the mean ``|q - k|^2`` and
    uniformity ``log mean exp(-2 |q_i - q_j|^2)`` over pairs i != j (arXiv:2005.10242). Feature
    deviation is the standard deviation of the query's components over the batch, times sqrt(C):
    about 1 for features spread over the sphere, 0 at collapse.

    The loss is the mean over queries, in nats: for a symmetric loss half of the sum.
    """
    query, key = output.query.float(), output.key.float()
    count, dim = query.shape
    positive = (query * key).sum(dim=1)
    similarities = query @ query.T
    kernel = torch.exp(4 * similarities - 4)  # exp(-2 |q_i - q_j|^2) of unit vectors; (i, i) is 1
    pairs = max(1, count * (count - 1))
    return torch.stack(
        [
            output.loss.detach().float() / (output.terms * output.factor),
            100 * (output.rank < 1).float().mean(),
            100 * (output.rank < 5).float().mean(),
            positive.mean(),
            output.negative_similarity.float(),
            (2 - 2 * positive).mean(),
            ((kernel.sum() - count) / pairs).log(),
            query.std(dim=0).mean() * math.sqrt(dim),
        ]
    )


class MetricsSum:
    """Running sum of `step_metrics` between two log lines.

    Attributes:
        total: ``(8,)`` float32, on the device.
        count: Steps summed, int64 scalar on the device.
    """

    def __init__(self, device: torch.device) -> None:
        """Start empty."""
        self.total = torch.zeros(len(STEP_METRICS), device=device)
        self.count = torch.zeros((), dtype=torch.int64, device=device)

    def add(self, values: Tensor) -> None:
        """Add one step's values, in place, without a host read; none if the loss is not finite."""
        is_finite = values[0].isfinite()
        self.total += torch.where(is_finite, values, 0)
        self.count += is_finite

    def means(self) -> dict[str, float]:
        """Read the means, NaN without a step; this waits for the device."""
        means = (self.total / self.count).tolist()
        return dict(zip(STEP_METRICS, means, strict=True))

    def flush(self) -> dict[str, float]:
        """Read the means and set the sum to zero."""
        means = self.means()
        self.total.zero_()
        self.count.zero_()
        return means
