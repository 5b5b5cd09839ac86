"""Optimizers by name: torch's own in their fused form, and LARS from timm."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from fastmoco.optim.settings import OptimizerConfig, OptimizerName

Groups = list[dict[str, Any]]


def _sgd(groups: Groups, cfg: OptimizerConfig) -> torch.optim.Optimizer:
    rate = _rate_on_device(groups, cfg.learning_rate)
    optimizer = torch.optim.SGD(groups, lr=rate, momentum=cfg.sgd_momentum, fused=True)
    # If loss scaling skips the first step, the fused kernel (torch 2.15) leaves the momentum that
    # it allocated uninitialized, and the second step would add it.
    return with_zero_momentum(optimizer)


def _adam(groups: Groups, cfg: OptimizerConfig) -> torch.optim.Optimizer:
    rate = _rate_on_device(groups, cfg.learning_rate)
    return torch.optim.Adam(groups, lr=rate, fused=True, capturable=_is_on_cuda(groups))


def _adamw(groups: Groups, cfg: OptimizerConfig) -> torch.optim.Optimizer:
    rate = _rate_on_device(groups, cfg.learning_rate)
    return torch.optim.AdamW(groups, lr=rate, fused=True, capturable=_is_on_cuda(groups))


def _lars(groups: Groups, cfg: OptimizerConfig) -> torch.optim.Optimizer:
    """LARS (arXiv:1708.03888): each layer's rate is scaled by ``1e-3 |w| / (|g| + decay |w|)``.

    timm scales only groups with weight decay; a group without it gets plain SGD with momentum, as
    SimCLR does for biases and batch norm (arXiv:2002.05709, section B.7).
    """
    from timm.optim.lars import Lars

    optimizer: torch.optim.Optimizer = Lars(groups, lr=cfg.learning_rate, momentum=cfg.sgd_momentum)
    # Loss scaling undoes a skipped step, which needs the momentum to exist before it.
    return with_zero_momentum(optimizer)


OPTIMIZERS: dict[OptimizerName, Callable[[Groups, OptimizerConfig], torch.optim.Optimizer]] = {
    OptimizerName.sgd: _sgd,
    OptimizerName.adam: _adam,
    OptimizerName.adamw: _adamw,
    OptimizerName.lars: _lars,
}


def build_optimizer(
    parameters: Iterable[nn.Parameter], cfg: OptimizerConfig
) -> torch.optim.Optimizer:
    """Build the optimizer over parameters on their device.

    One group with weight decay, as in the official code; with ``exclude_bias_and_norm`` two:
    kernels and matrices, then parameters with one dimension, which have no weight decay. The
    learning rate of the fused optimizers is a tensor (see `set_learning_rate`). Its steps clip
    gradients where `clip_gradient_norm` is set: unscaled ones, averaged over ranks.
    """
    cfg.check_available()
    excluding, every = cfg.exclude_bias_and_norm, list(parameters)
    if excluding is None:
        excluding = cfg.name is OptimizerName.lars
    groups = [{"params": every, "weight_decay": cfg.weight_decay}]
    if excluding:
        groups[0]["params"] = [p for p in every if p.ndim > 1]
        groups.append({"params": [p for p in every if p.ndim <= 1], "weight_decay": 0.0})
    optimizer = OPTIMIZERS[cfg.name](groups, cfg)
    if (limit := cfg.clip_gradient_norm) is not None:
        optimizer.register_step_pre_hook(lambda *_: _clip(every, limit))
    return optimizer


def _clip(parameters: list[nn.Parameter], limit: float) -> None:
    """Multiply all gradients by ``limit / norm`` where their norm is larger, in place."""
    nn.utils.clip_grad_norm_(parameters, limit)


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """Set the rate of the next step, in place; does not wait for the device."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):
            group["lr"].fill_(learning_rate)
        else:
            group["lr"] = learning_rate


def _is_on_cuda(groups: Groups) -> bool:
    return any(parameter.is_cuda for group in groups for parameter in group["params"])


def _rate_on_device(groups: Groups, learning_rate: float) -> Tensor:
    """Learning rate as a scalar tensor, which a captured CUDA graph reads in every replay.

    The fused kernels need float32 on CUDA. On the CPU they read its value: float64 keeps it exact.
    """
    if _is_on_cuda(groups):
        return torch.tensor(learning_rate, device=groups[0]["params"][0].device)
    return torch.tensor(learning_rate, dtype=torch.float64)


def with_zero_momentum(optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """Give every parameter a momentum of zero, in place, so that a first step can be skipped."""
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer
