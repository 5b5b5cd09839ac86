"""Settings of the method: encoder, mechanism, loss and batch norm; imports no torch.

A string under a field is its help text on the command line.
"""

from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import ClassVar

from fastmoco.errors import UsageError
from fastmoco.pipelines.settings import PipelineConfig
from fastmoco.ranges import (
    COUNT,
    COUNT_OR_ZERO,
    FRACTION,
    POSITIVE,
    SEED,
    Range,
    Ranges,
    check_ranges,
)


class Stem(StrEnum):
    """Layers before the first residual stage."""

    imagenet = "imagenet"
    """7 x 7 convolution of stride 2 and a max-pool of stride 2: for views of 224 pixels."""
    small = "small"
    """3 x 3 convolution of stride 1, no pool: for views of 32 pixels."""
    small_stride2 = "small_stride2"
    """3 x 3 convolution of stride 2, no pool: a quarter of the work of `small`."""
    small_pad2 = "small_pad2"
    """`small` with a border of 2 pixels, as in solo-learn on CIFAR, to import its weights."""


class Mechanism(StrEnum):
    """Source of a query's positive and negatives."""

    moco = "moco"
    """A momentum encoder and a queue."""
    end_to_end = "end_to_end"
    """The batch, with gradients on both sides: SimCLR (arXiv:2002.05709)."""
    memory_bank = "memory_bank"
    """An entry for each image of the dataset (arXiv:1805.01978)."""
    moco_v3 = "moco_v3"
    """A momentum encoder, a prediction head and the batch (arXiv:2104.02057)."""
    fast_moco = "fast_moco"
    """`moco_v3` with queries from pairs of a view's four patches (arXiv:2207.08220)."""


class Negatives(StrEnum):
    """Negatives of an end-to-end query among the other images of its batch."""

    both_views = "both_views"
    """NT-Xent: 2 (N - 1), and each view is a query once."""
    other_view = "other_view"
    """N - 1: first views are queries, second views keys (arXiv:1911.05722, Figure 3)."""


class Pretext(StrEnum):
    """Positive of a query in a pair of views."""

    instance = "instance"
    """The other view of its image."""
    cross_channel = "cross_channel"
    """The colors of the other view for a query of lightness, and its lightness for one of colors
    (arXiv:1906.05849)."""


class Head(StrEnum):
    """Projection head after the backbone."""

    linear = "linear"
    """One linear layer, MoCo v1."""
    mlp = "mlp"
    """Linear, ReLU, linear: MoCo v2 (arXiv:2003.04297)."""
    mlp_norm = "mlp_norm"
    """`mlp` with batch norm after both linear layers, which have no bias: SimCLR's code."""


class V3Heads(StrEnum):
    """MoCo v3's projector, and the end of its two-layer predictor."""

    resnet = "resnet"
    """Two layers; no batch norm after the predictor: the code's ResNets."""
    vit = "vit"
    """Three layers; batch norm after the predictor: the code's vision transformers."""


class Objective(StrEnum):
    """What a query learns from its positive and the queue."""

    info_nce = "info_nce"
    """One choice among K + 1 keys, a softmax (arXiv:1911.05722, Eq. 1)."""
    binary_nce = "binary_nce"
    """K + 1 yes-or-no questions with a fixed normalizer (arXiv:1805.01978, HobbitLong's CMC)."""


class Loss(StrEnum):
    """Ways to compute InfoNCE; all give the same numbers."""

    auto = "auto"
    """fused on a GPU, chunked on a CPU."""
    plain = "plain"
    """The textbook form: all N x (K + 1) logits at once."""
    chunked = "chunked"
    """One pass over chunks of the queue."""
    fused = "fused"
    """One pass as one Triton kernel, on a GPU."""


class BatchNorm(StrEnum):
    """Images over which batch norm takes its statistics in training."""

    auto = "auto"
    """shuffled on several devices or with batch_norm_splits, else plain; mechanisms without keys to
    shuffle: synchronized if the negatives are in the batch, else plain."""
    plain = "plain"
    """Each device's own batch."""
    shuffled = "shuffled"
    """Groups of the global batch, drawn again for the keys (arXiv:1911.05722, section 3.3)."""
    synchronized = "synchronized"
    """The global batch."""
    eman = "eman"
    """Another algorithm (arXiv:2101.08482): queries as in plain, keys by running statistics."""


