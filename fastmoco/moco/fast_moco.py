"""Fast-MoCo: queries are means of the features of two patches of a view (arXiv:2207.08220).

Written from the paper. The heads' layers, the constant momentum and the mean over both directions
are values of the official code; the preset ``fast_moco`` sets the others.

Cut into four patches, a view costs the backbone as much as before and gives six queries instead of
one. The price: six projections and predictions of each view, and running statistics of the query
encoder that are those of patches, though evaluation shows it complete images.
"""

from itertools import combinations

import torch
from torch import Tensor, nn

from fastmoco.moco.batchnorm import HeadNorm, head_norm_layer
from fastmoco.moco.mechanism import Parts
from fastmoco.moco.moco_v3 import MoCoV3, batch_norm_mlp
from fastmoco.moco.settings import MocoConfig

PAIRS = tuple(combinations(range(4), 2))
"""The 6 pairs of 4 patches."""
BOTTLENECK = 4
"""How much narrower than an embedding the predictor's hidden layer is: 512 of 2,048."""


def quarters(view: Tensor) -> Tensor:
    """Cut ``(N, 3, H, W)`` into 2 x 2 patches, ``(4N, 3, H/2, W/2)``; all first patches first."""
    return torch.cat([part for rows in view.chunk(2, dim=2) for part in rows.chunk(2, dim=3)])


def pair_means(features: Tensor) -> Tensor:
    """Mean features of `PAIRS`, from ``(4N, D)`` to ``(6N, D)``; all first pairs first."""
    patches = features.chunk(4)  # (N, D) each
    return torch.cat([(patches[one] + patches[other]) / 2 for one, other in PAIRS])


class FastMoCo(MoCoV3):
    """MoCo v3 with queries from pairs of patches; keys are complete views, and m is constant."""

    label = f"fast_moco, {len(PAIRS)} pairs of patches a view"
    default_end = None

    def __init__(self, parts: Parts) -> None:
        """Build the encoder, its momentum copy and the predictor."""
        super().__init__(parts)
        self.factor = 0.5  # the mean over both directions

    @classmethod
    def make_head(cls, parts: Parts) -> nn.Module:
        """Build the projector: 3 layers, and an affine batch norm at its end."""
        moco = parts.moco
        widths = [parts.backbone.feature_dim, moco.hidden_dim, moco.hidden_dim, moco.dim]
        return batch_norm_mlp(widths, head_norm_layer(moco, parts.ranks), last_affine=True)

    @classmethod
    def make_predictor(cls, moco: MocoConfig, norm_layer: HeadNorm) -> nn.Module:
        """Build the predictor: 2 layers with a bottleneck, and no batch norm at its end."""
        hidden = max(1, moco.dim // BOTTLENECK)
        return nn.Sequential(
            nn.Linear(moco.dim, hidden, bias=False),
            norm_layer(hidden),
            nn.ReLU(inplace=True),
            nn.Linear(hidden, moco.dim),
        )

    def project(self, view: Tensor) -> Tensor:
        """Projections of the 6 pairs of patches of each view, ``(6N, C)``."""
        features = self.query_encoder.backbone(quarters(view))  # (4N, D)
        projections: Tensor = self.query_encoder.head(pair_means(features))
        return projections
