"""Checks of a configuration, before anything is opened."""

import torch

from fastmoco.errors import UsageError
from fastmoco.moco.batchnorm import resolve_batch_norm
from fastmoco.moco.build import check_encoder
from fastmoco.moco.settings import BatchNorm, Loss, Mechanism, Objective
from fastmoco.pipelines.build import check_loader
from fastmoco.pipelines.contract import LoaderSpec
from fastmoco.ranges import check_ranges
from fastmoco.ranks import ALONE, Ranks
from fastmoco.runs.distributed import resolve_rank_device
from fastmoco.runs.wandb_run import check_wandb
from fastmoco.train.acceleration import resolve_cuda_graph
from fastmoco.train.settings import Compile, Gradients, Tracker, TrainConfig, check_given


def check_config(cfg: TrainConfig, ranks: Ranks = ALONE) -> torch.device:
    """Check everything that can be checked before data is read.

    Args:
        cfg: Configuration of the run.
        ranks: Ranks that train; the result is the same on each.

    Returns:
        The device of this rank.

    Raises:
        UsageError: One line that names the option to change.
    """
    check_ranges(cfg)  # the command line has; a caller from Python may not
    check_given(cfg)
    device = resolve_rank_device(cfg.device, ranks)
    _check_groups(cfg, ranks)
    size = cfg.pipeline.view_size
    if cfg.moco.mechanism is Mechanism.fast_moco and size % 2:
        raise UsageError(
            f"moco.mechanism=fast_moco cuts a view into 2 x 2 equal patches, got "
            f"pipeline.view_size={size}; set pipeline.view_size={size + 1} or another even number"
        )
    check_encoder(cfg.model, cfg.moco, ranks, cfg.pipeline.view_size, cfg.train.accumulate)
    check_loader(cfg.pipeline.name)
    LoaderSpec.of(cfg.pipeline, cfg.policy)  # refuses values out of range
    _check_normalization(cfg)
    if cfg.moco.loss is Loss.fused and device.type != "cuda":
        raise UsageError(f"moco.loss=fused needs a CUDA device, got {device}; set moco.loss=auto")
    cfg.optimizer.check_available()
    if cfg.train.from_run and cfg.weights:
        raise UsageError(
            f"train.from_run={cfg.train.from_run} takes the encoders of that run, so weights="
            f"{cfg.weights} has no effect; set only one of them"
        )
    resolve_cuda_graph(cfg, device, ranks)
    if cfg.train.tracker is Tracker.wandb and ranks.is_first:
        check_wandb()
    return device


def _check_groups(cfg: TrainConfig, ranks: Ranks) -> None:
    """Check that a global batch divides into devices, micro-batches and batch-norm groups."""
    batch, splits, devices = cfg.global_batch_size, cfg.moco.batch_norm_splits, ranks.world_size
    keys = 2 * batch if cfg.moco.symmetric else batch
    if cfg.moco.mechanism is Mechanism.moco and cfg.moco.queue_size < keys:
        raise UsageError(
            f"moco.queue_size must be {keys} or more, the keys of one step with global_batch_size="
            f"{batch}, got {cfg.moco.queue_size}; set moco.queue_size={keys} or more"
        )
    if batch < 1 or batch % devices:
        raise UsageError(
            f"global_batch_size must be a positive multiple of the {devices} devices, got {batch}; "
            f"set global_batch_size={max(1, round(batch / devices)) * devices} or another multiple"
        )
    accumulate = cfg.train.accumulate
    if accumulate > 1 and cfg.moco.mechanism is not Mechanism.moco:
        raise UsageError(
            f"train.accumulate={accumulate} is for moco.mechanism=moco, whose negatives are in a "
            f"queue, not for {cfg.moco.mechanism}; set train.accumulate=1"
        )
    if cfg.train.compile is Compile.always and cfg.train.gradients is not Gradients.flat:
        raise UsageError(
            f"train.compile=always needs train.gradients=flat, got {cfg.train.gradients}; "
            "set train.compile=auto"
        )
    if accumulate > 1 and cfg.train.gradients is not Gradients.flat:
        raise UsageError(
            f"train.accumulate={accumulate} needs train.gradients=flat, got {cfg.train.gradients}; "
            "set one of them to its default"
        )
    if accumulate > 1 and cfg.moco.objective is Objective.binary_nce:
        raise UsageError(
            f"train.accumulate={accumulate} is for moco.objective=info_nce, got binary_nce, whose "
            "normalizer is that of a complete batch; set train.accumulate=1"
        )
    if batch // devices % accumulate:
        raise UsageError(
            f"train.accumulate must divide the {batch // devices} images of a device, got "
            f"{accumulate}"
        )
    kind, groups = resolve_batch_norm(cfg.moco, ranks, accumulate)
    setup = f"{devices} device{'s' if devices > 1 else ''}"
    setup += f" with train.accumulate={accumulate}" if accumulate > 1 else ""
    if splits < 1 or batch % groups or batch // groups < 2:
        raise UsageError(
            f"moco.batch_norm_splits={splits} does not split global_batch_size={batch} into equal "
            f"groups of 2 or more on {setup}; set it to a divisor, or raise global_batch_size"
        )
    if kind is BatchNorm.shuffled and groups % (devices * accumulate):
        raise UsageError(
            f"moco.batch_norm_splits={splits} groups do not divide evenly among {setup}; "
            f"set it to a multiple of {devices * accumulate}, or to 1: a group on each"
        )
    if kind is BatchNorm.shuffled and groups == 1:
        raise UsageError(
            "moco.batch_norm=shuffled changes nothing on one device with one group; "
            "set moco.batch_norm_splits, for example to 4, or moco.batch_norm=plain"
        )


def _check_normalization(cfg: TrainConfig) -> None:
    mean, std = cfg.pipeline.channel_mean, cfg.pipeline.channel_std
    if (mean or std) and not (len(mean) == len(std) == 3 and min(std) > 0):
        raise UsageError(
            f"pipeline.channel_mean={mean} with pipeline.channel_std={std} cannot normalize; give "
            "three numbers for each, deviations above 0, or neither to use the dataset's own"
        )
    if mean and cfg.model.encoder.startswith("halves:"):
        raise UsageError(
            f"model.encoder={cfg.model.encoder} takes RGB in 0..1 and converts it to Lab; set "
            "pipeline.channel_mean=[] pipeline.channel_std=[]"
        )
