"""The one schema: dataclasses that every command, test and benchmark reads its settings from.

A string under a field is its help text on the command line. `config` fills them; importing this
imports no torch, so that commands which need none start at once.
"""

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from fastmoco.pipelines.policies import POLICIES, Policy


class UsageError(ValueError):
    """The command line or configuration is wrong; one line says what, where and what to do."""


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


class Compile(StrEnum):
    """Whether `torch.compile` is used."""

    auto = "auto"
    """Where it works: on the CPU that needs a C++ compiler."""
    always = "always"
    never = "never"


class CudaGraph(StrEnum):
    """Whether a step is captured once as a CUDA graph and then replayed."""

    auto = "auto"
    """On one GPU, where optimizer and policy allow it."""
    always = "always"
    never = "never"


class Features(StrEnum):
    """Which vector of the encoder stands for an image."""

    backbone = "backbone"
    """After the global average pool."""
    embedding = "embedding"
    """After the projection head."""


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Dataset files."""

    train: Path | None = None
    """Dataset file to learn from (fastmoco convert makes one); train also takes JPEGs as they lie
    in a folder or in tar shards."""
    test: Path | None = None
    """Dataset file to evaluate on; needed by evaluation and by the monitor."""


@dataclass(kw_only=True, slots=True)
class PipelineConfig:
    """From a file on disk to crops on the device."""

    name: str = "auto"
    """Loader: auto, beton, dali, ffcv, resident, or torchvision (the slow reference)."""
    view_size: int = 224
    """Side of the square views, pixels."""
    center_crop: float = 0.875
    """Evaluation: side of the central square, as a share of the short one (0.875 = 224/256)."""
    eval_size: int = 0
    """Evaluation: side of the crops, pixels; 0 = view_size."""
    channel_mean: list[float] = field(default_factory=list)
    """Mean of red, green and blue in 0..1 that images are normalized by; none = the dataset's."""
    channel_std: list[float] = field(default_factory=list)
    """Their standard deviation, likewise."""
    num_threads: int = 0
    """Threads that decode and crop; 0 = one per core."""
    prefetch_batches: int = 2
    """Batches made ahead of the one in use."""
    hw_decoder_load: float | None = None
    """DALI on a GPU: share of images, 0 to 1, for its JPEG unit; null = by a short sweep."""


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
class OptimizerConfig:
    """Optimizer and learning-rate schedule."""

    name: str = "sgd"
    """sgd, adam, adamw, or lars (pip install 'fastmoco[timm]')."""
    learning_rate: float = 0.03
    """Peak learning rate."""
    scale_learning_rate: bool = False
    """Multiply the learning rate by global_batch_size / 256."""
    sgd_momentum: float = 0.9
    """Momentum of SGD and LARS."""
    weight_decay: float = 1e-4
    """On all parameters, batch norm's included, as in the official code."""
    exclude_bias_and_norm: bool | None = None
    """No weight decay, and with lars no adaptation, on biases and batch norm; null = lars only."""
    schedule: str = "cosine"
    """cosine (to 0, step by step), cosine_per_epoch, multistep or constant."""
    warmup_epochs: float = 0.0
    """Linear warm-up from 0, in epochs, before the schedule."""
    milestones: list[int] = field(default_factory=lambda: [120, 160])
    """Epochs at which multistep multiplies the learning rate."""
    milestone_factor: float = 0.1
    """What multistep multiplies by."""


@dataclass(kw_only=True, slots=True)
class LoopConfig:
    """The training loop."""

    epochs: int = 200
    """Passes over the dataset; the schedules span all of them."""
    max_steps: int = 0
    """Stop after this many steps, whatever the schedule still holds; 0 = no bound."""
    log_every_steps: int = 20
    """Steps per line of metrics.jsonl; each line is the mean since the last."""
    dry_run: bool = False
    """Build everything, run 20 steps, say how fast and large the run would be, keep nothing."""
    profile: bool = False
    """The same with a table of where a step's time goes, and a trace beside the run folder."""
    compile: Compile = Compile.auto
    """torch.compile: auto, always or never."""
    cuda_graph: CudaGraph = CudaGraph.auto
    """The whole step as one CUDA graph: auto (on one GPU), always or never."""
    accumulate: int = 1
    """Micro-batches that a device cuts its share of a batch into, one after the other: less memory.
    Each is a group of batch norm; all see the same queue; keys are enqueued after the step."""


@dataclass(kw_only=True, slots=True)
class CheckpointConfig:
    """Checkpoints."""

    every_steps: int = 0
    """Steps between checkpoints; 0 = at the end of each epoch. The last step is always saved."""
    keep: int = 2
    """How many of the newest stay on disk."""


@dataclass(kw_only=True, slots=True)
class MonitorConfig:
    """A kNN classifier on the frozen encoder while it trains."""

    every_epochs: int = 0
    """Epochs between measurements; 0 = off. Needs data.test and labels."""
    k: int = 200
    """Neighbors that vote."""
    temperature: float = 0.1
    """Their votes weigh exp(similarity / temperature)."""
    features: Features = Features.backbone
    """backbone or embedding."""


@dataclass(kw_only=True, slots=True)
class TrainConfig:
    """Everything that `fastmoco train` reads."""

    name: str = "moco"
    """Name of the run: its folder is runs/NAME unless run_dir says otherwise."""
    run_dir: Path | None = None
    """Folder of the run."""
    seed: int = 0
    """Of all draws and of the initial weights."""
    device: str = "auto"
    """auto (CUDA where there is one), cpu, cuda or cuda:N."""
    precision: Precision = Precision.float32
    """float32, fp16 or bf16."""
    global_batch_size: int = 256
    """Images per step, over all devices."""
    data: DataConfig = field(default_factory=DataConfig)
    pipeline: PipelineConfig = field(default_factory=PipelineConfig)
    policy: Policy = field(default_factory=lambda: POLICIES["moco_v2"])
    model: ModelConfig = field(default_factory=ModelConfig)
    moco: MocoConfig = field(default_factory=MocoConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    train: LoopConfig = field(default_factory=LoopConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    monitor: MonitorConfig = field(default_factory=MonitorConfig)


@dataclass(kw_only=True, slots=True)
class ViewsConfig:
    """Everything that `fastmoco views` reads."""

    policy: Policy = field(default_factory=lambda: POLICIES["moco_v2"])
    count: int = 8
    """How many images: the first that a run of this seed and batch order would see."""
    views: int = 2
    """How many views of each: those of a run, 2, or more, drawn alike."""
    view_size: int = 224
    """Side of the square views, pixels."""
    out: Path = Path("views.png")
    """PNG file to write."""
    seed: int = 0
    """Of all draws: the run's, to see its views."""
    epoch: int = 0
    """Which epoch's draws."""
    crops: bool = False
    """Instead, four pictures of each image: as it is, with the policy's crop, without it, and
    evaluation's center crop."""
    center_crop: float = 0.875
    """crops: side of that square, as a share of the short one."""
