"""`fastmoco views crops=true`: the effect of RandomResizedCrop, image by image."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fastmoco.data.dataset import Dataset
from fastmoco.pipelines.augment import augment_views
from fastmoco.pipelines.build import build_loader
from fastmoco.pipelines.contract import Batch, EpochPlan, LoaderSpec
from fastmoco.pipelines.policies import Policy
from fastmoco.visualize.pictures import Cell, draw_contact_sheet
from fastmoco.visualize.settings import ViewsConfig

HEADERS = ("original", "with the crop", "without it", "center crop")
UINT8 = npt.NDArray[np.uint8]


def without_crop(policy: Policy) -> Policy:
    """The same policy on square images, or on the central square of other images."""
    return replace(policy, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))


@contextmanager
def first_batch(dataset: Dataset, plan: EpochPlan, spec: LoaderSpec) -> Iterator[Batch]:
    """Load the first batch of a plan on the CPU; it is valid within the block."""
    device = torch.device("cpu")
    loader = build_loader(
        dataset,
        plan,
        spec=spec,
        stop_epoch=plan.epoch + 1,
        device=device,
        name="beton",
        reads_ahead=False,
    )
    with closing(loader):
        yield next(loader)


def view_pictures(batch: Batch, policy: Policy) -> list[npt.NDArray[np.float32]]:
    """Draw the views of a batch in 0..1, not normalized: for each view ``(N, S, S, 3)``."""
    device = batch.crops.device
    mean, std = torch.zeros(3, device=device), torch.ones(3, device=device)
    views = augment_views(batch.crops, batch.draw_key, policy, mean, std, torch.float32)
    return [view.permute(0, 2, 3, 1).cpu().numpy() for view in views]


def write_crop_figure(path: Path, dataset: Dataset, plan: EpochPlan, cfg: ViewsConfig) -> None:
    """Draw a row of four pictures for each image of the plan's first batch.

    The pictures are the image, its query view in a run with this seed, the same view with all other
    draws but without the crop, and the center crop of evaluation.

    Args:
        path: PNG file, replaced atomically.
        dataset: An open dataset.
        plan: Plan of the epoch.
        cfg: Options; `policy`, `view_size` and `center_crop` are used.
    """
    policies = (cfg.policy, without_crop(cfg.policy), None)
    made = [_first_views(dataset, plan, policy, cfg) for policy in policies]
    sheet = []
    for row, sample in enumerate(next(plan.batches()).tolist()):
        original = Cell(dataset.decode(sample), f"#{sample}", None)
        sheet.append([original, *(Cell(views[row], "", None) for views in made)])
    draw_contact_sheet(path, sheet, headers=HEADERS)


def _first_views(
    dataset: Dataset, plan: EpochPlan, policy: Policy | None, cfg: ViewsConfig
) -> UINT8:
    """Make the query views of the first batch, or its center crops, ``(N, S, S, 3)``."""
    spec = LoaderSpec(view_size=cfg.view_size, policy=policy, center_crop=cfg.center_crop)
    with first_batch(dataset, plan, spec) as batch:
        if policy is None:
            return batch.crops[:, 0].numpy().copy()
        return (255 * view_pictures(batch, policy)[0].clip(0, 1)).round().astype(np.uint8)
