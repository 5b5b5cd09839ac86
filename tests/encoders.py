"""Runs and models with random weights, for the tests of what is handed on and taken in."""

from pathlib import Path

import torch
from torch import nn

from fastmoco.configuration import config_to_dict
from fastmoco.data.settings import DataConfig
from fastmoco.moco.build import build_model
from fastmoco.moco.settings import Head, MocoConfig, ModelConfig, Stem
from fastmoco.pipelines.settings import PipelineConfig
from fastmoco.runs.checkpoint import Checkpoint, save_checkpoint, with_prefix
from fastmoco.train.settings import TrainConfig

MEAN, STD = [0.4, 0.5, 0.45], [0.25, 0.2, 0.3]


def randomize(model: nn.Module) -> nn.Module:
    """Give batch norm statistics and scales that matter; returns the model, in evaluation mode."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
    return model.eval()


def write_run(
    folder: Path,
    *,
    encoder: str = "resnet18",
    stem: Stem = Stem.imagenet,
    width: int = 64,
    head: Head = Head.mlp,
    view_size: int = 64,
) -> Path:
    """A run folder of 7 steps, as `train` leaves it, whose encoder has random weights."""
    cfg = TrainConfig(
        name="first",
        run_dir=folder,
        data=DataConfig(train=Path("/data/of/mine/train.beton"), test=Path("/data/test.beton")),
        model=ModelConfig(encoder=encoder, stem=stem, width=width),
        moco=MocoConfig(head=head, dim=16, queue_size=64, batch_norm_splits=2),
        pipeline=PipelineConfig(view_size=view_size),
    )
    model = randomize(build_model(cfg.model, cfg.moco))
    facts = {
        "config": config_to_dict(cfg),
        "channel_mean": MEAN,
        "channel_std": STD,
        "dataset_fingerprint": "0123456789abcdef" * 4,
        "batch_norm": "shuffled, 2 groups",
        "torch_version": torch.__version__,
        "origins": [{"weights": "timm:NAME", "sha256": "ab" * 32, "head": "taken"}],
    }
    tensors = with_prefix("model", model.state_dict())
    save_checkpoint(
        folder / "checkpoints", Checkpoint(step=7, tensors=tensors, facts=facts), keep=1
    )
    return folder


def images(size: int, count: int = 2) -> torch.Tensor:
    """Random RGB images in 0..1, ``(count, 3, size, size)``."""
    return torch.rand(count, 3, size, size, generator=torch.Generator().manual_seed(5))
