"""A tiny pretrained run and drawn scenes for the tests of detection."""

from pathlib import Path

import torch

from fastmoco.configuration import config_to_dict
from fastmoco.detection.scenes import CLASSES, write_scenes
from fastmoco.moco.build import build_model
from fastmoco.moco.settings import MocoConfig, ModelConfig, Stem
from fastmoco.pipelines.settings import PipelineConfig
from fastmoco.runs.checkpoint import Checkpoint, save_checkpoint, with_prefix
from fastmoco.train.settings import TrainConfig

NAMES = f"data.classes=[{','.join(CLASSES)}]"


def write_run(path: Path, *, encoder: str = "resnet18", width: int = 8) -> Path:
    """A run folder with one checkpoint of a random encoder, as `fastmoco train` writes it."""
    cfg = TrainConfig(
        model=ModelConfig(encoder=encoder, stem=Stem.small_stride2, width=width),
        moco=MocoConfig(dim=8, queue_size=16, batch_norm_splits=2),
        pipeline=PipelineConfig(view_size=32),
        global_batch_size=8,
    )
    torch.manual_seed(1)
    tensors = with_prefix("model", build_model(cfg.model, cfg.moco).state_dict())
    facts = {
        "config": config_to_dict(cfg),
        "channel_mean": [0.5, 0.5, 0.5],
        "channel_std": [0.1, 0.1, 0.1],
    }
    save_checkpoint(path / "checkpoints", Checkpoint(step=1, tensors=tensors, facts=facts), keep=1)
    return path


def write_small_scenes(folder: Path, *, train: int = 8, test: int = 4) -> Path:
    """Scenes of both layouts; returns the folder."""
    write_scenes(folder, {"trainval": train, "test": test})
    return folder


def voc_options(scenes: Path) -> list[str]:
    """What reads them as VOC, by the small protocol."""
    return ["recipe=scenes", f"data.train={scenes / 'VOCdevkit'}"]


def coco_options(scenes: Path) -> list[str]:
    """What reads them as COCO, by the small protocol."""
    images = scenes / "VOCdevkit/VOC2007/JPEGImages"
    return [
        "recipe=scenes",
        "layout=coco",
        f"data.train={scenes / 'annotations/instances_trainval.json'}",
        f"data.test={scenes / 'annotations/instances_test.json'}",
        f"data.train_images={images}",
        f"data.test_images={images}",
    ]
