"""Construction of every loader, from a name, a dataset and a plan."""

import importlib
import sys

import torch

from fastmoco.data.dataset import Dataset
from fastmoco.data.remote.streamed import StreamedSet
from fastmoco.errors import UsageError
from fastmoco.pipelines import choose
from fastmoco.pipelines.contract import EpochPlan, LoaderSpec, ViewLoader

LOADERS = {
    "beton": "fastmoco.pipelines.beton_loader",
    "dali": "fastmoco.pipelines.dali_loader",
    "ffcv": "fastmoco.pipelines.ffcv_loader",
    "resident": "fastmoco.pipelines.resident_loader",
    "torchvision": "fastmoco.pipelines.torchvision_loader",
}
"""Modules, imported when chosen; each has ``build(dataset, plan, spec, stop_epoch, device)``."""
PACKAGES = {"dali": "nvidia.dali", "ffcv": "ffcv"}
"""What a loader imports beside this package's own dependencies."""
DISTRIBUTIONS = {"dali": "nvidia-dali-cuda130", "ffcv": "ffcv"}
"""What pip installs for that; nvidia-dali-cuda120 for a driver of CUDA 12."""
AUTO = "auto"
"""Name for the choice of `choose.choose_loader`."""
ADVICE = "set pipeline.name=beton, which needs no other package"


def build_loader(
    dataset: Dataset,
    plan: EpochPlan,
    *,
    spec: LoaderSpec,
    stop_epoch: int,
    device: torch.device,
    name: str = AUTO,
    reads_ahead: bool = True,
) -> ViewLoader:
    """Build a loader from the plan's epoch and start batch to the end of ``stop_epoch - 1``.

    Args:
        dataset: An open file; it must stay open until the loader is closed.
        plan: Order, batch size, rank and starting point.
        spec: Views, threads, prefetching.
        stop_epoch: The first epoch that is not loaded.
        device: Device of the batches.
        name: ``auto`` or a key of `LOADERS`.
        reads_ahead: Whether shards elsewhere are brought ahead for this loader, and no other one.

    Raises:
        UsageError: If the name is unknown.
        RemoteError: If the cache's limit is too low for the shards of a batch.
        ValueError: If the plan has more samples than the dataset, or the loader cannot read it.
    """
    if name == AUTO:
        name, _ = resolve_loader(dataset, plan, spec=spec, device=device)
    check_loader(name)
    if plan.num_samples > len(dataset):
        raise ValueError(
            f"the plan has {plan.num_samples} samples, but {dataset.path} only {len(dataset)}"
        )
    try:
        module = importlib.import_module(LOADERS[name])
    except (ImportError, OSError, AttributeError) as error:  # a library is missing, or differs
        raise UsageError(f"pipeline.name={name} cannot be loaded ({error}); {ADVICE}") from error
    if reads_ahead and isinstance(dataset, StreamedSet) and name != "resident":  # it reads once
        jumps = plan.training and plan.shard_ends is None  # from shard to shard, in any batch
        at_once = plan.num_samples if jumps else plan.max_count
        dataset.plan((one.remaining() for one in plan.epochs(stop_epoch)), at_once)
    loader: ViewLoader = module.build(dataset, plan, spec, stop_epoch, device)
    return loader


def resolve_loader(
    dataset: Dataset,
    plan: EpochPlan,
    *,
    spec: LoaderSpec,
    device: torch.device,
    name: str = AUTO,
    before: str = "",
) -> tuple[str, str]:
    """Choose the loader that `build_loader` opens; loads a batch if that is DALI's.

    Args:
        dataset: See `build_loader`.
        plan: Order of that batch.
        spec: See `build_loader`.
        device: See `build_loader`.
        name: ``auto`` or a key of `LOADERS`.
        before: Loader that ``auto`` chose for this run at its start; "" for a new run.

    Returns:
        A key of `LOADERS`, and the reason in a few words.

    Raises:
        UsageError: If the name is unknown.
    """
    if name != AUTO:
        check_loader(name)
        return name, "as asked"

    def open_loader(name: str) -> ViewLoader:
        return build_loader(
            dataset,
            plan,
            spec=spec,
            stop_epoch=plan.epoch + 1,
            device=device,
            name=name,
            reads_ahead=False,
        )

    if not before:
        return choose.choose_loader(dataset, device, open_loader)
    fault = choose.fault_of_dali(open_loader) if before == "dali" else ""
    if before == "resident":
        choice = choose.choose_for_small(dataset, device)
        fault = "" if choice.name == before else choice.reason
    return ("beton", f"before it was {before}; {fault}") if fault else (before, "as before")


def free_idle() -> None:
    """Free what closed loaders keep for the next one: DALI's pipelines, with device memory."""
    if module := sys.modules.get("fastmoco.pipelines.dali_pipeline"):
        module.free_pipelines()


def check_loader(name: str) -> None:
    """Refuse a loader that is unknown or not installed.

    Raises:
        UsageError: If the name is unknown, listing the known ones, or its package is missing.
    """
    if name not in (AUTO, *LOADERS):
        allowed = ", ".join((AUTO, *sorted(LOADERS)))
        raise UsageError(f"pipeline.name={name} is unknown; set it to one of {allowed}")
    if name in PACKAGES and not choose.is_installed(PACKAGES[name]):
        raise UsageError(
            f"pipeline.name={name} needs {PACKAGES[name]}, which is not installed; install it: "
            f"pip install {DISTRIBUTIONS[name]}, or {ADVICE}"
        )
