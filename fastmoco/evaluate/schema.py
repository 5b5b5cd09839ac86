"""What the evaluating commands read; strings under fields are help texts, as in `fastmoco.schema`.

Importing this imports no torch, so that commands which need none start at once.
"""

from dataclasses import dataclass, field

from fastmoco.schema import DataConfig, Features, Precision


@dataclass(kw_only=True, slots=True)
class CropConfig:
    """How evaluation reads images; by default as the run did."""

    name: str = "auto"
    """Loader: auto, beton, dali, ffcv, resident, or torchvision (the slow reference)."""
    eval_size: int = 0
    """Side of the crops, pixels; 0 = as the run has it."""
    center_crop: float | None = None
    """Side of the central square, as a share of the short one; none = as the run has it."""
    num_threads: int = 0
    """Threads that decode and crop; 0 = one per core."""


@dataclass(kw_only=True, slots=True)
class FeaturesConfig:
    """What every command reads that runs a frozen encoder over datasets."""

    data: DataConfig = field(default_factory=DataConfig)
    pipeline: CropConfig = field(default_factory=CropConfig)
    features: Features = Features.backbone
    """backbone or embedding."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    precision: Precision = Precision.float32
    """float32, fp16 or bf16, of the encoder; features are float32."""
    global_batch_size: int = 256
    """Images per forward pass; in training, per step."""
    cache: bool = True
    """Keep features in RUN/features, and take them from there where nothing has changed."""


@dataclass(kw_only=True, slots=True)
class KnnConfig(FeaturesConfig):
    """Everything that `fastmoco knn` reads."""

    k: int = 200
    """Neighbors that vote."""
    temperature: float = 0.1
    """Their votes weigh exp(similarity / temperature)."""
    baselines: bool = False
    """Measure raw pixels and the untrained encoder as well."""
