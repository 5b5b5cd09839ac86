"""Settings of weights to start from; imports no torch."""

import re
from enum import StrEnum
from pathlib import Path

RANDOM = Path("random")
"""Value of ``weights`` for an encoder from nothing."""


def start_name(weights: Path | None) -> str:
    """What a run's encoder starts from, as a name for folders and tables.

    Returns:
        ``pretrained`` for the run's own weights (None), ``random``, or the last part of another
        source, such as ``torchvision-resnet50`` or the name of a run.
    """
    if weights is None:
        return "pretrained"
    name = weights.stem if weights.suffix in (".json", ".safetensors", ".pth") else weights.name
    return re.sub(r"[^\w.-]+", "-", name)


class WeightsLayout(StrEnum):
    """Project whose tensor names a weights file uses."""

    auto = "auto"
    """Recognized by the tensor names."""
    moco = "moco"
    """Official MoCo v1 and v2: encoder_q.*, the head as fc."""
    moco_v3 = "moco_v3"
    """Official MoCo v3's ResNets: base_encoder.*."""
    solo_learn = "solo_learn"
    """solo-learn: backbone.* (formerly encoder.*), projector.*."""
    lightly = "lightly"
    """lightly's benchmarks: backbone.0.* and so on, projection_head.layers.*."""
    torchvision = "torchvision"
    """torchvision and timm: conv1.*, layer1.*, and so on."""
