"""Settings of weights to start from; imports no torch."""

from enum import StrEnum


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
