"""An encoder: backbone and projection head, images to embeddings."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmoco.moco.backbone import Backbone
from fastmoco.moco.settings import Head


def build_head(head: Head, feature_dim: int, dim: int, hidden_dim: int = 0) -> nn.Module:
    """Map features ``(N, feature_dim)`` to embeddings ``(N, dim)``.

    Args:
        head: Kind of head.
        feature_dim: D, the length of a feature.
        dim: C, the length of an embedding.
        hidden_dim: Width of the MLP's hidden layer; 0 means D, as in MoCo v2.
    """
    if head is Head.linear:
        return nn.Linear(feature_dim, dim)
    width = hidden_dim or feature_dim
    return nn.Sequential(
        nn.Linear(feature_dim, width), nn.ReLU(inplace=True), nn.Linear(width, dim)
    )


def unit_norm(embedding: Tensor) -> Tensor:
    """Scale each row to length 1; float32 or wider."""
    return F.normalize(embedding.to(torch.promote_types(embedding.dtype, torch.float32)), dim=1)


class Encoder(nn.Module):
    """Backbone and projection head: images to embeddings."""

    def __init__(self, backbone: Backbone, head: nn.Module) -> None:
        """Combine a backbone and the head for its features."""
        super().__init__()
        self.backbone = backbone
        self.head = head

    def forward(self, images: Tensor) -> Tensor:
        """``(N, 3, H, W)`` to ``(N, C)``, not normalized."""
        embedding: Tensor = self.head(self.backbone(images))  # (N, C)
        return embedding
