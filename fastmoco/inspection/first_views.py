"""The first images of a run as the encoders see them, drawn again from the seed."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import torch

from fastmoco.inspection.pictures import draw_views
from fastmoco.pipelines.augment import augment_views
from fastmoco.train.trainer import Trainer

NUM_IMAGES = 8


def write_first_views(path: Path, trainer: Trainer) -> None:
    """Write sources, crop boxes and both views of the first images of epoch 0.

    Draws are pure functions of the sample: a smaller batch gives the very views that training sees.
    """
    step = trainer.step
    plan = replace(trainer.plan(epoch=0), global_batch_size=min(NUM_IMAGES, len(trainer.dataset)))
    with closing(trainer.open_loader(plan)) as loader:
        batch = next(loader)
        views = augment_views(
            batch.crops, batch.draw_key, step.policy, step.mean, step.std, torch.float32
        )
        images = [
            (view * step.std[:, None, None] + step.mean[:, None, None])
            .permute(0, 2, 3, 1)
            .cpu()
            .numpy()
            for view in views
        ]
        sources = [trainer.dataset.decode(int(sample)) for sample in batch.sample_id]
        draw_views(path, sources=sources, boxes=batch.boxes.cpu().numpy(), views=images)
