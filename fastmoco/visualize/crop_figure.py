"""`fastmoco views crops=true`: what RandomResizedCrop changes, image by image."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fastmoco.data.dataset import Dataset
from fastmoco.pipelines.augment import augment_views
from fastmoco.pipelines.build import build_loader
from fastmoco.pipelines.contract import EpochPlan, LoaderSpec
from fastmoco.pipelines.policies import Policy
from fastmoco.visualize.pictures import Cell, draw_contact_sheet
from fastmoco.visualize.settings import ViewsConfig

HEADERS = ("original", "with the crop", "without it", "center crop")
UINT8 = npt.NDArray[np.uint8]


def without_crop(policy: Policy) -> Policy:
    """The same policy on whole images, or the central square of one that is none."""
    return replace(policy, crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))


def write_crop_figure(path: Path, dataset: Dataset, plan: EpochPlan, cfg: ViewsConfig) -> None:
    """Draw a row of four pictures for each image of the plan's first batch.

    The image; the query view that a run of this seed makes of it; the same view, with all else that
    it drew, without the crop; and the crop that evaluation sees.

    Args:
        path: PNG file, replaced whole.
        dataset: Open.
        plan: Of the epoch.
        cfg: `policy`, `view_size` and `center_crop`.
    """
    ids = next(plan.batches())
    policies = (cfg.policy, without_crop(cfg.policy), None)
    made = [_first_views(dataset, plan, policy, cfg) for policy in policies]
    sheet = []
    for row, sample in enumerate(ids.tolist()):
        pictures = [dataset.decode(sample), *(views[row] for views in made)]
        captions = [f"#{sample}", "", "", ""]
        sheet.append([Cell(*pair, None) for pair in zip(pictures, captions, strict=True)])
    draw_contact_sheet(path, sheet, headers=HEADERS)


def _first_views(
    dataset: Dataset, plan: EpochPlan, policy: Policy | None, cfg: ViewsConfig
) -> UINT8:
    """The query views of the first batch, or its center crops, ``(N, S, S, 3)``."""
    spec = LoaderSpec(view_size=cfg.view_size, policy=policy, center_crop=cfg.center_crop)
    device = torch.device("cpu")
    loader = build_loader(
        dataset, plan, spec=spec, stop_epoch=plan.epoch + 1, device=device, name="beton"
    )
    with closing(loader):
        batch = next(loader)
        if policy is None:
            return batch.crops[:, 0].numpy().copy()
        mean, std = torch.zeros(3), torch.ones(3)
        views = augment_views(batch.crops, batch.draw_key, policy, mean, std, torch.float32)
    levels = (255 * views[0].clamp(0, 1)).round().to(torch.uint8)
    pixels: UINT8 = levels.permute(0, 2, 3, 1).numpy()
    return pixels
