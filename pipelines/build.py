"""One door to every loader: a name, a dataset, a plan."""

import importlib

import torch

from fastmoco.data.dataset import Dataset
from fastmoco.errors import UsageError
from fastmoco.pipelines.contract import EpochPlan, LoaderSpec, ViewLoader

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
