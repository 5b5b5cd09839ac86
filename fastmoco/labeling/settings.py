"""What `fastmoco request`, `merge-labels` and `feature-maps` read; imports no torch."""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from fastmoco.data.settings import DataConfig
from fastmoco.evaluate.settings import FeaturesConfig


class RequestMode(StrEnum):
    """What images are ranked by."""

    trained = "trained"
    """How badly the run's encoders tell each image from others."""
    per_sample_runs = "per_sample_runs"
    """How badly runs of their own on random samples of the images end."""
    random = "random"
    """A draw: what the others are to be compared with."""


class RankBy(StrEnum):
    """Which of two figures decides."""

    both = "both"
    """The mean of an image's places by loss and by rank (of a sample's by loss and accuracy)."""
    loss = "loss"
    """The contrastive loss."""
    rank = "rank"
    """Place of the positive in the (K+1)-way look-up; of a sample's run, its accuracy."""


class NegativesFrom(StrEnum):
    """What an image is told from."""

    queue = "queue"
    """The keys that the checkpoint holds."""
    dataset = "dataset"
    """Keys of as many images of data.train, made now; an image's own key does not count."""


class Balance(StrEnum):
    """Whether a request is spread over kinds of images."""

    none = "none"
    clusters = "clusters"
    """As many of each cluster of features as there are."""


@dataclass(kw_only=True, slots=True)
class RequestConfig(FeaturesConfig):
    """Everything that `fastmoco request` reads."""

    count: int = 1000
    """How many images to request."""
    out: Path = Path("request")
    """Folder of the request; the same command again goes on in it."""
    mode: RequestMode = RequestMode.trained
    """trained: ranked by the run's encoders, image by image; per_sample_runs: by how runs of their
    own on random samples end, with the run's settings; random: a draw, to compare with."""
    rank_by: RankBy = RankBy.both
    """loss, rank (of the positive; per_sample_runs: accuracy), or both: the mean of both places."""
    views: int = 4
    """trained: pairs of views of each image over which loss and rank are averaged."""
    negatives: NegativesFrom = NegativesFrom.queue
    """trained: what an image is told from: the checkpoint's queue, or keys made of data.train."""
    seed: int = 0
    """Of all draws."""
    samples: int = 40
    """per_sample_runs: how many samples, each drawn from all candidates."""
    sample_size: int = 12_800
    """per_sample_runs: images of a sample."""
    epochs: int = 0
    """per_sample_runs: epochs of each run; 0 = as the run had."""
    keep_runs: bool = False
    """per_sample_runs: keep the checkpoints of these runs, not only their figures."""
    max_similarity: float = 0.99
    """An image is a duplicate above this cosine of centered features to one ranked before it or
    labeled already; 1 = only where the stored bytes are equal."""
    diversity: bool = False
    """Take those that cover the features best (k-center greedy), of `pool` times as many."""
    pool: int = 4
    """diversity: how many of the first ranked to choose from, in multiples of what is wanted."""
    balance: Balance = Balance.none
    """none, or clusters: the same number from each cluster of features (k-means)."""
    clusters: int = 0
    """balance: how many clusters; 0 = as many as data.train has classes, or 10 if it names none."""
    images: bool = True
    """Write the requested images as files too, for those who label them."""
    image_prefix: str = ""
    """Put before each image's path in label_studio.json, as in /data/local-files/?d=request/."""
    sheet: int = 64
    """Images on the contact sheet."""


@dataclass(kw_only=True, slots=True)
class MergeLabelsConfig:
    """Everything that `fastmoco merge-labels` reads."""

    data: DataConfig = field(default_factory=DataConfig)
    labels: Path | None = None
    """CSV, TSV or Parquet of the granted labels: sample_id or path, and label (name or number)."""
    out: Path | None = None
    """Dataset file to write."""
    only_labeled: bool = False
    """Write only the images that have a label, old or new."""
    overwrite: bool = False
    """Let granted labels replace other ones that data.train has."""
    classes: Path | None = None
    """Dataset file whose classes the labels are of, where data.train names none."""
    run: Path | None = None
    """Run that will learn from the labels; none = where the request found its own."""
