"""Interface of all loaders: the order of an epoch, the batch, the iterator.

images --convert--> beton --loader--> crops (uint8) --augment--> views --step--> loss
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import numpy as np
from torch import Tensor

from fastmoco.data.beton_set import BetonSet
from fastmoco.data.dataset import Dataset
from fastmoco.data.remote.streamed import StreamedSet
from fastmoco.draws.host import NUM_STREAMS, epoch_order, streamed_order
from fastmoco.draws.streams import INT64
from fastmoco.errors import UsageError
from fastmoco.pipelines.policies import Policy
from fastmoco.pipelines.settings import PipelineConfig


def streamed_shards(
    dataset: Dataset, global_batch_size: int, *, before: bool | None = None
) -> INT64 | None:
    """End of each shard, ``(S,)``, where training reads shards one after the other; else None.

    So it reads sets elsewhere of `NUM_STREAMS` shards or more, if each stream has an equal part of
    a batch; a run that goes on reads as `before`, wherever its shards are now.
    """
    streams = before
    if before is None:
        streams = isinstance(dataset, StreamedSet) and not global_batch_size % NUM_STREAMS
    return dataset.shard_ends if streams and isinstance(dataset, BetonSet) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochPlan:
    """Sample ids of each batch of one epoch, for one rank: a pure function of its fields.

    Training visits a permutation and drops the last partial batch; evaluation visits the samples in
    file order and keeps it. A rank takes a contiguous slice of each global batch, so W ranks
    together see the same images as one rank.

    Raises:
        UsageError: If sizes do not fit; names the option to change.
        ValueError: If `start_batch` is outside an epoch.
    """

    seed: int
    epoch: int
    num_samples: int
    global_batch_size: int
    rank: int = 0
    world_size: int = 1
    start_batch: int = 0
    training: bool = True
    sample_ids: INT64 | None = field(default=None, compare=False)
    """``(num_samples,)``: the samples of a dataset that are visited; None: all of them."""
    shard_ends: INT64 | None = field(default=None, compare=False)
    """Training: the end of each shard, where shards come one after the other (`streamed_order`)."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot make a batch."""
        if self.global_batch_size < 1 or self.global_batch_size % self.world_size:
            raise UsageError(
                f"global_batch_size must be a positive multiple of the {self.world_size} devices, "
                f"got {self.global_batch_size}"
            )
        if self.training and self.num_samples < self.global_batch_size:
            count = self.num_samples
            advice = f"set global_batch_size={count} or less" if count > 1 else "give 2 or more"
            raise UsageError(
                f"global_batch_size={self.global_batch_size} is larger than the dataset of "
                f"{count} image{'s' if count > 1 else ''}; {advice}"
            )
        if self.shard_ends is not None and self.global_batch_size % NUM_STREAMS:
            raise UsageError(
                f"global_batch_size must be a multiple of {NUM_STREAMS} for shards that come one "
                f"after the other, got {self.global_batch_size}"
            )
        if not 0 <= self.start_batch <= self.num_batches:
            raise ValueError(
                f"start_batch must be in [0, {self.num_batches}], the batches of an epoch, got "
                f"{self.start_batch}; resume with the checkpoint's dataset and global_batch_size"
            )

    @property
    def num_batches(self) -> int:
        """Batches of a full epoch, from batch 0."""
        partial = 0 if self.training else self.global_batch_size - 1
        return (self.num_samples + partial) // self.global_batch_size

    @property
    def max_count(self) -> int:
        """Samples of this rank's largest batch."""
        return -(-min(self.num_samples, self.global_batch_size) // self.world_size)

    def order(self) -> INT64:
        """Sample ids in the order of visit, ``(num_samples,)`` int64."""
        if self.training and self.shard_ends is not None:
            order = streamed_order(self.seed, self.epoch, self.shard_ends, self.global_batch_size)
        elif self.training:
            order = epoch_order(self.seed, self.epoch, self.num_samples)
        else:
            order = np.arange(self.num_samples, dtype=np.int64)
        return order if self.sample_ids is None else self.sample_ids[order]

    def batches(self) -> Iterator[INT64]:
        """Yield this rank's sample ids, batch by batch from `start_batch`.

        Yields:
            ``(global_batch_size / world_size,)`` int64; fewer for a last partial batch.
        """
        order = self.order()
        for batch in range(self.start_batch, self.num_batches):
            yield order[self._rows(batch)]

    def remaining(self) -> INT64:
        """This rank's sample ids from `start_batch` to the end of the epoch, in one array."""
        return np.concatenate([*self.batches(), np.empty(0, np.int64)])

    def batch_sizes(self) -> Iterator[int]:
        """Yield the number of samples in each of `batches`."""
        for batch in range(self.start_batch, self.num_batches):
            rows = self._rows(batch)
            yield rows.stop - rows.start

    def _rows(self, batch: int) -> slice:
        """This rank's part of a global batch, as positions in `order`."""
        start = batch * self.global_batch_size
        stop = min(start + self.global_batch_size, self.num_samples)
        per_rank = -(-(stop - start) // self.world_size)
        first = min(start + self.rank * per_rank, stop)
        return slice(first, min(first + per_rank, stop))

    def next_epoch(self) -> Self:
        """The plan of the following epoch, from its first batch."""
        return replace(self, epoch=self.epoch + 1, start_batch=0)

    def epochs(self, stop_epoch: int) -> Iterator[Self]:
        """Yield this plan and those that follow, up to epoch ``stop_epoch - 1``."""
        plan = self
        while plan.epoch < stop_epoch:
            yield plan
            plan = plan.next_epoch()


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderSpec:
    """Settings of a loader besides the dataset and the plan.

    Raises:
        UsageError: If a value is out of range.
    """

    view_size: int
    """Side of the square views, pixels."""
    policy: Policy | None
    """Draws crops, by ``crop_scale`` and ``crop_ratio``; None: one central crop per image."""
    policy_views: int = 2
    """Crops that a policy draws per image."""
    center_crop: float = 0.875
    """Evaluation: side of the central square as a fraction of the short side (0.875 = 224/256)."""
    num_threads: int = 0
    """Threads that decode; 0: one for each core that this process may use."""
    prefetch_batches: int = 2
    """Batches made ahead of the one in use."""
    hw_decoder_load: float | None = None
    """DALI on a GPU: fraction of images that its JPEG unit decodes; None: 0.65."""

    cut_in_step: bool = False
    """A set on a GPU: batches come without crops, which the step cuts (`Batch.images`)."""

    def __post_init__(self) -> None:
        """Refuse values that no loader can serve."""
        load = self.hw_decoder_load
        for name, fits, allowed in (
            ("view_size", self.view_size >= 1, "1 or more"),
            ("center_crop", 0 < self.center_crop <= 1, "in (0, 1]"),
            ("num_threads", self.num_threads >= 0, "0 (one per core) or more"),
            ("prefetch_batches", self.prefetch_batches >= 1, "1 or more"),
            ("hw_decoder_load", load is None or 0 <= load <= 1, "null or in [0, 1]"),
        ):
            if not fits:
                raise UsageError(f"pipeline.{name} must be {allowed}, got {getattr(self, name)}")

    @classmethod
    def of(cls, pipeline: PipelineConfig, policy: Policy | None, views: int = 2) -> Self:
        """Take the settings from a configuration.

        Args:
            pipeline: Sizes, threads, prefetching.
            policy: Draws crops of `view_size`; None: central crops of `eval_size`.
            views: Crops that a policy draws per image.
        """
        return cls(
            view_size=pipeline.view_size if policy else pipeline.eval_size or pipeline.view_size,
            policy=policy,
            policy_views=views,
            center_crop=pipeline.center_crop,
            num_threads=pipeline.num_threads,
            prefetch_batches=pipeline.prefetch_batches,
            hw_decoder_load=pipeline.hw_decoder_load,
        )

    @property
    def num_views(self) -> int:
        """Views per image, V: 1 in evaluation, `policy_views` in training."""
        return 1 if self.policy is None else self.policy_views

    @property
    def threads(self) -> int:
        """Number of threads that decode, 1 or more."""
        return self.num_threads or len(os.sched_getaffinity(0))


@dataclass(slots=True)
class Batch:
    """Crops of N images, on the device; valid until the next ``next()`` of their loader.

    V is 2 in training (two random crops) and 1 in evaluation (resize and center crop).
    """

    crops: Tensor
    """uint8 ``(N, V, H, W, 3)``, RGB; ``(N, V, H, W, 0)`` where they are still to be cut."""
    boxes: Tensor
    """int32 ``(N, V, 4)``: top, left, height, width of each crop in its source image, pixels."""
    sample_id: Tensor
    """int64 ``(N,)``."""
    draw_key: Tensor
    """int64 ``(N,)``: from `draws.draw_keys`, for draws on the device."""
    label: Tensor
    """int64 ``(N,)``, -1 where unlabeled."""
    data_wait_seconds: float
    """Time that ``next()`` waited for this batch; near 0 if the loader is fast enough."""
    images: Tensor | None = None
    """uint8 ``(S, H, W, 3)``: the set, where crops are still to be cut from it by
    ``crop_and_resize(images[sample_id], boxes, ...)``. It is the same tensor in all batches."""


class ViewLoader(Protocol):
    """Iterator over the batches of one or more epochs, without a pause between epochs.

    Iterates from the plan's epoch and start batch to the end of the last epoch asked for. A
    worker's exception is raised by ``next()``; ``close()`` ends all threads at once, also in the
    middle of an epoch, and may be called twice.
    """

    decode_device: str
    """Device that decodes JPEGs: ``cpu`` or ``gpu``, with details in parentheses."""

    def __iter__(self) -> Iterator[Batch]:
        """Return self: a loader is consumed once."""
        return self

    def __next__(self) -> Batch:
        """Return the next batch; the previous one becomes invalid."""
        ...

    def close(self) -> None:
        """Stop workers, free buffers."""
        ...
