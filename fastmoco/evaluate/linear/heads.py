"""Linear classifiers on the same features, for many learning rates at once.

All heads read the same rows, so their logits are one matrix product and their gradients another:
``logits = W X^T + b``, ``dW = (softmax - onehot) X``. Without autograd a step takes some 15 small
operations; optimizers are torch's rules with a rate for each head. Classes are the first dimension
of logits: a softmax of ten classes over the last dimension took as long as both products together
(0.61 ms against 0.03; 16 heads, 256 rows, one core of an AMD EPYC, torch 2.15).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastmoco.errors import UsageError
from fastmoco.evaluate.classes import class_ranks
from fastmoco.optim.settings import OptimizerConfig

INITIAL_STD = 0.01  # as main_lincls.py of MoCo's code
ADAM_BETAS, ADAM_EPS = (0.9, 0.999), 1e-8  # torch's defaults
EVALUATION_ELEMENTS = 1 << 24


class Heads:
    """G linear classifiers ``D -> C``; all start from the same weights, N(0, 0.01), and bias 0.

    Attributes:
        weight: ``(C * G, D)`` float32, changed in place by `step`; class by class, all heads.
        bias: ``(C * G, 1)`` float32, changed in place by `step`; same order.
        rates: Peak learning rate of each head, G of them.
    """

    def __init__(
        self,
        rates: Sequence[float],
        *,
        dim: int,
        classes: int,
        cfg: OptimizerConfig,
        device: torch.device,
        seed: int,
    ) -> None:
        """Create the heads.

        Args:
            rates: Peak learning rate of each head.
            dim: D, length of a feature.
            classes: C.
            cfg: Optimizer: ``name``, ``sgd_momentum``, ``weight_decay``.
            device: Device of the heads.
            seed: Seed of the initial weights, which are drawn on the CPU.

        Raises:
            UsageError: If the optimizer is unknown.
        """
        if cfg.name not in ("sgd", "adam", "adamw"):
            raise UsageError(
                f"optimizer.name={cfg.name} is unknown; set it to one of sgd, adam, adamw"
            )
        self.rates, self._classes, self._cfg = list(rates), classes, cfg
        generator = torch.Generator().manual_seed(seed)
        start = INITIAL_STD * torch.randn(classes, dim, generator=generator)
        self.weight = start.repeat_interleave(len(rates), 0).to(device)
        self.bias = torch.zeros(len(rates) * classes, 1, device=device)
        self._rates = torch.tensor(self.rates, device=device).repeat(classes)[:, None]
        self._moments = [
            [torch.zeros_like(part) for _ in range(1 if cfg.name == "sgd" else 2)]
            for part in (self.weight, self.bias)
        ]
        self._steps = 0

    def logits(self, features: Tensor) -> Tensor:
        """Logits ``(C, G, N)`` of features ``(N, D)``."""
        product = torch.addmm(self.bias, self.weight, features.T)
        return product.view(self._classes, len(self.rates), len(features))

    @torch.no_grad()
    def step(
        self, features: Tensor, labels: Tensor, *, factor: float, weights: Tensor | None = None
    ) -> Tensor:
        """Step every head on its mean cross-entropy; change `weight` and `bias` in place.

        Args:
            features: ``(N, D)`` float32.
            labels: ``(N,)`` int64.
            factor: Factor of the schedule, multiplied by each head's rate.
            weights: Weight of each row in each head's mean, ``(N, G)`` float32; None: all equal.

        Returns:
            Cross-entropy of each row before the step, ``(N, G)``, nats.
        """
        log_shares = self.logits(features).log_softmax(0)
        right = labels.expand(1, len(self.rates), -1)
        losses = -log_shares.gather(0, right)
        gradient = log_shares.exp_().scatter_add_(0, right, -torch.ones_like(losses))
        if weights is None:
            gradient /= len(features)
        else:
            gradient *= (weights / weights.sum(0).clamp(min=1)).T
        flat = gradient.flatten(0, 1)
        self._steps += 1
        self._update(self.weight, flat @ features, self._moments[0], factor)
        self._update(self.bias, flat.sum(1, keepdim=True), self._moments[1], factor)
        return losses[0].T

    def _update(
        self, part: Tensor, gradient: Tensor, moments: Sequence[Tensor], factor: float
    ) -> None:
        """Apply torch's rule of the optimizer in place, with a rate for each row."""
        cfg, rates = self._cfg, self._rates * factor
        if cfg.name == "adamw":
            part.mul_(1 - rates * cfg.weight_decay)
        elif cfg.weight_decay:
            gradient = gradient.add(part, alpha=cfg.weight_decay)
        if cfg.name == "sgd":
            (momentum,) = moments
            momentum.mul_(cfg.sgd_momentum).add_(gradient)
            part.addcmul_(momentum, rates, value=-1)
            return
        mean, square = moments
        mean.lerp_(gradient, 1 - ADAM_BETAS[0])
        square.mul_(ADAM_BETAS[1]).addcmul_(gradient, gradient, value=1 - ADAM_BETAS[1])
        corrections = [1 - beta**self._steps for beta in ADAM_BETAS]
        scale = (square / corrections[1]).sqrt_().add_(ADAM_EPS)
        part.addcmul_(mean / scale, rates, value=-1 / corrections[0])

    @torch.no_grad()
    def ranks(self, features: Tensor, labels: Tensor) -> Tensor:
        """Compute `class_ranks` of each head, ``(N, G)``, in chunks."""
        rows = max(1, EVALUATION_ELEMENTS // len(self.weight))
        found = []
        for part, right in zip(torch.split(features, rows), torch.split(labels, rows), strict=True):
            scores = self.logits(part).permute(2, 1, 0).flatten(0, 1)
            ranks = class_ranks(scores, right.repeat_interleave(len(self.rates)))
            found.append(ranks.view(len(part), -1))
        return torch.cat(found)
