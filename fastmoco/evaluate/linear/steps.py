"""What each step of a linear classifier learns from: features made once, or views made anew."""

from collections.abc import Generator
from contextlib import ExitStack, closing

import torch
from torch import Tensor

from fastmoco.evaluate.features import FeatureRequest, FeatureSet, FrozenEncoder
from fastmoco.evaluate.labeled_task import LabeledTask
from fastmoco.evaluate.settings import LinearConfig, LinearViews
from fastmoco.optim.precision import AUTOCAST_DTYPES
from fastmoco.pipelines.augment import augment_views, normalized
from fastmoco.pipelines.build import build_loader
from fastmoco.pipelines.contract import Batch, LoaderSpec, ViewLoader

Steps = Generator[tuple[Tensor, Tensor], None, None]
"""Of all epochs, step by step: features ``(N, D)`` float32 and the images' ids ``(N,)``."""


def cached_steps(
    cached: FeatureSet, task: LabeledTask, cfg: LinearConfig, device: torch.device
) -> Steps:
    """From features of central crops that are there."""
    vectors = cached.vectors.to(device)
    for epoch in range(cfg.train.epochs):
        for batch in task.plan(cfg, epoch).batches():
            ids = torch.from_numpy(batch).to(device)
            yield vectors[ids], ids


@torch.no_grad()
def encoded_steps(
    encoder: FrozenEncoder, task: LabeledTask, cfg: LinearConfig, request: FeatureRequest
) -> Steps:
    """By the encoder, in the same order; of `both` views the augmented ones come first."""
    specs = _specs(encoder, cfg)
    with ExitStack() as opened:
        loaders = [
            opened.enter_context(closing(_loader(encoder, task, cfg, spec))) for spec in specs
        ]
        for batches in zip(*loaders, strict=True):
            found = [
                _encoded(encoder, batch, spec, cfg, request)
                for batch, spec in zip(batches, specs, strict=True)
            ]
            yield torch.cat(found), torch.cat([batch.sample_id for batch in batches])


def _specs(encoder: FrozenEncoder, cfg: LinearConfig) -> list[LoaderSpec]:
    """Of the views that each image gives."""
    threads = cfg.pipeline.num_threads
    augmented = LoaderSpec(
        view_size=encoder.view_size, policy=cfg.policy, policy_views=1, num_threads=threads
    )
    central = LoaderSpec(
        view_size=encoder.eval_size,
        center_crop=encoder.center_crop,
        policy=None,
        num_threads=threads,
    )
    return {
        LinearViews.augmented: [augmented],
        LinearViews.both: [augmented, central],
        LinearViews.central: [central],
    }[cfg.views]


def _loader(
    encoder: FrozenEncoder, task: LabeledTask, cfg: LinearConfig, spec: LoaderSpec
) -> ViewLoader:
    return build_loader(
        task.train,
        task.plan(cfg),
        spec=spec,
        stop_epoch=cfg.train.epochs,
        device=encoder.mean.device,
        name=cfg.pipeline.name,
    )


def _encoded(
    encoder: FrozenEncoder,
    batch: Batch,
    spec: LoaderSpec,
    cfg: LinearConfig,
    request: FeatureRequest,
) -> Tensor:
    """One view of each image, encoded, ``(N, D)`` float32."""
    if spec.policy is None:
        views = normalized(batch.crops, encoder.mean, encoder.std, torch.float32)
    else:
        (views,) = augment_views(
            batch.crops, batch.draw_key, cfg.policy, encoder.mean, encoder.std, torch.float32
        )
    dtype = AUTOCAST_DTYPES[request.precision]
    with torch.autocast(views.device.type, dtype, enabled=dtype is not torch.float32):
        return encoder.encode(views, request.features).float()
