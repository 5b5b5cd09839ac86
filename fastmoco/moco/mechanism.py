"""What every mechanism is to the rest: one small interface, and the parts that they share.

A mechanism says where a query's positive and negatives come from. The step, the loop, the
checkpoint and the evaluation know `ContrastiveModel` alone; `build` is where a configuration
chooses one:

- `model.MoCo`: a momentum encoder and a queue (arXiv:1911.05722, arXiv:2003.04297).
- `end_to_end.EndToEnd`: the batch itself, by gradients (arXiv:2002.05709).
- `memory_bank.MemoryBank`: an entry for each image (arXiv:1805.01978).
- `moco_v3.MoCoV3`: a momentum encoder and the batch (arXiv:2104.02057).
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from fastmoco.moco.backbone import Backbone
from fastmoco.moco.encoder import Encoder, build_head
from fastmoco.moco.settings import Loss, MocoConfig, ModelConfig
from fastmoco.ranks import Ranks


class Views(NamedTuple):
    """What a mechanism is given for N images; tensors on the device."""

    query: Tensor
    """First views, ``(N, 3, H, W)``, normalized, channels_last."""
    key: Tensor
    """Second views of the same images, likewise; `query` itself where `num_views` is 1. Shuffled
    over several ranks, and not symmetric: of the images that `permutation` gives this rank."""
    permutation: Tensor
    """``(world_size * N,)`` int64: the order in which keys are encoded where they are shuffled."""
    sample_id: Tensor
    """``(N,)`` int64, of this rank's images."""
    draw_key: Tensor
    """``(N,)`` int64, likewise: for what is drawn."""

    def swapped(self) -> "Views":
        """The same with the second views as queries and the first ones as keys."""
        return self._replace(query=self.key, key=self.query)


@dataclass(slots=True)
class StepOutput:
    """What one forward pass gives; tensors on the device, nothing read by the host."""

    loss: Tensor
    """Scalar; gradients flow. ``terms * factor`` times the mean loss of a query in nats."""
    query: Tensor
    """Unit-norm ``(N, C)``, detached; ``(2N, C)`` where each view is a query."""
    key: Tensor
    """The positive of each query, unit-norm, detached."""
    rank: Tensor
    """Number of negatives above the positive, one for each query."""
    negative_similarity: Tensor
    """Scalar: the mean ``q.k`` over all queries and their negatives, detached."""
    terms: int = 1
    """How many losses `loss` is the sum of: 2 where it is symmetric."""
    factor: float = 1.0
    """What multiplies each of them."""
    sample_id: Tensor | None = None
    """``(N,)`` int64, whose queries they are: where the mechanism remembers images by their id."""


class Parts(NamedTuple):
    """What a mechanism is built from."""

    backbone: Backbone
    model: ModelConfig
    moco: MocoConfig
    ranks: Ranks
    num_samples: int = 0
    """Images of the dataset."""
    accumulate: int = 1
    """Micro-batches of a step."""


class ContrastiveModel(nn.Module, ABC):
    """Encoders and what a mechanism remembers; a `TrainStep` turns it into a step of training.

    Its state is its parameters and buffers, equal on all ranks. Only parameters that require
    gradients are the optimizer's.

    Attributes:
        query_encoder: ``backbone`` and ``head``: what is evaluated and exported.
        ranks: Which part of a global batch this process sees.
        num_views: How many of an image's two crops become views.
        shuffle_keys: Whether the second views are encoded in another order (and by another rank)
            than the first.
        symmetric: Whether MoCo's loss takes each view once as query and once as key.
        loss: How InfoNCE is computed; not ``auto``.
    """

    query_encoder: Encoder
    num_views = 2
    shuffle_keys = False
    symmetric = False
    loss = Loss.plain

    def __init__(self, ranks: Ranks) -> None:
        """Take what all of them have."""
        super().__init__()
        self.ranks = ranks

    @classmethod
    @abstractmethod
    def build(cls, parts: Parts) -> Self:
        """The mechanism that a configuration describes."""

    @classmethod
    def make_head(cls, parts: Parts) -> nn.Module:
        """The projection head of its encoders.

        Raises:
            UsageError: If the encoder does not fit the mechanism.
        """
        moco = parts.moco
        return build_head(moco.head, parts.backbone.feature_dim, moco.dim, moco.head_hidden_dim)

    @abstractmethod
    def forward(self, views: Views) -> StepOutput:
        """Contrast views of N images; changes nothing but batch norm's running statistics."""

    @abstractmethod
    def after_step(self, output: StepOutput, learned: Tensor | None = None) -> None:
        """What follows the optimizer's step, in place; on all ranks together.

        Args:
            output: What `forward` gave in this step, on this rank.
            learned: Bool scalar on the device, equal on all ranks: False where loss scaling skipped
                the optimizer's step, and then nothing changes. None is True.
        """

    @abstractmethod
    def num_negatives(self, global_batch_size: int) -> int:
        """K, of each query: chance is a loss of ln(K+1)."""

    @abstractmethod
    def describe(self, global_batch_size: int) -> str:
        """Mechanism and where its negatives come from, for the run's header."""

    def running_statistics(self) -> tuple[list[Tensor], list[Tensor]]:
        """Running means and variances of what is trained and of the key encoder, the buffers."""
        return floating_buffers(self.query_encoder), []

    def learnable(self) -> list[nn.Parameter]:
        """What the optimizer trains."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def prepare_for_device(self, device: torch.device, loss: Loss) -> None:
        """Choose number formats and kernels for the device that the model is on.

        Args:
            device: Where the model lies.
            loss: How InfoNCE is to be computed; may be ``auto``.
        """
        del device, loss

    def set_progress(self, progress: float) -> None:
        """Move what follows a schedule, before a step.

        Args:
            progress: Share of the run's steps that are done, in [0, 1].
        """
        del progress


def floating_buffers(module: nn.Module) -> list[Tensor]:
    """The buffers that hold running statistics, not counts."""
    return [buffer for buffer in module.buffers() if buffer.is_floating_point()]
