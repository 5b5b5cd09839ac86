"""One training step: views, InfoNCE, optimizer, momentum update, enqueue (Algorithm 1).

The algorithm is that of arXiv:1911.05722.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import record_function

from fastmoco.draws.device import permutation
from fastmoco.errors import UsageError
from fastmoco.moco.batchnorm import BatchCounters
from fastmoco.moco.collectives import average_over_ranks
from fastmoco.moco.key_exchange import KeyExchange
from fastmoco.moco.mechanism import ContrastiveModel, StepOutput, Views
from fastmoco.moco.model import MoCo
from fastmoco.moco.settings import Precision
from fastmoco.moco.weight_casts import cast_weights
from fastmoco.optim.loss_scaler import LossScaler
from fastmoco.optim.optimizers import set_learning_rate
from fastmoco.optim.precision import AUTOCAST_DTYPES, autocast
from fastmoco.optim.step_guard import StepGuard
from fastmoco.pipelines.augment import augment_views
from fastmoco.pipelines.contract import Batch
from fastmoco.pipelines.device_crops import crop_and_resize
from fastmoco.pipelines.policies import Policy
from fastmoco.train.agreement import Agreement
from fastmoco.train.compilation import Compiler
from fastmoco.train.metrics import step_metrics
from fastmoco.train.micro_batches import MicroBatches
from fastmoco.train.overlap import OverlappedGradients
from fastmoco.train.settings import Gradients

# A pool chooses images by host reads, which would cut the compiled graph into many pieces.
_augment_eagerly = torch.compiler.disable(augment_views)  # type: ignore[no-untyped-call]

STAGES = ("views, encoders, loss", "backward", "optimizer", "momentum update, enqueue")
"""Stages in a profile; a compiled step makes views, embeddings and loss in one graph."""


class TrainStep:
    """Turns a batch of crops into one update of the model.

    Views have the weights' dtype (autocast casts them at the first convolution); weights are
    channels_last. Nothing is read back to the host: where a number is not finite, the step changes
    nothing (`StepGuard`).
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
        compile_required: bool = False,
        accumulate: int = 1,
        by_kornia: bool | None = None,
        gradients: Gradients = Gradients.flat,
    ) -> None:
        """Set model, optimizer and augmentation.

        Args:
            model: Encoders and memory, on the device; every call changes them in place.
            optimizer: Optimizer of the model's `learnable` parameters.
            policy: Augmentations of the views.
            mean: ``(3,)`` channel mean in 0..1, on the device.
            std: ``(3,)`` channel standard deviation in 0..1, on the device.
            precision: Number format of the encoders' forward and backward pass; not auto.
            compiled: Capture augmentation, encoders and loss by `torch.compile`. The modules
                themselves stay eager, and so does the augmentation of a policy with a pool.
            compile_required: Raise an error if compiling fails in the first step; otherwise warn,
                and do this step and all others eagerly.
            accumulate: Micro-batches that the batch is cut into (`MicroBatches`).
            by_kornia: Whether Kornia's functions make the views; None: by the device.
            gradients: How several ranks average their gradients.
        """
        self.model = model
        self.optimizer = optimizer
        self.policy, self.by_kornia = policy, by_kornia
        self.mean, self.std = mean, std
        # A dtype, not the enum: torch.compile does not guard on enums, and a second step in this
        # process (in a sweep) would get the first one's graph.
        self.autocast_dtype = AUTOCAST_DTYPES[precision]
        overlaps = model.ranks.several and gradients is not Gradients.flat
        self._overlapped = OverlappedGradients(model.learnable(), gradients) if overlaps else None
        self.casts_once = compiled and precision is not Precision.float32
        self.view_dtype = next(model.query_encoder.parameters()).dtype
        self.agreement: Agreement | None = None  # with the other ranks of a run
        self.scaler = LossScaler(mean.device, enabled=precision is Precision.fp16)
        self.guard = StepGuard(self.scaler, model.moved_by_forward())
        self.counters = BatchCounters(model)
        self.compiled = compiled
        self.eager_part = ""  # for the run's header
        if compiled and policy.pool:
            self.eager_part = "augmentation eager (policy.pool)"
        self._compile_required, self._accumulate = compile_required, accumulate
        self._compiler = Compiler(model.ranks)
        self._set_forward(self._compiler if compiled else _unchanged)

    def _set_forward(self, prepare: Callable[..., Any]) -> None:
        """Set the forward pass from functions that `prepare` compiles or leaves alone."""
        self._micro_batches: MicroBatches | None = None
        forward: Callable[..., Any] = self._plain_forward
        if self._accumulate > 1:
            assert isinstance(self.model, MoCo)  # `check_config` refuses the others
            self._micro_batches = MicroBatches(
                self.model,
                self._accumulate,
                autocast=self._autocast,
                stage=STAGES[0],
                prepare=prepare,
            )
            forward = self.make_views
        self._forward: Callable[..., Any] = prepare(forward)
        if self._overlapped:
            self._forward = self._overlapped.around(self._forward)

    def __call__(
        self, batch: Batch, learning_rate: float, exchange: KeyExchange | None = None
    ) -> Tensor:
        """Do one step.

        Args:
            batch: Two crops of each image; a compiled step needs the same N in each call.
            learning_rate: Learning rate of this step.
            exchange: Of this step, where `ContrastiveModel.exchanges_keys`.

        Returns:
            `metrics.step_metrics` of the batch, on the device; over ranks, their mean.
        """
        set_learning_rate(self.optimizer, learning_rate)
        return self.learn(batch, exchange)

    def learn(self, batch: Batch, exchange: KeyExchange | None = None) -> Tensor:
        """Do one step at the optimizer's learning rate; see `__call__` for the rest.

        It is a pure function of tensors and can be captured as a CUDA graph: the host values that
        it reads are the same in every step.
        """
        self.optimizer.zero_grad(set_to_none=True)
        self.guard.remember()
        with self.counters.held():
            try:
                output, metrics = self._differentiate(batch, exchange)
            except Exception as error:
                self._give_up_compiling(error)
                output, metrics = self._differentiate(batch, exchange)
        self._compiler.settled = True
        self._average(metrics)
        with record_function(STAGES[2]):
            learned = self.guard.step(self.optimizer, metrics[0])
            self.counters.add(output.terms, learned)
        with record_function(STAGES[3]):
            self.model.after_step(output, learned)
        return metrics

    def _differentiate(
        self, batch: Batch, exchange: KeyExchange | None
    ) -> tuple[StepOutput, Tensor]:
        """Add the loss's gradient to the parameters, of the batch or of each micro-batch."""
        with record_function(STAGES[0]):
            source = () if batch.images is None else (batch.images, batch.boxes)
            keys = {} if exchange is None else {"exchange": exchange}
            result = self._forward(batch.crops, batch.sample_id, batch.draw_key, *source, **keys)
        if self._micro_batches is None:
            output, metrics = result
            self._backward(output.loss)
            return output, metrics
        output = self._micro_batches(result, self._backward)
        with torch.no_grad():
            return output, step_metrics(output)

    def _give_up_compiling(self, error: Exception) -> None:
        """Undo a forward and backward pass that could not be compiled; be eager from now on.

        Raises:
            Exception: The error itself, if it is not the compiler's, or not of the first step.
            UsageError: If compiling is required.
        """
        reason = self._compiler.explain(error) if self.compiled else ""
        if not reason:
            raise error
        if self._compile_required:
            raise UsageError(
                f"torch.compile fails {reason}; set train.compile=auto or never"
            ) from error
        warnings.warn(f"the step is eager, torch.compile fails {reason}", stacklevel=4)
        self.compiled, self.casts_once, self.eager_part = False, False, ""
        self._set_forward(_unchanged)
        self.optimizer.zero_grad(set_to_none=True)
        self.guard.restore()

    def _backward(self, loss: Tensor) -> None:
        with record_function(STAGES[1]):
            self.scaler.scaled(loss).backward()  # type: ignore[no-untyped-call]

    def _average(self, metrics: Tensor) -> None:
        """Average gradients, running statistics, metrics and requests over ranks, in place.

        One collective follows the complete backward pass: 100 MB for ResNet-50, about 1 ms of some
        40 on NVLink (computed, not measured). `OverlappedGradients` averages gradients before that,
        where the network is slow. Running statistics are averaged too (0.2% of the bytes), so that
        ranks stay equal and one checkpoint is enough: they are those of one device with as many
        groups.
        """
        if self.model.ranks.several:
            learnable = [] if self._overlapped else self.model.learnable()
            gradients = [p.grad for p in learnable if p.grad is not None]
            query, key = self.model.running_statistics()
            requests = [] if self.agreement is None else self.agreement.carried()
            average_over_ranks([*gradients, *query, *key, metrics, *requests], self.model.ranks)

    def _plain_forward(
        self,
        crops: Tensor,
        sample_id: Tensor,
        draw_key: Tensor,
        *source: Tensor,
        **exchange: KeyExchange,
    ) -> tuple[StepOutput, Tensor]:
        """Views, encoders, loss, metrics; for the arguments see `make_views`."""
        views = self.make_views(crops, sample_id, draw_key, *source, **exchange)
        with self._autocast():
            weights = {}
            if self.casts_once:
                weights = cast_weights(self.model, self.autocast_dtype)
            output = torch.func.functional_call(self.model, weights, (views,))
        with torch.no_grad():
            return output, step_metrics(output)

    @torch.no_grad()
    def make_views(
        self,
        crops: Tensor,
        sample_id: Tensor,
        draw_key: Tensor,
        *source: Tensor,
        exchange: KeyExchange | None = None,
    ) -> Views:
        """Augment a batch into the model's input; over several ranks, exchange the key crops.

        A symmetric loss needs each view as query here and as key on another rank: then the model
        exchanges views.

        Args:
            crops: Two crops of each image, ``(N, 2, H, W, 3)`` uint8.
            sample_id: ``(N,)`` int64.
            draw_key: ``(N,)`` int64.
            source: `Batch.images` and `Batch.boxes`, where crops are still to be cut.
            exchange: See `__call__`.
        """
        assert (exchange is not None) == self.model.exchanges_keys
        if source:
            images, boxes = source
            crops = crop_and_resize(images[sample_id], boxes, crops.shape[2])
        view_keys = draw_key
        if exchange is not None and not self.model.symmetric:
            key_crops = exchange.scattered(crops[:, 1])  # (N, H, W, 3) uint8
            crops = torch.stack([crops[:, 0], key_crops], dim=1)
            view_keys = torch.stack([draw_key, exchange.draw_key], dim=1)  # (N, 2)
        augment = _augment_eagerly if self.policy.pool else augment_views
        crops = crops[:, : self.model.num_views]  # (N, views, H, W, 3)
        views = augment(
            crops,
            view_keys,
            self.policy,
            self.mean,
            self.std,
            self.view_dtype,
            by_kornia=self.by_kornia,
        )
        order = permutation(draw_key)
        return Views(views[0], views[-1], order, sample_id, draw_key, exchange)

    def _autocast(self) -> torch.autocast:
        return autocast(self.mean.device, self.autocast_dtype)


def _unchanged(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function itself: it stays eager."""
    return function
