"""Batch norm over groups of a device's batch, or over the batches of all ranks.

MoCo needs groups: with plain batch norm on one device the batch statistics reveal to a query which
key is its own (arXiv:1911.05722, section 3.3, "Shuffling BN"). The step shuffles the keys; the
groups then differ between query and key.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fastmoco.moco.backbone import NormLayer
from fastmoco.moco.collectives import gather_rows
from fastmoco.moco.settings import BatchNorm, Mechanism, MocoConfig
from fastmoco.ranks import Ranks

HeadNorm = Callable[..., nn.Module]
"""Makes a normalization of ``(N, channels)`` from `channels`, and takes `affine`."""


def resolve_batch_norm(
    moco: MocoConfig, ranks: Ranks, accumulate: int = 1
) -> tuple[BatchNorm, int]:
    """Resolve ``auto`` for these devices, and count the groups that are normalized separately.

    Args:
        moco: Settings of the mechanism.
        ranks: Ranks that train.
        accumulate: Micro-batches of a step; each is at least one group.

    Returns:
        The kind, not ``auto``, and the number of groups of a global batch, over all devices.
    """
    kind, groups = moco.batch_norm, ranks.world_size * accumulate
    if kind is BatchNorm.auto and moco.mechanism is not Mechanism.moco:
        # Where keys are of the same batch, a device's own statistics would reveal the positives
        # (arXiv:2002.05709, "Global BN"); entries of a bank are of other batches.
        in_batch = moco.mechanism is not Mechanism.memory_bank
        kind = BatchNorm.synchronized if in_batch and ranks.several else BatchNorm.plain
    if kind in (BatchNorm.auto, BatchNorm.shuffled) and moco.batch_norm_splits > 1:
        groups = moco.batch_norm_splits
    if kind is BatchNorm.auto:
        kind = BatchNorm.shuffled if groups > 1 else BatchNorm.plain
    return kind, accumulate if kind is BatchNorm.synchronized else groups


class _GroupedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Running statistics of batch norm over other groups than one device's batch."""

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor | None
    momentum: float

    @torch.no_grad()
    def _update_running(self, mean: Tensor, var: Tensor, count: int) -> None:
        """Move the running statistics towards the mean over groups ``(S, C)`` of `count` values."""
        self.running_mean.lerp_(mean.mean(0), self.momentum)
        self.running_var.lerp_(var.mean(0) * (count / (count - 1)), self.momentum)
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)


