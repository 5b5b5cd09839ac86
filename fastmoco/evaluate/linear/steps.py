"""Batches of features for a linear classifier: computed once, or from new views in every epoch."""

from collections.abc import Generator
from contextlib import ExitStack, closing

import torch
from torch import Tensor

from fastmoco.evaluate.features import FeatureRequest, FeatureSet
from fastmoco.evaluate.frozen_encoder import FrozenEncoder
from fastmoco.evaluate.labeled_task import LabeledTask
from fastmoco.evaluate.settings import LinearConfig, LinearViews
from fastmoco.optim.precision import autocast, dtype_of
from fastmoco.pipelines.augment import augment_views, normalized
from fastmoco.pipelines.contract import Batch
from fastmoco.pipelines.policies import Policy

Steps = Generator[tuple[Tensor, Tensor], None, None]
"""Features ``(N, D)`` float32 and image ids ``(N,)`` int64 of each step of all epochs."""


def cached_steps(
    cached: FeatureSet, task: LabeledTask, cfg: LinearConfig, device: torch.device
) -> Steps:
    """Yield features of central crops that were computed before."""
    vectors = cached.vectors.to(device)
    for epoch in range(cfg.train.epochs):
        for batch in task.plan(cfg, epoch).batches():
            ids = torch.from_numpy(batch).to(device)
            yield vectors[ids], ids


@torch.no_grad()
def encoded_steps(
    encoder: FrozenEncoder, task: LabeledTask, cfg: LinearConfig, request: FeatureRequest
) -> Steps:
    """Encode views in the same order; with `both` views the augmented ones come first."""
    policies: list[Policy | None] = [cfg.policy, None]
    if cfg.views is not LinearViews.both:
        policies = [cfg.policy if cfg.views is LinearViews.augmented else None]
    with ExitStack() as opened:
        loaders = [
            opened.enter_context(closing(task.loader(cfg, encoder, policy))) for policy in policies
        ]
        for batches in zip(*loaders, strict=True):
            found = [
                _encoded(encoder, batch, policy, request)
                for batch, policy in zip(batches, policies, strict=True)
            ]
            yield torch.cat(found), torch.cat([batch.sample_id for batch in batches])


def _encoded(
    encoder: FrozenEncoder, batch: Batch, policy: Policy | None, request: FeatureRequest
) -> Tensor:
    """Encode one view of each image, a central crop if there is no policy; ``(N, D)`` float32."""
    mean, std = encoder.mean, encoder.std
    if policy is None:
        views = normalized(batch.crops, mean, std, torch.float32)
    else:
        (views,) = augment_views(batch.crops, batch.draw_key, policy, mean, std, torch.float32)
    with autocast(views.device, dtype_of(request.precision, views.device)):
        return encoder.encode(views, request.features).float()
