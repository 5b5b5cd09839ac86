"""What every loader promises: the order of an epoch, the batch, the iterator.

images --convert--> beton --loader--> crops (uint8) --augment--> views --step--> loss
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Protocol, Self

import numpy as np
from torch import Tensor

from fastmoco.draws.host import epoch_order
from fastmoco.draws.streams import INT64
from fastmoco.errors import UsageError
from fastmoco.pipelines.policies import Policy
from fastmoco.pipelines.settings import PipelineConfig


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochPlan:
    """The sample ids of each batch of one epoch, for one rank: a pure function of its fields.

    Training visits a permutation and drops the last partial batch; evaluation goes in file order
    and keeps it. A rank takes a contiguous slice of each global batch, so W ranks together see what
    one rank would.

    Raises:
        ValueError: If sizes do not fit, naming the option to change.
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
    """``(num_samples,)``: the part of a dataset that is visited; None: all of it."""

    def __post_init__(self) -> None:
        """Refuse sizes that cannot make a batch."""
        if self.global_batch_size < 1 or self.global_batch_size % self.world_size:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} is not a positive multiple of the "
                f"{self.world_size} devices; set global_batch_size to one"
            )
        if self.training and self.num_samples < self.global_batch_size:
            raise ValueError(
                f"global_batch_size={self.global_batch_size} is larger than the dataset of "
                f"{self.num_samples} images; set global_batch_size={self.num_samples} or less"
            )
        if not 0 <= self.start_batch <= self.num_batches:
            raise ValueError(
                f"start_batch={self.start_batch} lies outside the {self.num_batches} batches of an "
                "epoch; does the checkpoint belong to another dataset or global_batch_size?"
            )

    @property
    def num_batches(self) -> int:
        """Batches of a whole epoch, from batch 0."""
        partial = 0 if self.training else self.global_batch_size - 1
        return (self.num_samples + partial) // self.global_batch_size

    def order(self) -> INT64:
        """Sample ids in the order of visit, ``(num_samples,)`` int64."""
        if self.training:
            order = epoch_order(self.seed, self.epoch, self.num_samples)
        else:
            order = np.arange(self.num_samples, dtype=np.int64)
        return order if self.sample_ids is None else self.sample_ids[order]

    def batches(self) -> Iterator[INT64]:
        """This rank's sample ids, batch by batch from `start_batch`.

        Yields:
            ``(global_batch_size / world_size,)`` int64; of a last partial batch, fewer.
        """
        order = self.order()
        for batch in range(self.start_batch, self.num_batches):
            yield order[self._rows(batch)]

    def batch_sizes(self) -> Iterator[int]:
        """How many samples each of `batches` has."""
        for batch in range(self.start_batch, self.num_batches):
            rows = self._rows(batch)
            yield rows.stop - rows.start

    def _rows(self, batch: int) -> slice:
        """This rank's part of a global batch, in places of the order."""
        start = batch * self.global_batch_size
        stop = min(start + self.global_batch_size, self.num_samples)
        per_rank = -(-(stop - start) // self.world_size)
        first = min(start + self.rank * per_rank, stop)
        return slice(first, min(first + per_rank, stop))

    def next_epoch(self) -> Self:
        """The plan of the following epoch, from its first batch."""
        return replace(self, epoch=self.epoch + 1, start_batch=0)


@dataclass(frozen=True, kw_only=True, slots=True)
class LoaderSpec:
    """What a loader needs to know besides the dataset and the plan.

    Raises:
        UsageError: If a value is out of range.
    """

    view_size: int
    """Side of the square views, pixels."""
    policy: Policy | None
    """Draws crops, by ``crop_scale`` and ``crop_ratio``; None: one central crop an image."""
    policy_views: int = 2
    """Crops of an image that a policy draws."""
    center_crop: float = 0.875
    """Evaluation: side of the central square as a share of the short side (0.875 = 224 / 256)."""
    num_threads: int = 0
    """Threads that decode; 0: one for each core that this process may use."""
    prefetch_batches: int = 2
    """Batches made ahead of the one handed out."""
    hw_decoder_load: float | None = None
    """DALI on a GPU: share of the images that its JPEG unit decodes; None: by a short sweep."""

    def __post_init__(self) -> None:
        """Refuse values that no loader can serve."""
        if self.view_size < 1:
            raise UsageError(f"pipeline.view_size must be 1 or more, got {self.view_size}")
        if not 0 < self.center_crop <= 1:
            raise UsageError(
                f"pipeline.center_crop must be above 0 and at most 1, got {self.center_crop}"
            )
        if self.num_threads < 0:
            raise UsageError(
                f"pipeline.num_threads must be 0 (one per core) or more, got {self.num_threads}"
            )
        if self.prefetch_batches < 1:
            raise UsageError(
                f"pipeline.prefetch_batches must be 1 or more, got {self.prefetch_batches}"
            )
        load = self.hw_decoder_load
        if load is not None and not 0 <= load <= 1:
            raise UsageError(f"pipeline.hw_decoder_load must be in [0, 1], got {load}")

    @classmethod
    def of(cls, pipeline: PipelineConfig, policy: Policy | None, views: int = 2) -> Self:
        """What a configuration asks for.

        Args:
            pipeline: Sizes, threads, prefetching.
            policy: Draws crops of `view_size`; None: central crops of `eval_size`.
            views: Crops of an image that a policy draws.
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
        """V: 1 in evaluation, else 2, or as many as are asked for."""
        return 1 if self.policy is None else self.policy_views


@dataclass(slots=True)
class Batch:
    """Crops of N images, on the device; valid until the next ``next()`` of their loader.

    V is 2 in training (two random crops) and 1 in evaluation (resize and center crop).
    """

    crops: Tensor
    """uint8 ``(N, V, H, W, 3)``, RGB."""
    boxes: Tensor
    """int32 ``(N, V, 4)``: top, left, height, width of each crop in its source image, pixels."""
    sample_id: Tensor
    """int64 ``(N,)``."""
    draw_key: Tensor
    """int64 ``(N,)``: `draws.draw_keys` of the sample, for draws on the device."""
    label: Tensor
    """int64 ``(N,)``, -1 where unlabeled."""
    data_wait_seconds: float
    """How long ``next()`` waited for this batch; near 0 where the loader keeps up."""


class ViewLoader(Protocol):
    """Batches of one or more epochs, one after the other without a pause between epochs.

    Iterates from the plan's epoch and start batch to the end of the last epoch asked for. A
    worker's exception is raised by ``next()``; ``close()`` ends all threads at once, also in the
    middle of an epoch, and may be called twice.
    """

    decode_device: str
    """Where JPEGs are decoded: ``cpu`` or ``gpu``, and what else is to be known of it."""

    def __iter__(self) -> Iterator[Batch]:
        """Return self: a loader is consumed once."""
        ...

    def __next__(self) -> Batch:
        """Return the next batch."""
        ...

    def close(self) -> None:
        """Stop workers, free buffers."""
        ...