class SplitBatchNorm2d(_GroupedBatchNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d` with separate training statistics for each of S contiguous groups.

    Running statistics follow the mean of the groups' statistics. In evaluation it is plain batch
    norm.
    """

    def __init__(self, num_features: int, *, num_splits: int) -> None:
        """Make the layer.

        Args:
            num_features: C.
            num_splits: S >= 1, a divisor of every training batch.
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
        # One view and two reductions, not a layer per group: compiled, it is 7% faster and takes
        # 42 s to compile instead of 73 (ResNet-18 width 16, 1 core); eager, it is 19% slower.
        groups = input.view(self.num_splits, -1, *input.shape[1:])  # (S, N/S, C, H, W), no copy
        groups = groups.to(torch.promote_types(input.dtype, torch.float32))
        var, mean = torch.var_mean(groups, dim=(1, 3, 4), correction=0, keepdim=True)
        self._update_running(mean.flatten(1), var.flatten(1), groups[0, :, 0].numel())
        scale = self.weight[:, None, None] * torch.rsqrt(var + self.eps)
        shift = self.bias[:, None, None] - mean * scale
        return torch.addcmul(shift, groups, scale).view_as(input).to(input.dtype)


class _SynchronizedBatchNorm(_GroupedBatchNorm):
    """Batch norm with the statistics of the batches of all ranks together.

    ``mean = E_r mean_r`` and ``var = E_r var_r + Var_r mean_r``: the law of total variance, for
    batches of equal size. One gather forward and one sum backward per layer. It works on CPU and
    CUDA: `nn.SyncBatchNorm` refuses the CPU and splits the compiled graph.
    """

    def __init__(self, num_features: int, *, ranks: Ranks, affine: bool = True) -> None:
        """Make the layer.

        Args:
            num_features: C.
            ranks: Ranks whose batches, of equal size, are normalized together.
            affine: Whether a learned scale and shift follow.
        """
        super().__init__(num_features, affine=affine)
        self.ranks = ranks

    def forward(self, input: Tensor) -> Tensor:
        """Normalize ``(N, C, ...)``; running statistics change in place in training."""
        if not self.training:
            return super().forward(input)
        values = input.to(torch.promote_types(input.dtype, torch.float32))
        over = [dim for dim in range(input.ndim) if dim != 1]
        var, mean = torch.var_mean(values, dim=over, correction=0)
        gathered = gather_rows(torch.stack([mean, var])[None], self.ranks)  # (world_size, 2, C)
        means, variances = gathered.unbind(1)
        mean, var = means.mean(0), variances.mean(0) + means.var(0, correction=0)
        count = self.ranks.world_size * values[:, 0].numel()
        self._update_running(mean[None], var[None], count)
        scale = torch.rsqrt(var + self.eps)
        scale = self.weight * scale if self.affine else scale
        shift = (self.bias if self.affine else 0) - mean * scale
        per_channel = [-1] + [1] * (input.ndim - 2)
        normal = torch.addcmul(shift.view(per_channel), values, scale.view(per_channel))
        return normal.to(input.dtype)


class SynchronizedBatchNorm1d(_SynchronizedBatchNorm, nn.BatchNorm1d):
    """`nn.BatchNorm1d` over all ranks."""


class SynchronizedBatchNorm2d(_SynchronizedBatchNorm, nn.BatchNorm2d):
    """`nn.BatchNorm2d` over all ranks."""


def encoder_norm_layer(moco: MocoConfig, ranks: Ranks, accumulate: int = 1) -> NormLayer:
    """Return the class of an encoder's batch norms; for the arguments see `resolve_batch_norm`."""
    kind, groups = resolve_batch_norm(moco, ranks, accumulate)
    if kind is BatchNorm.synchronized and ranks.several:
        return partial(SynchronizedBatchNorm2d, ranks=ranks)
    splits = groups // accumulate // ranks.world_size
    return partial(SplitBatchNorm2d, num_splits=splits) if splits > 1 else nn.BatchNorm2d


def head_norm_layer(moco: MocoConfig, ranks: Ranks) -> HeadNorm:
    """Return the class of the batch norms in MoCo v3's heads."""
    kind, _ = resolve_batch_norm(moco, ranks)
    if kind is BatchNorm.synchronized and ranks.several:
        return partial(SynchronizedBatchNorm1d, ranks=ranks)
    return nn.BatchNorm1d


class BatchCounters:
    """Numbers of batches that a model's batch norms have seen, moved by one call for all layers.

    A layer that counts for itself costs a launch: 40 in a step of ResNet-18, also where the forward
    pass is compiled. Running statistics cost none there: the kernel that ends a layer's sums writes
    them too.
    """

    def __init__(self, model: nn.Module) -> None:
        """Find the layers that count; one without a momentum needs its count while it runs."""
        self._layers = [
            layer
            for layer in model.modules()
            if isinstance(layer, _NormBase)
            and layer.num_batches_tracked is not None
            and layer.momentum is not None
        ]

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep layers from counting within the context, by hiding their counts."""
        kept = [(layer._buffers, layer.num_batches_tracked) for layer in self._layers]
        for buffers, _ in kept:
            buffers["num_batches_tracked"] = None
        try:
            yield
        finally:
            for buffers, count in kept:
                buffers["num_batches_tracked"] = count

    @torch.no_grad()
    def add(self, batches: int, learned: Tensor | None = None) -> None:
        """Count batches in all layers that are in training mode, in place.

        Args:
            batches: Forward passes since the last call.
            learned: See `ContrastiveModel.after_step`.
        """
        counted = [layer.num_batches_tracked for layer in self._layers if layer.training]
        if counts := [count for count in counted if count is not None]:
            number = batches if learned is None else learned * batches
            torch._foreach_add_(counts, torch.as_tensor(number, device=counts[0].device), alpha=1)
