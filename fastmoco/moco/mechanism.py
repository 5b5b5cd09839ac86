"""The interface of every mechanism, and the parts that they share.

A mechanism defines where a query's positive and negatives come from. The step, the loop, the
checkpoint and the evaluation use `ContrastiveModel` only; `build.build_model` chooses its class:

- `model.MoCo`: a momentum encoder and a queue (arXiv:1911.05722, arXiv:2003.04297).
- `end_to_end.EndToEnd`: the batch itself, by gradients (arXiv:2002.05709).
- `memory_bank.MemoryBank`: an entry for each image (arXiv:1805.01978).
- `moco_v3.MoCoV3`: a momentum encoder and the batch (arXiv:2104.02057).
- `fast_moco.FastMoCo`: likewise, with queries from pairs of patches (arXiv:2207.08220).
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from fastmoco.moco.backbone import Backbone
from fastmoco.moco.encoder import Encoder, build_head
from fastmoco.moco.key_exchange import KeyExchange
from fastmoco.moco.settings import Loss, MocoConfig, ModelConfig
from fastmoco.ranks import ALONE, Ranks


class Views(NamedTuple):
    """Input of a mechanism for N images; tensors on the device."""

    query: Tensor
    """First views, ``(N, 3, H, W)``, normalized, channels_last."""
    key: Tensor
    """Second views, in the same format; `query` itself where `num_views` is 1. They are of the same
    images, except where keys are shuffled over several ranks and the loss is not symmetric: then of
    the images that `exchange` assigns to this rank."""
    permutation: Tensor
    """``(N,)`` int64: the order in which one rank encodes shuffled keys."""
    sample_id: Tensor
    """Ids of this rank's images, ``(N,)`` int64."""
    draw_key: Tensor
    """Random stream of each of this rank's images, ``(N,)`` int64."""
    exchange: KeyExchange | None = None
    """Where keys are shuffled over several ranks: which of them encodes what."""

    def swapped(self) -> "Views":
        """Exchange queries and keys."""
        return self._replace(query=self.key, key=self.query)


@dataclass(slots=True)
class StepOutput:
    """Result of one forward pass; tensors on the device, not read by the host."""

    loss: Tensor
    """Scalar; gradients flow. ``terms * factor`` times the mean loss of a query in nats."""
    query: Tensor
    """Unit-norm ``(N, C)``, detached; ``(2N, C)`` where each view is a query, or more queries."""
    key: Tensor
    """The positive of each query, unit-norm, detached."""
    rank: Tensor
    """Number of negatives above the positive, one for each query."""
    negative_similarity: Tensor
    """Scalar: the mean ``q.k`` over all queries and their negatives, detached."""
    terms: int = 1
    """Number of losses that `loss` is the sum of: 2 for a symmetric loss. Each encoder that trains
    has made as many forward passes."""
    factor: float = 1.0
    """Factor that multiplies each of them."""
    sample_id: Tensor | None = None
    """Image id of each query, ``(N,)`` int64, for a mechanism with an entry for each image."""
    source: Tensor | None = None
    """Sample id and draw key of each key, ``(N, 2)`` int64, for a mechanism with a queue."""


def join_outputs(outputs: Sequence[StepOutput], loss: Tensor, *, terms: int = 1) -> StepOutput:
    """Concatenate the outputs of both directions of a loss, or of micro-batches.

    Args:
        outputs: With equal numbers of queries and equal factors.
        loss: Scalar loss of all of them.
        terms: Number of losses that `loss` is the sum of.
    """
    return StepOutput(
        loss,
        torch.cat([output.query for output in outputs]),
        torch.cat([output.key for output in outputs]),
        torch.cat([output.rank for output in outputs]),
        torch.stack([output.negative_similarity for output in outputs]).mean(),
        terms=terms,
        factor=outputs[0].factor,
    )


class Parts(NamedTuple):
    """Everything that a mechanism is built from."""

    backbone: Backbone
    model: ModelConfig
    moco: MocoConfig
    ranks: Ranks = ALONE
    accumulate: int = 1
    """Micro-batches of a step."""
    num_samples: int = 0
    """Images of the dataset."""


