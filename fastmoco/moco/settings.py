"""Settings of the method: encoder, mechanism, loss and batch norm.

A string under a field is its help text on the command line. Importing this imports no torch.
"""

from dataclasses import dataclass, field
from enum import StrEnum

from fastmoco.pipelines.settings import PipelineConfig


class Stem(StrEnum):
    """What stands before the first residual stage."""

    imagenet = "imagenet"
    """7 x 7 convolution of stride 2 and a max-pool of stride 2: for views of 224 pixels."""
    small = "small"
    """3 x 3 convolution of stride 1, no pool: for views of 32 pixels."""
    small_stride2 = "small_stride2"
    """3 x 3 convolution of stride 2, no pool: a quarter of the work of `small`."""
    small_pad2 = "small_pad2"
    """`small` with a border of 2 pixels: solo-learn's on CIFAR, to take its weights in."""


class Mechanism(StrEnum):
    """Where a query's positive and its negatives come from."""

    moco = "moco"
    """A momentum encoder and a queue."""
    end_to_end = "end_to_end"
    """The batch, by gradients on both sides: SimCLR (arXiv:2002.05709)."""
    memory_bank = "memory_bank"
    """An entry for each image of the dataset (arXiv:1805.01978)."""
    moco_v3 = "moco_v3"
    """A momentum encoder, a prediction head and the batch (arXiv:2104.02057)."""


class Negatives(StrEnum):
    """What an end-to-end query is told from, of the other images of its batch."""

    both_views = "both_views"
    """NT-Xent: 2 (N - 1), and each view is a query once."""
    other_view = "other_view"
    """N - 1: first views are queries, second views keys (arXiv:1911.05722, Figure 3)."""


class Pretext(StrEnum):
    """What a query's positive is, of a pair of views."""

    instance = "instance"
    """The other view of its image."""
    cross_channel = "cross_channel"
    """Of its lightness the colors of the other view, and of its colors the lightness
    (arXiv:1906.05849)."""


class Head(StrEnum):
    """The projection head after the backbone."""

    linear = "linear"
    """One linear layer, MoCo v1."""
    mlp = "mlp"
    """Linear, ReLU, linear: MoCo v2 (arXiv:2003.04297)."""


class Loss(StrEnum):
    """How InfoNCE is computed; all give the same numbers."""

    auto = "auto"
    """fused on a GPU, chunked on a CPU."""
    plain = "plain"
    """The textbook form: all N x (K + 1) logits at once."""
    chunked = "chunked"
    """One pass over chunks of the queue."""
    fused = "fused"
    """The same as one Triton kernel, on a GPU."""


class BatchNorm(StrEnum):
    """Over which images batch norm takes its statistics in training."""

    auto = "auto"
    """shuffled on several devices or with batch_norm_splits, else plain; mechanisms without keys to
    shuffle: synchronized where the batch has the negatives, else plain."""
    plain = "plain"
    """Each device's own batch."""
    shuffled = "shuffled"
    """Groups of the global batch, drawn anew for the keys (arXiv:1911.05722, section 3.3)."""
    synchronized = "synchronized"
    """The global batch."""
    eman = "eman"
    """Another algorithm (arXiv:2101.08482): queries as in plain, keys by running statistics."""


class Precision(StrEnum):
    """Number format of the forward and backward pass; weights and statistics stay float32."""

    float32 = "float32"
    fp16 = "fp16"
    bf16 = "bf16"


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The encoder."""

    encoder: str = "resnet50"
    """resnet18 to resnet152, resnext50_32x4d, alexnet, alexnet_bn and others; halves:NAME, a pair
    of half the width for L and ab; timm:NAME, any of timm's (pip install 'fastmoco[timm]')."""
    stem: Stem = Stem.imagenet
    """First layers: imagenet (224 pixels), small (32), small_stride2 (32, a quarter the work);
    small_pad2 is solo-learn's small."""
    width: int = 64
    """Channels of the first stage: 64 is the paper's, 128 and 256 are ResNet-50 x2 and x4."""
    zero_init_residual: bool = False
    """ResNets: each residual block starts as the identity."""
    freeze_patch_projection: bool = False
    """Vision transformers: the first layer stays as it was drawn, as MoCo v3 has it."""
    activation_checkpointing: bool = False
    """ResNets: compute activations again in the backward pass; less memory, a third more time."""


@dataclass(kw_only=True, slots=True)
class MocoConfig:
    """Momentum Contrast, and what it is compared with."""

    mechanism: Mechanism = Mechanism.moco
    """moco (queue), end_to_end (SimCLR), memory_bank or moco_v3."""
    pretext: Pretext = Pretext.instance
    """A query's positive: instance (the other view), or cross_channel (of the lightness of a view
    the colors of the other; needs model.encoder=halves:NAME)."""
    head: Head = Head.mlp
    """Projection head: linear (v1) or mlp (v2); moco_v3 has its own."""
    head_hidden_dim: int = 0
    """mlp: width of its hidden layer; 0 = as wide as the feature."""
    dim: int = 128
    """C, length of the embedding."""
    hidden_dim: int = 4096
    """moco_v3: width of the hidden layers of its projection and prediction heads."""
    queue_size: int = 65536
    """K, number of negatives in the queue, or drawn from the memory bank."""
    negatives: Negatives = Negatives.both_views
    """end_to_end: both_views (NT-Xent) of the batch's other images, or other_view."""
    momentum: float = 0.999
    """m of the key encoder; 0.99 for small sets."""
    final_momentum: float | None = None
    """m at the end of the run, reached from moco.momentum by half a cosine; null = m stays as it
    is, of moco_v3 rises to 1."""
    bank_momentum: float = 0.5
    """memory_bank: share of an entry that stays when its image is seen."""
    temperature: float = 0.2
    """tau of InfoNCE."""
    symmetric: bool = False
    """Each view once as query, once as key: the sum of both losses, and 2 keys an image."""
    loss: Loss = Loss.auto
    """How it is computed: plain, chunked (less memory), fused (one GPU kernel), or auto."""
    batch_norm: BatchNorm = BatchNorm.auto
    """plain, shuffled, synchronized (over devices), eman (another algorithm), or auto."""
    batch_norm_splits: int = 1
    """shuffled: groups of the global batch with statistics of their own; 1 = one per device."""


@dataclass(kw_only=True, slots=True)
class EncoderConfig:
    """What evaluation needs to know of a run: how its encoder was built and fed.

    A run's configuration extends it; a saved configuration is read as one, whatever else it holds.
    """

    seed: int = 0
    """Of all draws and of the initial weights."""
    precision: Precision = Precision.float32
    """float32, fp16 or bf16."""
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    moco: MocoConfig = field(default_factory=MocoConfig)
