"""One training step: views, InfoNCE, optimizer, momentum update, enqueue (Algorithm 1).

The algorithm is that of arXiv:1911.05722.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from fastmoco.draws.device import permutation
from fastmoco.moco.collectives import average_over_ranks, gather_rows, own_rows
from fastmoco.moco.mechanism import ContrastiveModel, StepOutput, Views
from fastmoco.moco.model import MoCo
from fastmoco.moco.settings import Precision
from fastmoco.optim.loss_scaler import LossScaler
from fastmoco.optim.optimizers import set_learning_rate
from fastmoco.optim.precision import AUTOCAST_DTYPES, autocast
from fastmoco.pipelines.augment import augment_views
from fastmoco.pipelines.contract import Batch
from fastmoco.pipelines.policies import Policy
from fastmoco.train.metrics import step_metrics
from fastmoco.train.micro_batches import MicroBatches

# A pool chooses images by host reads, which would cut the compiled graph in many places.
_augment_eagerly = torch.compiler.disable(augment_views)  # type: ignore[no-untyped-call]

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
        self.view_dtype = next(model.query_encoder.parameters()).dtype
        self.scaler = LossScaler(mean.device, enabled=precision is Precision.fp16)
        self._micro_batches: MicroBatches | None = None
        if accumulate > 1:
            assert isinstance(model, MoCo)  # `check_config` refuses the others
            self._micro_batches = MicroBatches(
                model, accumulate, autocast=self._autocast, stage=STAGES[0], compiled=compiled
            )
        self.eager_part = ""  # for the run's header
        self._forward: Callable[[Tensor, Tensor, Tensor], Any] = self._plain_forward
        if accumulate > 1:
            self._forward = self.make_views
        if compiled:
            self._forward = torch.compile(self._forward, dynamic=False)
            self.eager_part = "augmentation eager (policy.pool)" if policy.pool else ""

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
        output, metrics = self._differentiate(batch)
        self._average(metrics)
        with record_function(STAGES[2]):
            learned = self.scaler.step(self.optimizer)
        with record_function(STAGES[3]):
            self.model.after_step(output, learned)
        return metrics

    def _differentiate(self, batch: Batch) -> tuple[StepOutput, Tensor]:
        """The loss's gradient, into the query encoder; whole, or micro-batch by micro-batch."""
        with record_function(STAGES[0]):
            made = self._forward(batch.crops, batch.sample_id, batch.draw_key)
        if self._micro_batches is None:
            output, metrics = made
            self._backward(output.loss)
            return output, metrics
        output = self._micro_batches(made, self._backward)
        with torch.no_grad():
            return output, step_metrics(output)

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

    def _plain_forward(
        self, crops: Tensor, sample_id: Tensor, draw_key: Tensor
    ) -> tuple[StepOutput, Tensor]:
        """Views, encoders, loss, metrics; arguments as of `make_views`."""
        views = self.make_views(crops, sample_id, draw_key)
        with self._autocast():
            output = self.model(views)
        with torch.no_grad():
            return output, step_metrics(output)

    @torch.no_grad()
    def make_views(self, crops: Tensor, sample_id: Tensor, draw_key: Tensor) -> Views:
        """What the model is given for a batch.

        Args:
            crops: ``(N, 2, H, W, 3)`` uint8, two of each image.
            sample_id: ``(N,)`` int64.
            draw_key: ``(N,)`` int64.
        """
        crops, view_keys, order = self._exchange_keys(crops, draw_key)
        augment = _augment_eagerly if self.policy.pool else augment_views
        views = augment(
            crops[:, : self.model.num_views],
            view_keys,
            self.policy,
            self.mean,
            self.std,
            self.view_dtype,
        )
        return Views(views[0], views[-1], order, sample_id, draw_key)

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

    def _autocast(self) -> torch.autocast:
        return autocast(self.mean.device, self.autocast_dtype)

    def state(self) -> dict[str, Any]:
        """The loss scaler's numbers: JSON, for the checkpoint."""
        return self.scaler.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        """Put back what `state` gave."""
        self.scaler.restore(state)
