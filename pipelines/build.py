"""One door to every loader: a name, a dataset, a plan."""

import importlib
from dataclasses import dataclass
from typing import Self

import torch

from fastmoco.data.dataset import Dataset
from fastmoco.errors import UsageError
from fastmoco.pipelines.contract import EpochPlan, ViewLoader
from fastmoco.pipelines.policies import Policy
from fastmoco.pipelines.settings import PipelineConfig

LOADERS = {
    "beton": "fastmoco.pipelines.beton_loader",
    "dali": "fastmoco.pipelines.dali_loader",
    "ffcv": "fastmoco.pipelines.ffcv_loader",
    "resident": "fastmoco.pipelines.resident_loader",
    "torchvision": "fastmoco.pipelines.torchvision_loader",
}
"""Imported when chosen; each has ``build(dataset, plan, spec, stop_epoch, device)``."""
AUTO = "auto"
"""Chosen by `choose.choose_loader`."""


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


def build_loader(
    dataset: Dataset,
    plan: EpochPlan,
    *,
    spec: LoaderSpec,
    stop_epoch: int,
    device: torch.device,
    name: str = AUTO,
) -> ViewLoader:
    """A loader from the plan's epoch and start batch to the end of epoch ``stop_epoch - 1``.

    Args:
        dataset: An open file; it must stay open until the loader is closed.
        plan: Order, batch size, rank and starting point.
        spec: Views, threads, prefetching.
        stop_epoch: The first epoch that is not loaded.
        device: Where batches are handed out.
        name: ``auto`` or a key of `LOADERS`.

    Raises:
        UsageError: If the name is unknown.
        ValueError: If the plan asks for more samples than there are.
    """
    if name == AUTO:
        name, _ = resolve_loader(dataset, plan, spec=spec, device=device)
    check_loader(name)
    if plan.num_samples > len(dataset):
        raise ValueError(
            f"the plan has {plan.num_samples} samples, {dataset.path} only {len(dataset)}"
        )
    module = importlib.import_module(LOADERS[name])
    loader: ViewLoader = module.build(dataset, plan, spec, stop_epoch, device)
    return loader


def resolve_loader(
    dataset: Dataset,
    plan: EpochPlan,
    *,
    spec: LoaderSpec,
    device: torch.device,
    name: str = AUTO,
) -> tuple[str, str]:
    """Which loader `build_loader` takes, and why.

    On a GPU the choice can take some seconds and differ from run to run: resolve once.

    Args:
        dataset: As of `build_loader`; likewise the others.
        plan: The order of a trial.
        spec: Of the loader.
        device: Of the batches.
        name: ``auto`` or a key of `LOADERS`.

    Returns:
        A key of `LOADERS`, and the reason in a few words.

    Raises:
        UsageError: If the name is unknown.
    """
    if name != AUTO:
        check_loader(name)
        return name, "as asked"
    from fastmoco.pipelines.choose import choose_loader

    def open_loader(name: str) -> ViewLoader:
        stop_epoch = plan.epoch + 1000  # of a small set; a trial ends by time
        return build_loader(
            dataset, plan, spec=spec, stop_epoch=stop_epoch, device=device, name=name
        )

    return choose_loader(dataset, device, open_loader)


def check_loader(name: str) -> None:
    """Refuse a loader that is unknown.

    Raises:
        UsageError: Naming those that are known.
    """
    if name not in (AUTO, *LOADERS):
        allowed = ", ".join((AUTO, *sorted(LOADERS)))
        raise UsageError(f"pipeline.name={name} is unknown; set it to one of {allowed}")
