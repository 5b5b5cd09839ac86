"""One training step: views, InfoNCE, optimizer, momentum update, enqueue (Algorithm 1).

The algorithm is that of arXiv:1911.05722.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from fastmoco.moco.model import Contrast, MoCo
from fastmoco.pipelines.augment import augment_views
from fastmoco.pipelines.contract import Batch
from fastmoco.pipelines.draws import permutation
from fastmoco.pipelines.policies import Policy
from fastmoco.schema import Precision
from fastmoco.train.metrics import step_metrics

AUTOCAST_DTYPES = {
    Precision.float32: torch.float32,
    Precision.fp16: torch.float16,
    Precision.bf16: torch.bfloat16,
}

STAGES = ("views, encoders, loss", "backward", "optimizer", "momentum update, enqueue")
"""What a profile tells apart; a compiled step makes views, embeddings and loss in one graph."""


class TrainStep:
    """Turns a batch of crops into one update of the model.

    Views have the weights' dtype (autocast casts them at the first convolution); weights are
    channels_last. Nothing is read back to the host, but for fp16: its loss scaler reads one flag a
    step, to skip momentum update and enqueue together with an overflown optimizer step.
    """

    def __init__(
        self,
        model: MoCo,
        optimizer: torch.optim.Optimizer,
        *,
        policy: Policy,
        mean: Tensor,
        std: Tensor,
        precision: Precision = Precision.float32,
        compiled: bool = False,
    ) -> None:
        """Take the parts.

        Args:
            model: Encoders and queue, on the device; changed in place by every call.
            optimizer: Over the query encoder's parameters.
            policy: Augmentations of the views.
            mean: ``(3,)`` channel mean in 0..1, on the device.
            std: ``(3,)`` channel standard deviation in 0..1, on the device.
            precision: Of the encoders.
            compiled: Capture augmentation, encoders and loss by `torch.compile`. The modules
                themselves stay eager, and so does the augmentation of a policy with a pool.
        """
        self.model = model
        self.optimizer = optimizer
        self.policy = policy
        self.mean, self.std = mean, std
        self.precision = precision
        self.device_type = mean.device.type
        self.view_dtype = next(model.query_encoder.parameters()).dtype
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=precision is Precision.fp16)
        self._contrast: Callable[[Tensor, Tensor], tuple[Contrast, Tensor]] = self._plain_contrast
        self._encode: Callable[[Tensor, Tensor, Tensor], tuple[Contrast, Tensor]]
        self._encode = self._plain_encode
        self.eager_part = ""  # for the run's header
        if compiled and policy.pool:
            self._encode = torch.compile(self._plain_encode, dynamic=False)
            self.eager_part = "augmentation eager (policy.pool)"
        elif compiled:
            self._contrast = torch.compile(self._plain_contrast, dynamic=False)

    def __call__(self, batch: Batch, learning_rate: float) -> Tensor:
        """Do one step.

        Args:
            batch: Two crops of each image; batch N must not change between calls where compiled.
            learning_rate: Of this step.

        Returns:
            `metrics.step_metrics` of the batch, on the device.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with record_function(STAGES[0]):
            contrast, metrics = self._contrast(batch.crops, batch.draw_key)
        with record_function(STAGES[1]):
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(contrast.loss).backward()  # type: ignore[no-untyped-call]
        with record_function(STAGES[2]):
            self.scaler.step(self.optimizer)
            overflown = self._overflown()
        with record_function(STAGES[3]):
            if not overflown:
                self.model.update_key_encoder()
                self.model.queue.enqueue(contrast.key)
        return metrics

    def _plain_contrast(self, crops: Tensor, draw_key: Tensor) -> tuple[Contrast, Tensor]:
        with torch.no_grad():
            query_view, key_view = augment_views(
                crops, draw_key, self.policy, self.mean, self.std, self.view_dtype
            )
        return self._encode(query_view, key_view, draw_key)

    def _plain_encode(
        self, query_view: Tensor, key_view: Tensor, draw_key: Tensor
    ) -> tuple[Contrast, Tensor]:
        dtype = AUTOCAST_DTYPES[self.precision]
        with torch.autocast(self.device_type, dtype, enabled=dtype is not torch.float32):
            contrast = self.model(query_view, key_view, permutation(draw_key))
        with torch.no_grad():
            return contrast, step_metrics(contrast, self.model.queue.keys)

    def _overflown(self) -> bool:
        """Whether the scaler skipped this step; moves the scale on."""
        if not self.scaler.is_enabled():
            return False
        scale = self.scaler.get_scale()
        self.scaler.update()
        return self.scaler.get_scale() < scale

    def state(self) -> dict[str, Any]:
        """The loss scaler's numbers: JSON, for the checkpoint."""
        return dict(self.scaler.state_dict())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        if state:
            self.scaler.load_state_dict(dict(state))