class Precision(StrEnum):
    """Number format of the forward and backward pass; weights and statistics stay float32."""

    auto = "auto"
    """By the device: bf16 or fp16 where it has instructions for them."""
    float32 = "float32"
    fp16 = "fp16"
    bf16 = "bf16"


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """The encoder."""

    RANGES: ClassVar[Ranges] = {"width": COUNT}

    encoder: str = "resnet50"
    """resnet18 to resnet152, resnext50_32x4d, alexnet and others; halves:NAME, one half for
    lightness and one for colors; timm:NAME (pip install timm)."""
    stem: Stem = Stem.imagenet
    """First layers, for views of 224 pixels (imagenet) or 32; small_stride2 is faster."""
    width: int = 64
    """Channels of the first stage: 64 is the paper's."""
    zero_init_residual: bool = False
    """ResNets: each residual block starts as the identity."""
    freeze_patch_projection: bool = False
    """Vision transformers: keep the first layer random, as in MoCo v3."""
    activation_checkpointing: bool = False
    """ResNets: less memory, a third more time."""


OWN_HEADS = (Mechanism.moco_v3, Mechanism.fast_moco)
"""Mechanisms with a projector of their own and a predictor."""

OWNERS = {
    "negatives": (Mechanism.end_to_end,),
    "bank_momentum": (Mechanism.memory_bank,),
    "hidden_dim": OWN_HEADS,
    "v3_heads": (Mechanism.moco_v3,),
    "pretext": (Mechanism.moco,),
    "objective": (Mechanism.moco,),
}
"""Options of some mechanisms only. `queue_size`, `momentum` and `final_momentum` are left out,
though not all mechanisms read them: a sweep over mechanisms keeps its preset's options."""

NOT_SYMMETRIC = {
    Mechanism.end_to_end: "moco.negatives chooses which views are queries",
    Mechanism.memory_bank: "its positives are entries, not views",
    Mechanism.moco_v3: "MoCo v3 is always symmetric",
    Mechanism.fast_moco: "Fast-MoCo is always symmetric",
}


