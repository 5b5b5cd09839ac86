"""A batch taken in equal parts, one after the other, where memory holds no more (`accumulate`)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.profiler import record_function

from fastmoco.moco.mechanism import StepOutput, Views
from fastmoco.moco.model import MoCo

Part = TypeVar("Part")


class MicroBatches:
    """MoCo's gradient of a batch, from n micro-batches of which one has activations at a time.

    What it means: all micro-batches see the same weights and the same queue, for the optimizer's
    step and what follows it come after the last; keys are shuffled over the whole batch before it
    is cut; each micro-batch is a group of batch norm (or as many of a split one), whose running
    statistics move once, towards the mean over micro-batches. So it is what one device computes of
    the whole batch with n times as many `moco.batch_norm_splits`, up to the rounding of sums, and
    without batch norm what it computes of the whole batch.

    The keys of all come first: the positive of a query may lie in another micro-batch. The views of
    the whole batch are held: of an image of 224 pixels 1.2 MB, beside some 90 of activations.
    """

    def __init__(
        self,
        model: MoCo,
        count: int,
        *,
        autocast: Callable[[], AbstractContextManager[object]],
        stage: str,
        compiled: bool,
    ) -> None:
        """Take the parts.

        Args:
            model: Its running statistics change.
            count: n, a divisor of this rank's batch.
            autocast: Makes the context in which encoders run.
            stage: What a profile calls the forward passes.
            compiled: Capture both forward passes of a micro-batch by `torch.compile`.
        """
        self.model = model
        self.count = count
        self.autocast = autocast
        self.stage = stage
        self._embed: Callable[[Tensor], Tensor] = self._plain_embed
        self._contrast: Callable[[Tensor, Tensor], StepOutput] = self._plain_contrast
        if compiled:
            self._embed = torch.compile(self._plain_embed, dynamic=False)
            self._contrast = torch.compile(self._plain_contrast, dynamic=False)

    def __call__(self, views: Views, backward: Callable[[Tensor], None]) -> StepOutput:
        """Add the batch's gradient to the query encoder's.

        Args:
            views: Of the whole batch.
            backward: Called with each micro-batch's share of the loss.

        Returns:
            Of the whole batch, as `MoCo.forward` gives it, but without gradient.

        Raises:
            ValueError: If the batch is no multiple of n.
        """
        if len(views.query) % self.count:
            raise ValueError(
                f"a batch of {len(views.query)} cannot be cut into {self.count} equal micro-batches"
                "; set train.accumulate to a divisor of it"
            )
        halves = [views, views.swapped()] if self.model.symmetric else [views]
        keys = [self._keys(half.key, half.permutation) for half in halves]
        found = []
        for half, key in zip(halves, keys, strict=True):
            parts = list(self._parts(half.query, key, backward))
            loss = torch.stack([part.loss for part in parts]).mean()
            found.append(_joined(parts, loss, terms=1))
        loss = torch.stack([half.loss for half in found]).sum()
        return _joined(found, loss, terms=len(found))

    def _parts(
        self, views: Tensor, keys: Tensor, backward: Callable[[Tensor], None]
    ) -> Iterator[StepOutput]:
        parts = zip(views.chunk(self.count), keys.chunk(self.count), strict=True)
        for view, key in _once(self.model.query_encoder, list(parts)):
            with record_function(self.stage):
                output = self._contrast(view, key)
            backward(output.loss / self.count)
            output.loss = output.loss.detach()
            yield output

    @torch.no_grad()
    def _keys(self, views: Tensor, permutation: Tensor) -> Tensor:
        with record_function(self.stage):
            views = self.model.shuffled(views, permutation)
            parts = list(views.chunk(self.count))
            keys = [self._embed(view) for view in _once(self.model.key_encoder, parts)]
            return self.model.unshuffled(torch.cat(keys), permutation)

    def _plain_embed(self, view: Tensor) -> Tensor:
        with self.autocast():
            return self.model.embed_keys(view)

    def _plain_contrast(self, view: Tensor, key: Tensor) -> StepOutput:
        with self.autocast():
            return self.model.contrast(view, key)


def _once(encoder: nn.Module, parts: Sequence[Part]) -> Iterator[Part]:
    """Yield the parts, during which the encoder's running statistics move once in all.

    Each part starts from the same statistics r, and they end as the mean of what the parts made of
    them: ``(1 - a) r + a E_i s_i``, which is what split batch norm does with groups s_i.
    """
    running = [buffer for buffer in encoder.buffers() if buffer.is_floating_point()]
    counts = [buffer for buffer in encoder.buffers() if not buffer.is_floating_point()]
    if not running:
        yield from parts
        return
    start, start_counts = ([buffer.clone() for buffer in kind] for kind in (running, counts))
    total = [torch.zeros_like(buffer) for buffer in running]
    for part in parts:
        torch._foreach_copy_(running, start)
        torch._foreach_copy_(counts, start_counts)
        yield part
        torch._foreach_add_(total, running)
    torch._foreach_div_(total, len(parts))
    torch._foreach_copy_(running, total)


def _joined(parts: Sequence[StepOutput], loss: Tensor, *, terms: int) -> StepOutput:
    return StepOutput(
        loss,
        torch.cat([part.query for part in parts]),
        torch.cat([part.key for part in parts]),
        torch.cat([part.rank for part in parts]),
        torch.stack([part.negative_similarity for part in parts]).mean(),
        factor=parts[0].factor,
        terms=terms,
    )
