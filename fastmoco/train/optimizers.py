"""Optimizers by name; torch's own, in their fused form."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from fastmoco.schema import OptimizerConfig, UsageError


def _sgd(parameters: Iterable[nn.Parameter], cfg: OptimizerConfig) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(
        parameters,
        lr=cfg.learning_rate,
        momentum=cfg.sgd_momentum,
        weight_decay=cfg.weight_decay,
        fused=True,
    )
    # Where loss scaling skips the first step, the fused kernel (torch 2.15) leaves the momentum it
    # has allocated unwritten, and the second step would add whatever lies there.
    for parameter in optimizer.param_groups[0]["params"]:
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _adam(parameters: Iterable[nn.Parameter], cfg: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.Adam(
        parameters, lr=cfg.learning_rate, weight_decay=cfg.weight_decay, fused=True
    )


def _adamw(parameters: Iterable[nn.Parameter], cfg: OptimizerConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        parameters, lr=cfg.learning_rate, weight_decay=cfg.weight_decay, fused=True
    )


OPTIMIZERS: dict[
    str, Callable[[Iterable[nn.Parameter], OptimizerConfig], torch.optim.Optimizer]
] = {
    "sgd": _sgd,
    "adam": _adam,
    "adamw": _adamw,
}


def build_optimizer(
    parameters: Iterable[nn.Parameter], cfg: OptimizerConfig
) -> torch.optim.Optimizer:
    """Build the optimizer: one group, weight decay on all of it, as in the official code.

    Raises:
        UsageError: If the name is unknown.
    """
    if cfg.name not in OPTIMIZERS:
        raise UsageError(
            f"optimizer.name={cfg.name} is unknown; set it to one of {', '.join(OPTIMIZERS)}"
        )
    return OPTIMIZERS[cfg.name](parameters, cfg)
