"""What a Python program uses: `views` to feed a training loop of its own, `pretrain` for ours."""

import threading
from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastmoco.configuration import load_config, quote_values
from fastmoco.data.dataset import open_dataset
from fastmoco.device import resolve_device
from fastmoco.errors import UsageError, nearest_name
from fastmoco.option_names import as_option
from fastmoco.pipelines.augment import augment_views
from fastmoco.pipelines.build import AUTO, build_loader
from fastmoco.pipelines.contract import EpochPlan, LoaderSpec, streamed_shards
from fastmoco.pipelines.policies import POLICIES, Policy
from fastmoco.ranks import environment_ranks
from fastmoco.train import pretrain as training
from fastmoco.train.normalization import channel_statistics
from fastmoco.train.settings import TrainConfig


class TwoViews(NamedTuple):
    """Two views of each of N images; valid until the next batch."""

    query: Tensor
    """``(N, 3, S, S)``, channels_last, normalized."""
    key: Tensor
    """The same images in other crops and colors."""
    sample_id: Tensor
    """``(N,)`` int64, the images' numbers in the dataset."""


def views(
    data: str | Path,
    *,
    batch_size: int,
    size: int = 224,
    policy: str | Policy = "moco_v2",
    device: str | torch.device = "auto",
    epochs: int = 1,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    loader: str = AUTO,
    num_threads: int = 0,
) -> Generator[TwoViews, None, None]:
    """Two augmented views of every image, for a training loop of your own.

    The views are those that `fastmoco train` sees with this seed, normalized by the dataset's
    channel statistics, or by ImageNet's where none were measured. The last partial batch of an
    epoch is dropped. Threads decode ahead; they end with the iteration, also by ``close()`` of the
    iterator.

    Args:
        data: A dataset file of `fastmoco convert`, or a folder or tar shards of JPEGs.
        batch_size: Images in a batch, N.
        size: Side of the views, pixels.
        policy: A name, such as ``moco_v2``, or your own augmentations.
        device: Device of the views: auto, cpu, cuda or cuda:N.
        epochs: Passes over the dataset, each in another order, with other crops and colors.
        seed: Seed of all draws.
        dtype: Type of the views; colors are computed in float32.
        loader: auto, beton, dali, ffcv, resident or torchvision.
        num_threads: Threads that decode; 0: one per core.

    Yields:
        Query views, key views and sample ids; unpack them: ``for query, key, ids in views(...)``.

    Raises:
        UsageError: If an argument is wrong, or the dataset cannot be used.
        BetonError: If an image is damaged.
    """
    if isinstance(policy, str):
        if policy not in POLICIES:
            raise UsageError(f"policy={policy} is unknown{nearest_name(policy, list(POLICIES))}")
        policy = POLICIES[policy]
    place = device if isinstance(device, torch.device) else resolve_device(device)
    with open_dataset(data) as dataset:
        plan = EpochPlan(
            seed=seed,
            epoch=0,
            num_samples=len(dataset),
            global_batch_size=batch_size,
            shard_ends=streamed_shards(dataset, batch_size),
        )
        spec = LoaderSpec(view_size=size, policy=policy, num_threads=num_threads)
        mean, std = (torch.tensor(values, device=place) for values in channel_statistics(dataset))
        batches = build_loader(
            dataset, plan, spec=spec, stop_epoch=epochs, device=place, name=loader
        )
        with closing(batches):
            for batch in batches:
                query, key = augment_views(batch.crops, batch.draw_key, policy, mean, std, dtype)
                yield TwoViews(query, key, batch.sample_id)


def pretrain(data: str | Path | TrainConfig, out: str | Path | None = None, **options: Any) -> Path:
    """Pretrain an encoder as `fastmoco train` does.

    In the main thread a signal, such as a notebook's interrupt, saves the state and raises
    `Interrupted`. No signal reaches another thread.

    Args:
        data: A dataset file of `fastmoco convert`, or a folder or tar shards of JPEGs. Or a
            complete configuration from `load_config`, without other arguments.
        out: Run folder; default: ``runs/NAME``.
        options: Options of `fastmoco train`, with two underscores for each dot: ``train__epochs``.
            Without ``experiment``, it is ``own``: settings that suit the images and the device.

    Returns:
        The run folder; the same call again resumes a run that was stopped.

    Raises:
        UsageError: If an option is unknown or wrong, or another thread pretrains; other errors as
            of `train.loop.train`.
    """
    with _alone():
        return _pretrain(_configured(data, out, options))


_PRETRAINING = threading.Lock()


@contextmanager
def _alone() -> Iterator[None]:
    """Refuse a second training in this process: seed, algorithms and compiler are the process's."""
    if not _PRETRAINING.acquire(blocking=False):
        raise UsageError(
            "pretrain is running in another thread of this process; wait for it, or start another "
            "process"
        )
    try:
        yield
    finally:
        _PRETRAINING.release()


def _configured(
    data: str | Path | TrainConfig, out: str | Path | None, options: dict[str, Any]
) -> TrainConfig:
    if isinstance(data, TrainConfig):
        if out is not None or options:
            raise UsageError("pretrain takes a configuration alone, or a dataset with options")
        return data
    options = {"experiment": "own", **options, "data__train": str(data)}
    if out is not None:
        options["run_dir"] = str(out)
    given = [as_option(key.replace("__", "."), value) for key, value in options.items()]
    return load_config(TrainConfig, quote_values(TrainConfig, given))


def _pretrain(cfg: TrainConfig) -> Path:
    """Train, then write the report of the run."""
    run, is_dry = training.pretrain(cfg), cfg.train.dry_run or cfg.train.profile
    if cfg.train.report and not is_dry and environment_ranks().is_first:
        from fastmoco.report.report import write_at_end

        write_at_end(run, cfg.device)
    return run