@dataclass(kw_only=True, slots=True)
class MocoConfig:
    """Momentum Contrast, and the mechanisms that it is compared with."""

    RANGES: ClassVar[Ranges] = {
        "head_hidden_dim": COUNT_OR_ZERO,
        "dim": COUNT,
        "hidden_dim": COUNT,
        "queue_size": COUNT,
        "momentum": FRACTION,
        "final_momentum": FRACTION,
        "bank_momentum": Range(0, 1, below=True),
        "temperature": POSITIVE,
        "batch_norm_splits": COUNT,
    }

    mechanism: Mechanism = Mechanism.moco
    """Where negatives come from: a queue (moco), the batch (end_to_end: SimCLR), and others."""
    pretext: Pretext = Pretext.instance
    """Positive of a query: the other view, or its colors (needs model.encoder=halves:NAME)."""
    head: Head = Head.mlp
    """Projection head: linear (MoCo v1), mlp (v2), mlp_norm (SimCLR); moco_v3 and fast_moco have
    their own."""
    head_hidden_dim: int = 0
    """mlp: width of the hidden layer; 0 = width of the feature."""
    dim: int = 128
    """Length of the embedding, C."""
    hidden_dim: int = 4096
    """moco_v3: width of the hidden layers of its heads; fast_moco: of its projector's."""
    v3_heads: V3Heads = V3Heads.vit
    """moco_v3: heads of the paper's ResNets (two layers) or ViTs (three)."""
    queue_size: int = 65536
    """Number of negatives, K: keys in the queue, or entries drawn from the memory bank."""
    negatives: Negatives = Negatives.both_views
    """end_to_end: negatives are both views of the other images, or one."""
    momentum: float = 0.999
    """Momentum of the key encoder, m; 0.99 for short runs."""
    final_momentum: float | None = None
    """m at the end of the run; null = as at the start (moco_v3: 1)."""
    bank_momentum: float = 0.5
    """memory_bank: fraction of an entry that stays when its image is seen."""
    temperature: float = 0.2
    """Temperature of the loss; lower: hard negatives count more."""
    objective: Objective = Objective.info_nce
    """Loss: one choice among K + 1 keys (info_nce), or a yes or no for each key."""
    symmetric: bool = False
    """Use each view once as query and once as key; twice the work for each image."""
    loss: Loss = Loss.auto
    """How the loss is computed: chunked needs less memory, fused is a GPU kernel."""
    batch_norm: BatchNorm = BatchNorm.auto
    """Images over which batch norm normalizes; auto: shuffled groups where there are several."""
    batch_norm_splits: int = 1
    """Groups of the global batch with separate batch norm; 1 = one per device."""

    def __post_init__(self) -> None:
        """Raise `UsageError` for values out of range and for options of other mechanisms."""
        check_ranges(self, prefix="moco.")
        self._check_owners()
        self._check_head()
        if self.objective is Objective.binary_nce:
            self._check_binary_nce()
        if self.mechanism is not Mechanism.moco:
            self._check_other_mechanism()

    def _check_owners(self) -> None:
        defaults = {item.name: item.default for item in fields(self)}
        for name, owners in OWNERS.items():
            if self.mechanism not in owners and getattr(self, name) != defaults[name]:
                allowed = " or ".join(owners)
                raise UsageError(
                    f"moco.{name}={getattr(self, name)} is an option of moco.mechanism={allowed} "
                    f"only, got {self.mechanism}; leave it out, or set moco.mechanism={allowed}"
                )

    def _check_head(self) -> None:
        if self.head_hidden_dim and self.mechanism in OWN_HEADS:
            raise UsageError(
                f"moco.head_hidden_dim={self.head_hidden_dim} is not for moco.mechanism="
                f"{self.mechanism}, whose heads use moco.hidden_dim; set moco.head_hidden_dim=0"
            )
        if self.head_hidden_dim and self.head is Head.linear:
            raise UsageError(
                f"moco.head_hidden_dim={self.head_hidden_dim} needs a hidden layer, and "
                "moco.head=linear has none; set moco.head=mlp or moco.head_hidden_dim=0"
            )
        if self.head is not Head.mlp and self.mechanism in OWN_HEADS:
            raise UsageError(
                f"moco.mechanism={self.mechanism} has its own heads; set moco.head=mlp"
            )
        if self.head is Head.mlp_norm and self.mechanism is not Mechanism.end_to_end:
            raise UsageError(
                "moco.head=mlp_norm is only for moco.mechanism=end_to_end, got "
                f"{self.mechanism}; set moco.head=mlp"
            )

    def _check_binary_nce(self) -> None:
        if self.loss in (Loss.chunked, Loss.fused):
            raise UsageError(
                f"moco.loss={self.loss} computes moco.objective=info_nce, got binary_nce, which is "
                "plain or auto; set moco.loss=auto"
            )
        if self.pretext is Pretext.cross_channel:
            raise UsageError(
                "moco.objective=binary_nce is for moco.pretext=instance, got cross_channel; set "
                "moco.objective=info_nce"
            )

    def _check_other_mechanism(self) -> None:
        """Refuse options that need a key encoder and a queue."""
        if self.symmetric:
            reason = NOT_SYMMETRIC.get(self.mechanism, "its loss has one form")
            raise UsageError(
                f"moco.symmetric=true is only for moco.mechanism=moco, got {self.mechanism} "
                f"({reason}); set moco.symmetric=false"
            )
        if self.batch_norm in (BatchNorm.shuffled, BatchNorm.eman) or self.batch_norm_splits != 1:
            raise UsageError(
                f"moco.batch_norm={self.batch_norm} with moco.batch_norm_splits="
                f"{self.batch_norm_splits} is for the key encoder of moco.mechanism=moco, not for "
                f"{self.mechanism}; set moco.batch_norm=auto, plain or synchronized, and "
                "moco.batch_norm_splits=1"
            )
        in_batch = self.mechanism is not Mechanism.memory_bank
        if in_batch and self.loss in (Loss.chunked, Loss.fused):
            raise UsageError(
                f"moco.loss={self.loss} is for a queue or a bank, but the negatives of "
                f"moco.mechanism={self.mechanism} are in the batch; set moco.loss=auto"
            )


@dataclass(kw_only=True, slots=True)
class EncoderConfig:
    """Settings of an encoder and of its inputs: the part of a run that evaluation reads.

    A run's configuration extends it; other keys of a saved configuration are ignored.
    """

    RANGES: ClassVar[Ranges] = {"seed": SEED}

    seed: int = 0
    """Seed of all random choices."""
    precision: Precision = Precision.auto
    """Number format of the passes; auto: by the device."""
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    moco: MocoConfig = field(default_factory=MocoConfig)
