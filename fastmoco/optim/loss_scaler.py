"""Loss scaling for float16 (arXiv:1710.03740, section 3.2) without reads by the host.

Torch's GradScaler also skips a step on the device, but does not report it: to skip more than the
optimizer's step, the host would have to read its scale, which waits for the device in every step.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

# The values of torch's GradScaler, whose checkpoints can be resumed here.
INITIAL_SCALE = 65536.0
GROWTH_FACTOR = 2.0
BACKOFF_FACTOR = 0.5
GROWTH_INTERVAL = 2000


class LossScaler:
    """Multiplies the loss, divides its gradients, and skips a step in which one is not finite.

    Attributes:
        scale: Factor of the loss, float32 scalar on the device.
        growth_tracker: Steps since the scale last changed, int32 scalar on the device.
        found_inf: 1 if the last step was skipped, else 0, float32 scalar on the device.
    """

    def __init__(self, device: torch.device, *, enabled: bool) -> None:
        """Start at `INITIAL_SCALE`.

        Args:
            device: Device of the model.
            enabled: False turns scaling off: no step is skipped.
        """
        self.enabled = enabled
        self.scale = torch.full((), INITIAL_SCALE, device=device)
        self.growth_tracker = torch.zeros((), dtype=torch.int32, device=device)
        self.found_inf = torch.zeros((), device=device)

    def scaled(self, loss: Tensor) -> Tensor:
        """``loss * scale``, the tensor to call `backward` on."""
        return loss * self.scale if self.enabled else loss

    @torch.no_grad()
    def step(self, optimizer: torch.optim.Optimizer) -> Tensor | None:
        """Divide the gradients by the scale, and do the optimizer's step if all are finite.

        The scale is halved after a skipped step and doubled after `GROWTH_INTERVAL` steps without
        one. The host reads nothing. Gradients must already be averaged over ranks: the mean is
        infinite or NaN wherever one of them is, so all ranks skip the same steps.

        Args:
            optimizer: Parameters, gradients and state change in place.

        Returns:
            Whether the step was done, bool scalar on the device; None if scaling is off.
        """
        if not self.enabled:
            optimizer.step()
            return None
        gradients = [parameter.grad for parameter in _parameters(optimizer)]
        self.found_inf.zero_()
        torch._amp_foreach_non_finite_check_and_unscale_(
            [gradient for gradient in gradients if gradient is not None],
            self.found_inf,
            self.scale.reciprocal(),
        )
        self._step_where_finite(optimizer)
        torch._amp_update_scale_(
            self.scale,
            self.growth_tracker,
            self.found_inf,
            GROWTH_FACTOR,
            BACKOFF_FACTOR,
            GROWTH_INTERVAL,
        )
        return self.found_inf == 0

    def _step_where_finite(self, optimizer: torch.optim.Optimizer) -> None:
        if getattr(optimizer, "_step_supports_amp_scaling", False):
            optimizer.found_inf = self.found_inf  # type: ignore[attr-defined]
            optimizer.step()
            return
        # LARS has no support for `found_inf`: its step is always done, and undone if need be.
        # `copies` take as much memory as weights and momentum.
        tensors = _parameters(optimizer)
        tensors += [
            value
            for state in optimizer.state.values()
            for value in state.values()
            if isinstance(value, Tensor)
        ]
        copies = [tensor.clone() for tensor in tensors]
        optimizer.step()
        for tensor, copy in zip(tensors, copies, strict=True):
            tensor.copy_(torch.where(self.found_inf == 0, tensor, copy))

    def state(self) -> dict[str, Any]:
        """State for the checkpoint as JSON values, with GradScaler's keys; reads the device."""
        if not self.enabled:
            return {}
        return {
            "scale": self.scale.item(),
            "growth_factor": GROWTH_FACTOR,
            "backoff_factor": BACKOFF_FACTOR,
            "growth_interval": GROWTH_INTERVAL,
            "_growth_tracker": self.growth_tracker.item(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore what `state` or GradScaler's ``state_dict`` returned, in place."""
        if state:
            self.scale.fill_(state["scale"])
            self.growth_tracker.fill_(state["_growth_tracker"])


def _parameters(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