class ContrastiveModel(nn.Module, ABC):
    """Encoders and the memory of a mechanism; a `TrainStep` turns it into a step of training.

    Its state is its parameters and buffers, equal on all ranks. The optimizer trains only the
    parameters that require gradients.

    Attributes:
        query_encoder: ``backbone`` and ``head``, which are evaluated and exported.
        temperature: tau of InfoNCE.
        ranks: Part of a global batch that this process sees.
        num_views: How many of an image's two crops become views.
        shuffle_keys: Whether the second views are encoded in another order (and by another rank)
            than the first.
        symmetric: Whether MoCo's loss takes each view once as query and once as key.
        loss: Form of InfoNCE; not ``auto``.
        chance_form: Formula of `chance_loss`, for the run's header.
    """

    num_views = 2
    shuffle_keys = False
    symmetric = False
    loss = Loss.plain
    chance_form = "ln(K+1)"

    def __init__(self, parts: Parts) -> None:
        """Build the query encoder from the backbone and a new head."""
        super().__init__()
        self.query_encoder = Encoder(parts.backbone, self.make_head(parts))
        self.temperature = parts.moco.temperature
        self.ranks = parts.ranks

    @classmethod
    def make_head(cls, parts: Parts) -> nn.Module:
        """Build the projection head of its encoders.

        Raises:
            UsageError: If the encoder does not fit the mechanism.
        """
        moco = parts.moco
        return build_head(moco.head, parts.backbone.feature_dim, moco.dim, moco.head_hidden_dim)

    def start_from(self, state: Mapping[str, Tensor]) -> None:
        """Give all encoders the same weights, in place: the key encoder too, where there is one.

        Args:
            state: Complete state of the query encoder.
        """
        for encoder in self.children():
            if isinstance(encoder, Encoder):
                encoder.load_state_dict(state)

    @property
    def exchanges_keys(self) -> bool:
        """Whether keys are encoded by other ranks than their queries."""
        return self.ranks.several and self.shuffle_keys

    @abstractmethod
    def forward(self, views: Views) -> StepOutput:
        """Contrast views of N images; only batch norm's running statistics change, in place."""

    @abstractmethod
    def after_step(self, output: StepOutput, learned: Tensor | None = None) -> None:
        """Update key encoder and memory after the optimizer's step, in place; on all ranks.

        Args:
            output: Result of `forward` in this step, on this rank.
            learned: Bool scalar on the device, equal on all ranks: False where loss scaling skipped
                the optimizer's step, and then nothing changes. None is True.
        """

    @abstractmethod
    def num_negatives(self, global_batch_size: int, /) -> int:
        """K, negatives of each query."""

    def chance_loss(self, global_batch_size: int) -> float:
        """Loss of a random guess in nats: `chance_form`."""
        return self.chance_among(self.num_negatives(global_batch_size))

    def chance_among(self, num_negatives: int) -> float:
        """`chance_loss` for any number of negatives."""
        return math.log(num_negatives + 1)

    @abstractmethod
    def describe(self, global_batch_size: int, /) -> str:
        """Name the mechanism and the source of its negatives, for the run's header."""

    def running_statistics(self) -> tuple[list[Tensor], list[Tensor]]:
        """Running means and variances of the trained layers and of the key encoder: the buffers."""
        return floating_buffers(self.query_encoder), []

    def moved_by_forward(self) -> list[Tensor]:
        """Running statistics of all batch norms, which a forward pass moves."""
        return [
            buffer
            for module in self.modules()
            if isinstance(module, _NormBase)
            for buffer in floating_buffers(module)
        ]

    def learnable(self) -> list[nn.Parameter]:
        """Parameters that the optimizer trains."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def prepare_for_device(self, device: torch.device, loss: Loss) -> None:
        """Choose number formats and kernels; by default there is nothing to choose.

        Args:
            device: Device that the model is on.
            loss: Requested form of InfoNCE; may be ``auto``.
        """

    def set_progress(self, progress: float) -> None:
        """Move scheduled values before a step; by default there are none.

        Args:
            progress: Fraction of the run's steps that are done, in [0, 1].
        """


def floating_buffers(module: nn.Module) -> list[Tensor]:
    """The buffers that hold running statistics, not counts."""
    return [buffer for buffer in module.buffers() if buffer.is_floating_point()]
