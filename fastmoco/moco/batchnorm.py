"""Batch norm over contiguous groups of a batch, as if each group sat on a device of its own.

MoCo needs it on one device: with plain batch norm the batch statistics tell a query which key is
its own (arXiv:1911.05722, section 3.3, "Shuffling BN"). The step shuffles the keys; the groups then
differ between query and key.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SplitBatchNorm2d(nn.BatchNorm2d):
    """`nn.BatchNorm2d` with training statistics apart for each of S contiguous groups.

    Running statistics follow the mean of the groups' statistics. In evaluation it is plain batch
    norm.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor
    momentum: float

    def __init__(self, num_features: int, *, num_splits: int) -> None:
        """Make the layer.

        Args:
            num_features: C.
            num_splits: S >= 1; every training batch must be a multiple of it.
        """
        super().__init__(num_features)
        self.num_splits = num_splits

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``(N, C, H, W)``; running statistics change in place in training.

        Raises:
            ValueError: If N is not a multiple of `num_splits` in training.
        """
        if not self.training or self.num_splits == 1:
            return super().forward(input)
        if input.shape[0] % self.num_splits:
            raise ValueError(
                f"a batch of {input.shape[0]} cannot be split into {self.num_splits} equal groups; "
                f"set moco.batch_norm_splits to a divisor of the batch size"
            )
        # With momentum 1 / (s + 1) the scratch statistics are the plain mean over groups after the
        # last one; one lerp then moves the running value. Zeros, not empty: 0 x uninitialized
        # memory may be NaN.
        mean, var = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        groups = [
            F.batch_norm(
                group, mean, var, self.weight, self.bias, True, 1.0 / (index + 1), self.eps
            )
            for index, group in enumerate(input.chunk(self.num_splits))
        ]
        with torch.no_grad():
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(var, self.momentum)
            self.num_batches_tracked.add_(1)
        return torch.cat(groups)
