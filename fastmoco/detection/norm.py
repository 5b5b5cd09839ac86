"""Batch norm over the images of all devices, whatever their sizes."""

import torch
from torch import Tensor, nn

from fastmoco.moco.collectives import gather_rows
from fastmoco.ranks import ALONE, Ranks


class DetectionBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with statistics over the values of all ranks.

    With n_r values on rank r and N in total: ``mean = sum n_r mean_r / N`` and
    ``var = sum n_r (var_r + (mean_r - mean)^2) / N``. The number and size of images and regions
    differ between ranks, so `moco.batchnorm.SynchronizedBatchNorm2d`, which gives ranks equal
    weights, would be wrong; `nn.SyncBatchNorm` would be right, but does not support the CPU. With
    one rank this is `nn.BatchNorm2d`.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, num_features: int, *, ranks: Ranks = ALONE) -> None:
        super().__init__(num_features)
        self.ranks = ranks

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``(N, C, H, W)``; training updates the running statistics in place."""
        if not self.training or not self.ranks.several:
            return super().forward(input)
        var, mean = torch.var_mean(input, dim=(0, 2, 3), correction=0)
        count = torch.full_like(mean, input[:, 0].numel())
        gathered = gather_rows(torch.stack([mean, var, count])[None], self.ranks)
        means, variances, counts = gathered.unbind(1)  # each (world_size, C)
        weights = counts / counts.sum(0)
        mean = (weights * means).sum(0)
        var = (weights * (variances + (means - mean).square())).sum(0)
        self._update_running(mean, var, counts[:, 0].sum())
        scale = self.weight * torch.rsqrt(var + self.eps)
        shift = self.bias - mean * scale
        return torch.addcmul(shift.view(-1, 1, 1), input, scale.view(-1, 1, 1))

    @torch.no_grad()
    def _update_running(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        """Update the running statistics; with `momentum` None they are a cumulative mean."""
        self.num_batches_tracked.add_(1)
        weight: Tensor | float = (
            1 / self.num_batches_tracked if self.momentum is None else self.momentum
        )
        self.running_mean += weight * (mean - self.running_mean)
        self.running_var += weight * (var * (count / (count - 1)) - self.running_var)
