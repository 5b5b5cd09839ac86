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
SMALLEST_SCALE = 1.0
"""Where an unscaled loss overflows, a smaller one would only lose what is small."""


class LossScaler:
    """Multiplies the loss and divides its gradients; `StepGuard` skips steps that overflow.

    Attributes:
        enabled: Whether the loss is scaled; if not, every method leaves everything as it is.
        scale: Factor of the loss, float32 scalar on the device.
        growth_tracker: Steps since the scale last changed, int32 scalar on the device.
    """

    def __init__(self, device: torch.device, *, enabled: bool) -> None:
        """Start at `INITIAL_SCALE`, on the device of the model."""
        self.enabled = enabled
        self.scale = torch.full((), INITIAL_SCALE, device=device)
        self.growth_tracker = torch.zeros((), dtype=torch.int32, device=device)

    @property
    def is_smallest(self) -> Tensor:
        """Whether the scale cannot be halved any more, bool scalar on the device."""
        return self.scale <= SMALLEST_SCALE

    def scaled(self, loss: Tensor) -> Tensor:
        """``loss * scale``, the tensor to call `backward` on."""
        return loss * self.scale if self.enabled else loss

    @torch.no_grad()
    def unscale_(self, gradients: list[Tensor]) -> None:
        """Divide the gradients by the scale, in place."""
        if self.enabled:
            torch._foreach_mul_(gradients, self.scale.reciprocal())

    @torch.no_grad()
    def update(self, found_inf: Tensor) -> None:
        """Halve the scale after a skipped step, double it after `GROWTH_INTERVAL` steps without.

        Args:
            found_inf: 1 if the step was skipped, else 0, float32 scalar on the device.
        """
        if self.enabled:
            torch._amp_update_scale_(
                self.scale,
                self.growth_tracker,
                found_inf,
                GROWTH_FACTOR,
                BACKOFF_FACTOR,
                GROWTH_INTERVAL,
            )
            self.scale.clamp_(min=SMALLEST_SCALE)

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
