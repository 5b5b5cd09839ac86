"""Numbers behind the advice of `advice.py`, each with its measurement or source.

docs/choosing.md shows what follows from them; its test fails until the page has the new values.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class DeviceRules:
    """Settings that a kind of device can bear."""

    batch: int
    """Images per step and device."""
    largest_view: int
    """Side of the largest views, pixels."""
    width: int
    """Channels of an encoder's first stage."""
    optimizer: str
    """Its optimizer, see `RATES`."""
    steps: int
    """Steps to aim at."""
    fewest_epochs: int
    """Passes over a set, however large."""
    most_epochs: int
    """Passes over a set, however small."""


RULES = {
    # Batch, width and optimizer are those of experiment=cifar10_cpu (39.4% kNN in 12 minutes on one
    # core). A view of 96 pixels costs a fifth of one of 224.
    "cpu": DeviceRules(
        batch=64,
        largest_view=96,
        width=32,
        optimizer="adamw",
        steps=5_000,
        fewest_epochs=5,
        most_epochs=800,
    ),
    # The published settings: batch 256 (arXiv:1911.05722), 200 epochs of 50,000 to 1.28 million
    # images; 800 epochs is the longest run of arXiv:2003.04297.
    "cuda": DeviceRules(
        batch=256,
        largest_view=224,
        width=64,
        optimizer="sgd",
        steps=40_000,
        fewest_epochs=100,
        most_epochs=800,
    ),
}
SMALLEST_SET = 16
"""Fewer images make no batch that batch norm could be split on."""
FEW_IMAGES = 2_000
"""Fewer are too few to learn from nothing (not measured yet)."""
MANY_IMAGES = 50_000
"""From here on a ResNet-50 is worth its cost on a GPU (not measured)."""
VIEW_SIZES = (32, 64, 96, 128, 224)
"""Sides of views that the stems are made for, pixels."""
BLUR_FROM = 64
"""Smallest view that is blurred: sigma is up to 2 pixels, and 32-pixel recipes have none."""
FEWEST_BATCHES = 4
"""Steps in an epoch, at least."""
QUEUE_SHARE = 1 / 8
"""K as a fraction of the set, at most: 4,096 of 50,000 images is published for CIFAR-10."""
QUEUE_AGE, FEWEST_QUEUE_STEPS = 1 / 400, 4
"""Age of the oldest key as a fraction of the run's steps, at most, and the fewest steps for it.
While an encoder moves fast, "newer than the queue" is easier to learn than the image. In runs of
930 and 1,560 steps a queue of 4 steps' keys learned more than one of 16, in each of three seeds:
by 2.0 and 2.3 points of kNN in the mean (docs/choosing.md). Published runs stay below: 1 / 4,000 on
ImageNet (arXiv:1911.05722)."""
LONGEST_QUEUE = 65_536
"""K of the published runs (arXiv:1911.05722)."""
MOMENTA = ((0.999, 20_000), (0.996, 5_000), (0.99, 0))
"""m, and the fewest steps for it. 0.9 collapses; in 558 steps 0.99 is best and 0.999 has no time to
follow (docs/log.md); published runs of 20,000 steps use 0.99, longer ones 0.999."""
WARMUP_STEPS = 100
"""Steps of linear warm-up: an epoch of experiment=demo and of cifar10_cpu is 93 and 156."""
FEWEST_STEPS = 1_000
"""Shorter runs have hardly begun: experiment=demo with K = 256 learns after 300 to 900 steps, where
the loss against fresh keys leaves chance (docs/log.md)."""
MEASUREMENTS = 5
"""Measurements of kNN in a run with labels; on a CPU they take about 4% of its time."""
NEIGHBORS = ((200, 50_000), (20, 0))
"""Neighbors that vote, and the fewest images for them: 200 is published for CIFAR-10 and ImageNet
(arXiv:1805.01978, section 4.1); of 300 images, 200 are not near."""
NORM_KEYS = {"moco.mechanism", "moco.batch_norm", "train.accumulate"}
"""Keys with which a user chooses how batch norm is grouped."""
RATES = {"sgd": (0.06, 256, 1.0), "adamw": (0.002, 64, 0.5)}
"""Learning rate at a batch, and the power of the batch by which it grows: linearly for SGD
(arXiv:1706.02677), as the square root for AdamW. The rates are those of cifar10_lightly and
cifar10_cpu."""
