"""One training step: views, InfoNCE, optimizer, momentum update, enqueue (Algorithm 1).

The algorithm is that of arXiv:1911.05722.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from fastmoco.moco.collectives import average_over_ranks, gather_rows, own_rows
from fastmoco.moco.mechanism import Contrast, ContrastiveModel
from fastmoco.moco.model import MoCo
from fastmoco.optim.loss_scaler import LossScaler
from fastmoco.optim.optimizers import set_learning_rate
from fastmoco.pipelines.augment import augment_views
from fastmoco.pipelines.contract import Batch
from fastmoco.pipelines.draws import permutation
from fastmoco.pipelines.policies import Policy
from fastmoco.schema import Precision
from fastmoco.train.metrics import step_metrics
from fastmoco.train.micro_batches import MicroBatches

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
    channels_last. Nothing is read back to the host: where fp16 overflows, the device skips
    optimizer, momentum update and enqueue (not batch norm's running statistics).
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
        accumulate: int = 1,
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
            accumulate: Micro-batches that the batch is cut into (`MicroBatches`).
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
        self.scaler = LossScaler(mean.device, enabled=precision is Precision.fp16)
        self._contrast: Callable[..., tuple[Contrast, Tensor]] = self._plain_contrast
        self._views: Callable[..., tuple[Tensor, Tensor, Tensor]] = self._plain_views
        self._encode: Callable[..., tuple[Contrast, Tensor]]
        self._encode = self._plain_encode
        self._micro_batches: MicroBatches | None = None
        if accumulate > 1:
            assert isinstance(model, MoCo)  # `check_config` refuses the others
            self._micro_batches = MicroBatches(
                model, accumulate, autocast=self._autocast, stage=STAGES[0], compiled=compiled
            )
        self.eager_part = self._compile() if compiled else ""  # for the run's header

    def _compile(self) -> str:
        """Capture what of a step can be; gives what stays eager."""
        if self._micro_batches is None and self.policy.pool:
            self._encode = torch.compile(self._plain_encode, dynamic=False)
        elif self._micro_batches is None:
            self._contrast = torch.compile(self._plain_contrast, dynamic=False)
        elif not self.policy.pool:
            self._views = torch.compile(self._plain_views, dynamic=False)
        return "augmentation eager (policy.pool)" if self.policy.pool else ""

    def __call__(self, batch: Batch, learning_rate: float) -> Tensor:
        """Do one step.

        Args:
            batch: Two crops of each image; batch N must not change between calls where compiled.
            learning_rate: Of this step.

        Returns:
            `metrics.step_metrics` of the batch, on the device; over ranks, their mean.
        """
        set_learning_rate(self.optimizer, learning_rate)
        return self.learn(batch)

    def learn(self, batch: Batch) -> Tensor:
        """Do one step at the learning rate that is set; a pure function of tensors.

        So it can be captured as a CUDA graph: what it reads of the host is the same in every step.

        Args:
            batch: As of a call.

        Returns:
            As of a call.
        """
        self.optimizer.zero_grad(set_to_none=True)
        contrast, metrics = self._differentiate(batch)
        self._average(metrics)
        with record_function(STAGES[2]):
            learned = self.scaler.step(self.optimizer)
        with record_function(STAGES[3]):
            self.model.advance(contrast, learned)
        return metrics

    def _differentiate(self, batch: Batch) -> tuple[Contrast, Tensor]:
        """The loss's gradient, into the query encoder; whole, or micro-batch by micro-batch."""
        if self._micro_batches is None:
            with record_function(STAGES[0]):
                contrast, metrics = self._contrast(batch.crops, batch.sample_id, batch.draw_key)
            self._backward(contrast.loss)
            return contrast, metrics
        with record_function(STAGES[0]):
            query_view, key_view, order = self._views(batch.crops, batch.draw_key)
        contrast = self._micro_batches(query_view, key_view, order, self._backward)
        with torch.no_grad():
            return contrast, step_metrics(contrast)

    def _backward(self, loss: Tensor) -> None:
        with record_function(STAGES[1]):
            self.scaler.scaled(loss).backward()  # type: ignore[no-untyped-call]

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
        return self._encode(*self._plain_views(crops, draw_key), sample_id, draw_key)

    @torch.no_grad()
    def _plain_views(self, crops: Tensor, draw_key: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the model is given: first and second views, and the order of keys."""
        crops, view_keys, order = self._exchange_keys(crops, draw_key)
        views = augment_views(
            crops[:, : self.model.num_views],
            view_keys,
            self.policy,
            self.mean,
            self.std,
            self.view_dtype,
        )
        return views[0], views[-1], order

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
        with self._autocast():
            contrast = self.model(query_view, key_view, order, sample_id, draw_key)
        with torch.no_grad():
            return contrast, step_metrics(contrast)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            self.device_type, self.autocast_dtype, enabled=self.autocast_dtype is not torch.float32
        )

    def state(self) -> dict[str, Any]:
        """The loss scaler's numbers: JSON, for the checkpoint."""
        return self.scaler.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self.scaler.restore(state)
