"""A picture of the first images of a run as the encoders see them, drawn again from the seed."""

from contextlib import closing
from dataclasses import replace

from fastmoco.train.trainer import Trainer
from fastmoco.visualize.views import draw_batch

NUM_IMAGES = 8


def write_first_views(trainer: Trainer) -> None:
    """Write ``views.png``: sources, crop boxes and both views of the first images of epoch 0.

    Draws are pure functions of the sample: a smaller batch gives the same views as training.
    """
    whole = replace(trainer.plan(epoch=0), rank=0, world_size=1)
    ids = next(whole.batches())[:NUM_IMAGES]
    count = {"num_samples": len(ids), "global_batch_size": len(ids)}
    plan = replace(whole, sample_ids=ids, training=False, shard_ends=None, **count)
    with closing(trainer.open_loader(plan)) as loader:
        draw_batch(trainer.run.views, trainer.dataset, next(loader), trainer.cfg.policy)
