"""What a policy makes of images: sources with crop boxes, views, and what each view drew."""

from contextlib import closing
from pathlib import Path

import torch
from torch import Tensor

from fastmoco.data.dataset import Dataset, open_dataset
from fastmoco.errors import UsageError
from fastmoco.pipelines.augment import augment_views, draw_parameters
from fastmoco.pipelines.build import build_loader
from fastmoco.pipelines.contract import Batch, EpochPlan, LoaderSpec
from fastmoco.pipelines.policies import Policy, PoolOp
from fastmoco.pipelines.pool import draw_ops
from fastmoco.visualize.crop_figure import write_crop_figure
from fastmoco.visualize.pictures import draw_views
from fastmoco.visualize.settings import ViewsConfig


def write_views(dataset_path: str | Path, cfg: ViewsConfig) -> Path:
    """Write the views of the first images that a run with this seed sees in an epoch.

    Args:
        dataset_path: A dataset file.
        cfg: From `load_config`.

    Returns:
        The picture's path.

    Raises:
        UsageError: If there are fewer images than asked for, or no views.
        BetonError: If the dataset file is damaged.
    """
    with open_dataset(dataset_path) as dataset:
        if not 1 <= cfg.count <= len(dataset):
            raise UsageError(
                f"count={cfg.count} does not fit; set it to 1 to {len(dataset)}, the images of "
                f"{dataset_path}"
            )
        if cfg.views < 1:
            raise UsageError(f"views={cfg.views} shows nothing; set it to 2, or to 1 or more")
        plan = EpochPlan(
            seed=cfg.seed, epoch=cfg.epoch, num_samples=len(dataset), global_batch_size=cfg.count
        )
        if cfg.crops:
            write_crop_figure(cfg.out, dataset, plan, cfg)
            return cfg.out
        loader = build_loader(
            dataset,
            plan,
            spec=LoaderSpec(view_size=cfg.view_size, policy=cfg.policy, policy_views=cfg.views),
            stop_epoch=cfg.epoch + 1,
            device=torch.device("cpu"),
            name="beton",
        )
        with closing(loader):
            draw_batch(cfg.out, dataset, next(loader), cfg.policy)
    return cfg.out


def draw_batch(path: Path, dataset: Dataset, batch: Batch, policy: Policy) -> None:
    """Draw a batch's views again, and write them with their sources as a PNG file."""
    device = batch.crops.device
    mean, std = torch.zeros(3, device=device), torch.ones(3, device=device)
    views = augment_views(batch.crops, batch.draw_key, policy, mean, std, torch.float32)
    draw_views(
        path,
        sources=[dataset.decode(int(sample)) for sample in batch.sample_id],
        boxes=batch.boxes.cpu().numpy(),
        views=[view.permute(0, 2, 3, 1).cpu().numpy() for view in views],
        captions=[captions(batch.draw_key, view, policy) for view in range(len(views))],
    )


def captions(draw_key: Tensor, view: int, policy: Policy) -> list[str]:
    """What a view of each image drew, besides its crop, in words: ``flip, jitter, blur 1.3``."""
    drawn = draw_parameters(draw_key, [view], policy)
    words: list[list[str]] = [[] for _ in draw_key]

    def add(word: str, chosen: Tensor | None) -> None:
        for image, is_chosen in enumerate([] if chosen is None else chosen.tolist()):
            words[image] += [word] * is_chosen

    add("flip", drawn.flip)
    add("jitter", None if drawn.jitter is None else drawn.jitter.brightness != 1)
    add("gray", drawn.grayscale)
    if drawn.blur_sigma is not None:
        for image, sigma in enumerate(drawn.blur_sigma.tolist()):
            words[image] += [f"blur {sigma:.1f}"] * (sigma > 0)
    for place in draw_ops(draw_key, [view], policy).unbind(1) if policy.pool else ():
        for image, op in enumerate(place.tolist()):
            words[image] += [list(PoolOp)[op].replace("_", " ")] * (op > 0)
    return [", ".join(image) or "nothing" for image in words]
