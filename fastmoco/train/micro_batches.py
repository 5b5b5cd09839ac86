"""Gradient accumulation: a batch in equal micro-batches, one after the other, to save memory."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from fastmoco.moco.mechanism import StepOutput, Views, floating_buffers, join_outputs
from fastmoco.moco.model import MoCo

Item = TypeVar("Item")


class MicroBatches:
    """MoCo's gradient of a batch, from n micro-batches of which one has activations at a time.

    All micro-batches see the same weights and the same queue: the optimizer's step and the updates
    after it follow the last one. Keys are shuffled over the complete batch before it is cut. Each
    micro-batch is a group of batch norm (or several groups, if it is split), and running statistics
    move once, towards the mean over micro-batches. So the result is that of the complete batch on
    one device with n times as many `moco.batch_norm_splits`, up to the rounding of sums; without
    batch norm it is that of the complete batch.

    All keys are computed first: the positive of a query may be in another micro-batch. The views of
    the complete batch stay in memory: 1.2 MB for an image of 224 pixels, beside some 90 MB of
    activations.
    """

    def __init__(
        self,
        model: MoCo,
        count: int,
        *,
        autocast: Callable[[], AbstractContextManager[object]],
        stage: str,
        prepare: Callable[..., Callable[..., Any]],
    ) -> None:
        """Set the model and the number of micro-batches.

        Args:
            model: MoCo; its running statistics change in place.
            count: n, a divisor of this rank's batch.
            autocast: Makes the context in which encoders run.
            stage: Name of the forward passes in a profile.
            prepare: Compiles both forward passes of a micro-batch, or leaves them eager.
        """
        self.model, self.count = model, count
        self.autocast, self.stage = autocast, stage
        self._embed: Callable[[Tensor], Tensor] = prepare(self._plain_embed)
        self._contrast: Callable[[Tensor, Tensor], StepOutput] = prepare(self._plain_contrast)

    def __call__(self, views: Views, backward: Callable[[Tensor], None]) -> StepOutput:
        """Add the batch's gradient to the query encoder's.

        Args:
            views: Views of the complete batch.
            backward: Called with the loss of each micro-batch, divided by n.

        Returns:
            Output for the complete batch, as of `MoCo.forward`, but without gradient.

        Raises:
            ValueError: If the batch is not a multiple of n.
        """
        if len(views.query) % self.count:
            raise ValueError(
                f"a batch of {len(views.query)} cannot be cut into {self.count} equal micro-batches"
                "; set train.accumulate to a divisor of it"
            )
        directions = [views, views.swapped()] if self.model.symmetric else [views]
        keys = [self._keys(direction) for direction in directions]
        outputs = []
        for direction, key in zip(directions, keys, strict=True):
            contrasts = list(self._contrasts(direction.query, key, backward))
            loss = torch.stack([contrast.loss for contrast in contrasts]).mean()
            outputs.append(join_outputs(contrasts, loss))
        loss = torch.stack([output.loss for output in outputs]).sum()
        output = join_outputs(outputs, loss, terms=len(outputs))
        output.source = self.model.key_sources(views)
        return output

    def _contrasts(
        self, views: Tensor, keys: Tensor, backward: Callable[[Tensor], None]
    ) -> Iterator[StepOutput]:
        pairs = list(zip(views.chunk(self.count), keys.chunk(self.count), strict=True))
        for view, key in _with_one_update(self.model.query_encoder, pairs):
            with record_function(self.stage):
                output = self._contrast(view, key)
            backward(output.loss / self.count)
            output.loss = output.loss.detach()
            yield output

    @torch.no_grad()
    def _keys(self, views: Views) -> Tensor:
        with record_function(self.stage):
            parts = self.model.shuffled(views).chunk(self.count)
            chunks = _with_one_update(self.model.key_encoder, parts)
            keys = torch.cat([self._embed(view) for view in chunks])
            return self.model.unshuffled(keys, views)

    def _plain_embed(self, view: Tensor) -> Tensor:
        with self.autocast():
            return self.model.embed_keys(view)

    def _plain_contrast(self, view: Tensor, key: Tensor) -> StepOutput:
        with self.autocast():
            return self.model.contrast(view, key)


def _with_one_update(encoder: nn.Module, chunks: Sequence[Item]) -> Iterator[Item]:
    """Yield the chunks, and move the encoder's running statistics once for all of them.

    Each chunk starts from the same statistics r, and they end as the mean over chunks of the moved
    statistics: ``(1 - a) r + a E_i s_i``, the same as for split batch norm with groups s_i.
    """
    running = floating_buffers(encoder)
    if not running:
        yield from chunks
        return
    start = [buffer.clone() for buffer in running]
    total = [torch.zeros_like(buffer) for buffer in running]
    for chunk in chunks:
        torch._foreach_copy_(running, start)
        yield chunk
        torch._foreach_add_(total, running)
    torch._foreach_div_(total, len(chunks))
    torch._foreach_copy_(running, total)
