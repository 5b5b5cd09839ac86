"""Pictures of a policy's views: sources with crop boxes, views, and the operations of each view."""

from pathlib import Path

from torch import Tensor

from fastmoco.data.dataset import Dataset, open_dataset
from fastmoco.errors import UsageError
from fastmoco.pipelines.contract import Batch, EpochPlan, LoaderSpec
from fastmoco.pipelines.policies import Policy, PoolOp
from fastmoco.pipelines.pool import draw_ops
from fastmoco.pipelines.view_parameters import NEVER, draw_parameters
from fastmoco.visualize.crop_figure import first_batch, view_pictures, write_crop_figure
from fastmoco.visualize.pictures import draw_views
from fastmoco.visualize.settings import ViewsConfig


def write_views(dataset_path: str | Path, cfg: ViewsConfig) -> Path:
    """Write the views of the first images that a run with this seed sees in an epoch.

    Args:
        dataset_path: A dataset file.
        cfg: Options, from `load_config`.

    Returns:
        The picture's path.

    Raises:
        UsageError: If an option is out of range.
        BetonError: If the dataset file is damaged.
    """
    if cfg.out.suffix != ".png":
        raise UsageError(f"out={cfg.out} must end in .png")
    with open_dataset(dataset_path) as dataset:
        size = len(dataset)
        plan = EpochPlan(
            seed=cfg.seed,
            epoch=cfg.epoch,
            num_samples=size,
            global_batch_size=min(cfg.count, size),
        )
        if cfg.crops:
            write_crop_figure(cfg.out, dataset, plan, cfg)
            return cfg.out
        spec = LoaderSpec(view_size=cfg.view_size, policy=cfg.policy, policy_views=cfg.views)
        with first_batch(dataset, plan, spec) as batch:
            draw_batch(cfg.out, dataset, batch, cfg.policy)
    return cfg.out


def draw_batch(path: Path, dataset: Dataset, batch: Batch, policy: Policy) -> None:
    """Draw the views of a batch again and write them with their sources as a PNG file."""
    views = view_pictures(batch, policy)
    draw_views(
        path,
        sources=[dataset.decode(int(sample)) for sample in batch.sample_id],
        boxes=batch.boxes.cpu().numpy(),
        views=views,
        captions=[captions(batch.draw_key, view, policy) for view in range(len(views))],
    )


def captions(draw_key: Tensor, view: int, policy: Policy) -> list[str]:
    """Name the operations of a view of each image, without its crop: ``flip, jitter, blur 1.3``."""
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
    add("solarize", None if drawn.solarize is None else drawn.solarize != NEVER)
    for ops in draw_ops(draw_key, [view], policy).unbind(1) if policy.pool else ():
        for image, op in enumerate(ops.tolist()):
            words[image] += [list(PoolOp)[op].replace("_", " ")] * (op > 0)
    return [", ".join(image) or "nothing" for image in words]
