"""Settings of `fastmoco request` and `merge-labels`; imports no torch."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import ClassVar

from fastmoco.data.settings import DataConfig
from fastmoco.evaluate.settings import FeaturesConfig
from fastmoco.ranges import COUNT, COUNT_OR_ZERO, MOST, SEED, SHARE, Range, Ranges


class RequestMode(StrEnum):
    """How images are ranked."""

    trained = "trained"
    """By how badly the run's encoders tell each image from others."""
    per_sample_runs = "per_sample_runs"
    """By how badly separate runs on random samples of the images end."""
    random = "random"
    """At random: the baseline for the other modes."""


class RankBy(StrEnum):
    """Which of two scores decides the ranking."""

    both = "both"
    """The mean of the positions by loss and by rank (of a sample: by loss and accuracy)."""
    loss = "loss"
    """The contrastive loss."""
    rank = "rank"
    """Rank of the positive in the (K+1)-way look-up; for a sample's run, its accuracy."""


class NegativesFrom(StrEnum):
    """Which negatives an image is compared with."""

    queue = "queue"
    """The keys in the checkpoint's queue."""
    dataset = "dataset"
    """New keys of as many images of data.train; an image's own key is ignored."""


class Balance(StrEnum):
    """Whether a request is balanced over kinds of images."""

    none = "none"
    clusters = "clusters"
    """The same number from each cluster of features, as far as it has members."""


@dataclass(kw_only=True, slots=True)
class RequestConfig(FeaturesConfig):
    """Settings of `fastmoco request`."""

    RANGES: ClassVar[Ranges] = {
        "count": COUNT,
        "views": COUNT,
        "seed": SEED,
        "samples": COUNT,
        "sample_size": Range(2, MOST),
        "epochs": COUNT_OR_ZERO,
        "max_similarity": SHARE,
        "pool": COUNT,
        "clusters": COUNT_OR_ZERO,
        "sheet": COUNT,
    }

    count: int = 1000
    """Number of images to request."""
    out: Path = Path("request")
    """Folder of the request."""
    mode: RequestMode = RequestMode.trained
    """Rank images by the run's encoders, by runs on random samples, or at random."""
    rank_by: RankBy = RankBy.both
    """Rank by the loss, by the rank of the positive, or by the mean of both."""
    views: int = 4
    """trained: pairs of views of each image."""
    negatives: NegativesFrom = NegativesFrom.queue
    """trained: negatives from the checkpoint's queue, or new ones from the dataset."""
    seed: int = 0
    """Seed of all random choices."""
    samples: int = 40
    """per_sample_runs: number of samples, each drawn from all candidates."""
    sample_size: int = 12_800
    """per_sample_runs: images per sample."""
    epochs: int = 0
    """per_sample_runs: epochs of each run; 0 = as many as the given run had."""
    keep_runs: bool = False
    """per_sample_runs: keep the checkpoints of these runs, not only their metrics."""
    max_similarity: float = 0.99
    """Skip images with a cosine above this to a better or labeled one; 1: equal bytes only."""
    diversity: bool = False
    """Choose the images that cover the features best (k-center)."""
    pool: int = 4
    """diversity: choose from the first pool * count images of the ranking."""
    balance: Balance = Balance.none
    """clusters: the same number from each cluster of features."""
    clusters: int = 0
    """balance=clusters: number of clusters; 0 = as many as data.train has classes, else 10."""
    images: bool = True
    """Also write the images as files."""
    image_prefix: str = ""
    """Prefix of each image's path in label_studio.json, such as /data/local-files/?d=request/."""
    sheet: int = 64
    """Most images on the contact sheet."""


@dataclass(kw_only=True, slots=True)
class MergeLabelsConfig:
    """Settings of `fastmoco merge-labels`."""

    data: DataConfig = field(default_factory=DataConfig)
    labels: Path | None = None
    """CSV, TSV or Parquet file of granted labels: sample_id or path, and label (name or number)."""
    out: Path | None = None
    """Dataset file to write."""
    only_labeled: bool = False
    """Write only images that have a label, old or new."""
    overwrite: bool = False
    """Replace labels of data.train that differ from the granted ones."""
    classes: Path | None = None
    """Dataset file with the class names of the labels, if data.train has none."""
    run: Path | None = None
    """Run that will learn from the labels; none = the request's run."""
