"""The guard of a step: nothing is learned from numbers that are not finite.

A NaN or an infinity in a gradient would be in all weights after the optimizer's step, and one whose
square overflows would be in Adam's second moment for ever. So the device looks at each step, in
every precision, and where loss, gradients or running statistics are not finite, the step changes
nothing: no weights, no optimizer state, no key encoder, no queue, no running statistics. The host
reads nothing in a step; it asks for the count when it reads the metrics anyway.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastmoco.optim.loss_scaler import LossScaler

MOST_SKIPPED_IN_A_ROW = 20
"""Steps in a row that loss scaling may skip while it looks for a scale: it starts at 2^16 and is
halved at each, so that more mean that no scale helps."""


class GuardCounts(NamedTuple):
    """What a guard has seen since `StepGuard.forget`."""

    steps: int
    """Steps that were tried."""
    skipped: int
    """Of these, steps that changed nothing."""
    faults: int
    """Of those, steps that loss scaling does not explain."""
    first_fault: int
    """Number of the first fault among the steps, from 1; 0 without one."""
    in_a_row: int
    """Steps skipped at the end, one after the other; also those before `forget`."""


class StepGuard:
    """Does an optimizer's step where all numbers are finite, and counts the others.

    Attributes:
        scaler: Loss scaling of the step.
        found_inf: 1 if the last step was skipped, else 0, float32 scalar on the device.
    """

    def __init__(self, scaler: LossScaler, statistics: Sequence[Tensor]) -> None:
        """Set what is guarded.

        Args:
            scaler: Loss scaling, on the device.
            statistics: Running means, variances and counts that a forward pass moves in place.
        """
        self.scaler = scaler
        self.found_inf = torch.zeros_like(scaler.scale)
        # By dtype, because each kind is copied as one flat tensor: few launches.
        dtypes = dict.fromkeys(tensor.dtype for tensor in statistics)
        self._kinds = [[t for t in statistics if t.dtype == dtype] for dtype in dtypes]
        self._before: list[Tensor] = []
        counts = torch.zeros(
            len(GuardCounts._fields), dtype=torch.int64, device=scaler.scale.device
        )
        self._counts = counts  # the fields of GuardCounts

    @torch.no_grad()
    def remember(self) -> None:
        """Copy the running statistics, before the forward pass."""
        self._before = [_flat(kind) for kind in self._kinds]

    @torch.no_grad()
    def restore(self) -> None:
        """Put the running statistics back to what `remember` copied."""
        for kind, old in zip(self._kinds, self._before, strict=True):
            _write(kind, old)

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer, loss: Tensor) -> Tensor:
        """Do the optimizer's step, or put the running statistics back.

        Finite are the loss and, in float32, the sums of the squares of gradients and of running
        statistics: 1e38 is finite and its square is not. Gradients, statistics and loss must
        already be averaged over ranks: a mean is not finite wherever one of its terms is not, so
        that all ranks skip the same steps.

        Args:
            optimizer: Parameters, gradients and state change in place.
            loss: Scalar.

        Returns:
            Whether the step was done, bool scalar on the device.
        """
        parameters = _parameters(optimizer)
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.scaler.unscale_(gradients)
        norms = torch.stack(torch._foreach_norm(gradients)).float()
        after = [_flat(kind) for kind in self._kinds]
        total = norms.square().sum() + loss  # finite where each of its terms is
        for values in after:
            total = total + values.float().square().sum()
        good = total.isfinite()
        self.found_inf.copy_(~good)
        self._do_or_leave(optimizer, parameters)
        for kind, new, old in zip(self._kinds, after, self._before, strict=True):
            _write(kind, torch.where(good, new, old))
        self._count(good)
        self.scaler.update(self.found_inf)
        return good

    def _do_or_leave(self, optimizer: torch.optim.Optimizer, parameters: list[Tensor]) -> None:
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = self.found_inf  # type: ignore[attr-defined]
            optimizer.step()
            return
        # LARS has no support for `found_inf`: its step is always done, and undone if need be.
        # `copies` take as much memory as weights and momentum.
        states = [value for state in optimizer.state.values() for value in state.values()]
        tensors = parameters + [value for value in states if isinstance(value, Tensor)]
        copies = [tensor.clone() for tensor in tensors]
        optimizer.step()
        for tensor, copy in zip(tensors, copies, strict=True):
            tensor.copy_(torch.where(self.found_inf == 0, tensor, copy))

    def _count(self, good: Tensor) -> None:
        steps, skipped, faults, first, in_a_row = self._counts.unbind()
        bad = ~good
        steps.add_(1)
        skipped.add_(bad)
        in_a_row.add_(1).mul_(bad)
        if self.scaler.enabled:
            bad = bad & (self.scaler.is_smallest | (in_a_row >= MOST_SKIPPED_IN_A_ROW))
        first.add_(steps * (bad & (faults == 0)))
        faults.add_(bad)

    def read(self) -> GuardCounts:
        """Read the counts; this waits for the device."""
        return GuardCounts(*self._counts.tolist())

    def forget(self) -> None:
        """Set the counts to zero, in place; steps skipped in a row are counted on."""
        self._counts[:4] = 0


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _flat(tensors: Sequence[Tensor]) -> Tensor:
    """One vector of all values; a copy."""
    return torch.cat([tensor.flatten() for tensor in tensors])


def _write(tensors: Sequence[Tensor], flat: Tensor) -> None:
    """Write a vector of `_flat` back, in place."""
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    torch._foreach_copy_(
        list(tensors), [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]
    )
