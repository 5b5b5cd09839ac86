"""The official MoCo step, reimplemented from its published description (arXiv:1911.05722).

What makes it slow is kept as published: float32 and NCHW, a queue ``(C, K)`` that is cloned for
each loss, all N x (K + 1) logits for a cross-entropy, a momentum update that makes new tensors for
each parameter, a pointer and accuracies that are read back in each step. `tune` is what its users
add in an afternoon: mixed precision, channels_last and a momentum update over all parameters at
once; `compile` is one line more.
"""

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional as F

MOMENTUM, TEMPERATURE = 0.999, 0.2


class OfficialStep:
    """One training step on one device.

    Args:
        encoder: Backbone and head, ``(N, 3, H, W)`` to ``(N, C)``; trained in place.
        queue: The first negatives, ``(K, C)``, unit norm.
        learning_rate: Of SGD with momentum 0.9 and weight decay 1e-4.
    """

    def __init__(self, encoder: nn.Module, queue: Tensor, learning_rate: float) -> None:
        self.encoder_q = encoder
        self.encoder_k = copy.deepcopy(encoder).requires_grad_(False)
        self.queue = queue.T.contiguous()
        self.pointer = torch.zeros(1, dtype=torch.long, device=queue.device)
        self.optimizer = torch.optim.SGD(
            encoder.parameters(), learning_rate, momentum=0.9, weight_decay=1e-4
        )
        self.autocast_dtype: torch.dtype | None = None

    def tune(self, dtype: torch.dtype) -> "OfficialStep":
        """Mixed precision of this dtype, channels_last, and one call for the momentum update."""
        self.autocast_dtype = dtype
        for encoder in (self.encoder_q, self.encoder_k):
            encoder.to(memory_format=torch.channels_last)
        return self

    def compile(self) -> "OfficialStep":
        """Both encoders by `torch.compile`."""
        for name in ("encoder_q", "encoder_k"):
            setattr(self, name, torch.compile(getattr(self, name), dynamic=False))
        return self

    def __call__(self, query_view: Tensor, key_view: Tensor) -> Tensor:
        """Momentum update, loss, enqueue, optimizer; gives the loss."""
        self.update_key_encoder()
        enabled = self.autocast_dtype is not None
        with torch.autocast(query_view.device.type, self.autocast_dtype, enabled=enabled):
            query = F.normalize(self.encoder_q(query_view), dim=1)
            with torch.no_grad():
                key = F.normalize(self.encoder_k(key_view), dim=1)
            loss = self.contrast(query, key)
        self.enqueue(key)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        return loss.detach()

    @torch.no_grad()
    def update_key_encoder(self) -> None:
        """At the start of a step, as published."""
        query: list[Tensor] = list(self.encoder_q.parameters())
        key: list[Tensor] = list(self.encoder_k.parameters())
        if self.autocast_dtype is not None:
            torch._foreach_lerp_(key, query, 1 - MOMENTUM)
            return
        for ours, theirs in zip(key, query, strict=True):
            ours.data = ours.data * MOMENTUM + theirs.data * (1 - MOMENTUM)

    def contrast(self, query: Tensor, key: Tensor) -> Tensor:
        """Cross-entropy over all logits, and the accuracies that are printed."""
        positive = torch.einsum("nc,nc->n", query, key)[:, None]
        negative = torch.einsum("nc,ck->nk", query, self.queue.clone().to(query.dtype))
        logits = torch.cat([positive, negative], dim=1) / TEMPERATURE
        labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        loss = F.cross_entropy(logits, labels)
        self._read_accuracies(logits.detach(), loss.detach())
        return loss

    def _read_accuracies(self, logits: Tensor, loss: Tensor) -> tuple[float, float, float]:
        right = logits.topk(5, dim=1).indices == 0
        return loss.item(), right[:, 0].float().mean().item(), right.any(1).float().mean().item()

    @torch.no_grad()
    def enqueue(self, key: Tensor) -> None:
        """Overwrite the oldest; K is a multiple of N."""
        pointer = int(self.pointer)
        self.queue[:, pointer : pointer + len(key)] = key.T
        self.pointer[0] = (pointer + len(key)) % self.queue.shape[1]
