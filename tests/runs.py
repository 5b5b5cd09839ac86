"""Run folders and labeled images for tests of evaluation, without any training."""

from pathlib import Path

import numpy as np
import torch

from fastmoco.configuration import config_to_dict, load_config
from fastmoco.moco.build import build_model
from fastmoco.runs.checkpoint import Checkpoint, save_checkpoint, with_prefix
from fastmoco.train.settings import TrainConfig
from tests.pictures import encoded

OPTIONS = [
    "global_batch_size=8",
    "pipeline.view_size=16",
    "pipeline.center_crop=0.8",
    "model.encoder=resnet18",
    "model.stem=small_stride2",
    "model.width=4",
    "moco.dim=8",
    "moco.queue_size=16",
    "moco.batch_norm_splits=2",
    "train.report=false",
]


def write_run(run: Path, *overrides: str) -> Path:
    """A run's checkpoint whose weights are not those of its seed."""
    cfg = load_config(TrainConfig, [*OPTIONS, *overrides])
    torch.manual_seed(cfg.seed + 100)
    model = build_model(cfg.model, cfg.moco)
    facts = {
        "config": config_to_dict(cfg),
        "channel_mean": [0.5, 0.45, 0.4],
        "channel_std": [0.25, 0.25, 0.25],
    }
    tensors = with_prefix("model", model.state_dict())
    save_checkpoint(run / "checkpoints", Checkpoint(step=1, tensors=tensors, facts=facts), keep=1)
    return run


def write_colors(folder: Path, seed: int, per_class: int, names: str = "blue green red") -> Path:
    """JPEGs in class folders: of the class's color, within noise."""
    random = np.random.default_rng(seed)
    tones = {"blue": (60, 60, 200), "green": (60, 190, 60), "red": (200, 60, 60)}
    for name in names.split():
        (folder / name).mkdir(parents=True)
        for number in range(per_class):
            base = np.array(tones.get(name, (120, 120, 120))) + random.normal(0, 20, 3)
            pixels = base + random.normal(0, 25, (20, 20, 3))
            image = pixels.clip(0, 255).astype(np.uint8)
            (folder / name / f"{number}.jpg").write_bytes(encoded(image, quality=95))
    return folder
