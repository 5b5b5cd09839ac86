"""One training step: views, InfoNCE, optimizer, momentum update, enqueue (Algorithm 1).

The algorithm is that of arXiv:1911.05722.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from fastmoco.moco.collectives import average_over_ranks, gather_rows, own_rows
from fastmoco.moco.contrastive import Contrast, ContrastiveModel
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
        model: ContrastiveModel,
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
            model: Encoders and what they remember, on the device; changed in place by every call.
            optimizer: Over what the model has to learn.
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
        # A dtype, not its name: torch.compile guards on no enum, and would give a second step in
        # this process (of a sweep) the first one's graph.
        self.autocast_dtype = AUTOCAST_DTYPES[precision]
        self.device_type = mean.device.type
        self.view_dtype = next(model.query_encoder.parameters()).dtype
        self.scaler = torch.amp.GradScaler(self.device_type, enabled=precision is Precision.fp16)
        self._contrast: Callable[..., tuple[Contrast, Tensor]] = self._plain_contrast
        self._encode: Callable[..., tuple[Contrast, Tensor]]
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
            `metrics.step_metrics` of the batch, on the device; over ranks, their mean.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with record_function(STAGES[0]):
            contrast, metrics = self._contrast(batch.crops, batch.sample_id, batch.draw_key)
        with record_function(STAGES[1]):
            self.optimizer.zero_grad(set_to_none=True)
            self.scaler.scale(contrast.loss).backward()  # type: ignore[no-untyped-call]
            self._average(metrics)
        with record_function(STAGES[2]):
            self.scaler.step(self.optimizer)
            overflown = self._overflown()
        with record_function(STAGES[3]):
            if not overflown:
                self.model.advance(contrast)
        return metrics

    def _average(self, metrics: Tensor) -> None:
        """Mean over ranks of gradients, running statistics and metrics, in place.

        After the whole backward pass, in one collective, and not by DistributedDataParallel, whose
        buckets would cut the compiled step into graphs: what it would hide behind the backward
        pass is 100 MB of ResNet-50, about 1 ms of some 40 on NVLink (computed, not measured). A
        slow network between machines would want the buckets. Running statistics ride along (0.2% of
        the bytes), so that ranks differ in nothing and a checkpoint holds the whole run: they are
        those of one device with as many groups.
        """
        if self.model.ranks.several:
            gradients = [p.grad for p in self.model.learnable() if p.grad is not None]
            query, key = self.model.running_statistics()
            average_over_ranks([*gradients, *query, *key, metrics], self.model.ranks)

    def _plain_contrast(
        self, crops: Tensor, sample_id: Tensor, draw_key: Tensor
    ) -> tuple[Contrast, Tensor]:
        with torch.no_grad():
            crops, view_keys, order = self._exchange_keys(crops, draw_key)
            views = augment_views(
                crops[:, : self.model.num_views],
                view_keys,
                self.policy,
                self.mean,
                self.std,
                self.view_dtype,
            )
        return self._encode(views[0], views[-1], order, sample_id, draw_key)

    def _exchange_keys(self, crops: Tensor, draw_key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The order in which keys are seen and, across ranks, the key crops it gives this one.

        Every rank gathers all key crops and keeps its share. An all-to-all would move a
        ``world_size``-th of the bytes, but the host would have to wait for the order to say who
        sends how much; gathered are uint8, a quarter of what the official code moves. A symmetric
        loss needs each view as query here and as key elsewhere: the model gathers views then.

        Args:
            crops: ``(N, 2, H, W, 3)`` uint8, two of each image.
            draw_key: ``(N,)``.

        Returns:
            Crops, draw keys (``(N, 2)`` where the second view is of other images), and the order of
            the global batch.
        """
        ranks = self.model.ranks
        if not (ranks.several and self.model.shuffle_keys):
            return crops, draw_key, permutation(draw_key)
        all_draw_keys = gather_rows(draw_key, ranks)
        order = permutation(all_draw_keys)
        if self.model.symmetric:
            return crops, draw_key, order
        mine = own_rows(order, ranks)
        key_crops = gather_rows(crops[:, 1], ranks)[mine]
        return (
            torch.stack([crops[:, 0], key_crops], dim=1),
            torch.stack([draw_key, all_draw_keys[mine]], dim=1),
            order,
        )

    def _plain_encode(
        self,
        query_view: Tensor,
        key_view: Tensor,
        order: Tensor,
        sample_id: Tensor,
        draw_key: Tensor,
    ) -> tuple[Contrast, Tensor]:
        with torch.autocast(
            self.device_type, self.autocast_dtype, enabled=self.autocast_dtype is not torch.float32
        ):
            contrast = self.model(query_view, key_view, order, sample_id, draw_key)
        with torch.no_grad():
            return contrast, step_metrics(contrast)

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
