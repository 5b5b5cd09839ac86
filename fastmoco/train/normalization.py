"""Channel means and standard deviations that normalize the views of a run."""

from fastmoco.data.dataset import Dataset
from fastmoco.moco.backbone import Backbone
from fastmoco.pipelines.settings import IMAGENET_MEAN, IMAGENET_STD, PipelineConfig


def normalization(
    dataset: Dataset, backbone: Backbone, pipeline: PipelineConfig
) -> tuple[list[float], list[float]]:
    """Choose the channel means and standard deviations that normalize views, in 0..1."""
    if backbone.takes_plain_rgb:
        return [0.0] * 3, [1.0] * 3
    if pipeline.channel_mean:
        return pipeline.channel_mean, pipeline.channel_std
    return channel_statistics(dataset)


def channel_statistics(dataset: Dataset) -> tuple[list[float], list[float]]:
    """Channel means and standard deviations of a dataset in 0..1; ImageNet's if not measured."""
    std = dataset.facts.get("channel_std", IMAGENET_STD)
    # A constant channel would divide by zero.
    return list(dataset.facts.get("channel_mean", IMAGENET_MEAN)), [max(s, 1e-3) for s in std]
