"""The step of a run on a played device, with tensors that have everything but numbers.

It is built as a run is: `check_config`, `with_precision`, `Trainer`. Every operation is looked at
(`Watch`). What needs numbers is left out: the check of the fused kernel, the norm of the weights.
"""

import contextlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fastmoco import kept_checks
from fastmoco.device import algorithms
from fastmoco.moco import loss_choice
from fastmoco.moco.build import build_model
from fastmoco.optim import optimizers
from fastmoco.optim.settings import OptimizerConfig
from fastmoco.pipelines.buffers import empty_batch
from fastmoco.pipelines.contract import Batch
from fastmoco.train import checks, compilation, trainer
from fastmoco.train.acceleration import WARM_UP_STEPS
from fastmoco.train.trainer import Trainer
from tests.steps import make_trainer

SMALL = [
    "data.train=none.beton",
    "device=cuda:1",
    "global_batch_size=16",
    "pipeline.view_size=32",
    "model.encoder=resnet18",
    "model.stem=small",
    "model.width=16",
    "moco.queue_size=4096",
    "train.compile=never",
]
HOST_READS = ("item", "_local_scalar_dense", "is_nonzero", "nonzero", "equal", "masked_select")
"""Operations that wait for the device."""
PLAYED = ("_fused_sgd_", "_fused_adam_", "_fused_adamw_", "_amp_update_scale_")
"""Kernels without a version for tensors without numbers: their arguments are looked at."""
MEMORY = ("queue.keys", "bank")
"""Buffers that hold negatives."""


class Watch(TorchDispatchMode):
    """Looks at each operation: devices, host reads, memory formats.

    Attributes:
        operations: Calls by name; views are left out.
        convolutions: Operands of the encoders' convolutions by dtype and memory format.
        faults: What must not be, in words.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.device = device
        self.operations: Counter[str] = Counter()
        self.convolutions: Counter[str] = Counter()
        self.faults: list[str] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        del types
        name = func.overloadpacket.__name__
        given = list(tree_leaves((args, kwargs)))
        if name in HOST_READS:
            self.faults.append(f"{name} reads the device")
        result = None
        if name in PLAYED:
            self.faults += strides_that_differ(name, args)
        else:
            result = func(*args, **(kwargs or {}))
        tensors = [t for t in [*given, *tree_leaves(result)] if isinstance(t, Tensor)]
        others = {str(t.device) for t in tensors if t.device != self.device}
        if others:
            self.faults.append(f"{name} has a tensor on {', '.join(sorted(others))}")
        if not func.is_view:
            self.operations[name] += 1
        self.convolutions.update(operands_of(name, args))
        return result


def operands_of(name: str, args: Sequence[Any]) -> list[str]:
    """Dtype and memory format of an encoder's convolution's operands; [] for another operation.

    A blur is left out: each of its kernels has one channel.
    """
    if name not in ("convolution", "convolution_backward"):
        return []
    tensors = args[: 3 if name == "convolution_backward" else 2]
    if tensors[-1].shape[1] == 1:
        return []
    return [f"{str(t.dtype).removeprefix('torch.')} {memory_format(t)}" for t in tensors]


def memory_format(tensor: Tensor) -> str:
    """``nhwc`` or ``nchw``; a kernel of one pixel is both."""
    return "nhwc" if tensor.is_contiguous(memory_format=torch.channels_last) else "nchw"


def strides_that_differ(name: str, args: Sequence[Any]) -> list[str]:
    """Parameters whose gradient or state lies otherwise, which a fused optimizer refuses."""
    if not name.startswith("_fused"):
        return []
    lists = [a for a in args if isinstance(a, (list, tuple)) and len(a) == len(args[0])]
    return [
        f"{name}: {tuple(first.shape)} has strides {first.stride()} and {other.stride()}"
        for first, *rest in zip(*lists, strict=True)
        for other in rest
        if other.shape == first.shape and other.stride() != first.stride()
    ]


def _with_numbers(function: Callable[..., Any], *args: Any) -> Any:
    with unset_fake_temporarily():
        return function(*args)


def _model_without_numbers(*args: Any, **settings: Any) -> nn.Module:
    """`build_model` with numbers, which are then taken away: a copy of a module needs them."""
    with unset_fake_temporarily():
        model = build_model(*args, **settings)
    return _applied(model, lambda t: torch.empty_strided(t.shape, t.stride(), dtype=t.dtype))


def _applied(model: nn.Module, function: Callable[[Tensor], Tensor], _: bool = True) -> nn.Module:
    """`Module._apply` by new tensors: torch would swap the old ones, which refuse it here."""
    new: dict[int, Tensor] = {}  # a tensor that is there twice stays one
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None and id(parameter) not in new:
                with torch.no_grad():
                    moved = function(parameter)
                new[id(parameter)] = nn.Parameter(moved, parameter.requires_grad)
            module._parameters[name] = new.get(id(parameter))
        for name, buffer in module._buffers.items():
            module._buffers[name] = None if buffer is None else function(buffer)
    return model


def _optimizer_without_numbers(
    parameters: Iterable[nn.Parameter], cfg: OptimizerConfig
) -> torch.optim.Optimizer:
    """`build_optimizer`, whose check of the learning rate needs its value."""
    on_device = optimizers._rate_on_device
    with mock.patch.object(optimizers, "_rate_on_device", lambda _, rate: rate):
        optimizer = optimizers.build_optimizer(parameters, cfg)
    for group in optimizer.param_groups:
        if group.get("fused"):
            group["lr"] = on_device(optimizer.param_groups, cfg.learning_rate)
    return optimizer


@contextlib.contextmanager
def without_numbers() -> Iterator[None]:
    """Tensors without numbers, and what would ask for one left out."""
    with (
        mock.patch.object(checks, "check_encoder", partial(_with_numbers, checks.check_encoder)),
        mock.patch.object(trainer, "build_model", _model_without_numbers),
        mock.patch.object(loss_choice, "fault_of_fused", return_value=""),
        mock.patch.object(trainer, "build_optimizer", _optimizer_without_numbers),
        mock.patch.object(nn.Module, "_apply", _applied),
        mock.patch.object(Trainer, "weights_norm", return_value=1.0),
        mock.patch.object(compilation, "compile_failure", return_value=""),
        mock.patch.object(kept_checks, "kept_folder", return_value=None),
        torch.autograd.set_multithreading_enabled(False),
        FakeTensorMode(),
    ):
        yield


def build(overrides: Sequence[str]) -> Trainer:
    """A trainer on a played device, as `train` builds it; within `without_numbers`."""
    return make_trainer([*SMALL, *overrides], num_samples=50_000)


def played_batch(trainer: Trainer) -> Batch:
    """A batch as a loader hands it out, on the device."""
    size = trainer.cfg.pipeline.view_size
    return empty_batch(trainer.cfg.global_batch_size, 2, size, device=trainer.device)


def run(overrides: Sequence[str], steps: int = 1, current: int | None = None) -> dict[str, Any]:
    """Do some steps of a run.

    Args:
        overrides: Options of the run, after `SMALL`.
        steps: Steps to do; a run with a CUDA graph captures it in the fourth.
        current: Make this device the current one after the run has chosen its own.

    Returns:
        Faults of all steps; what the last one called, and what the run chose.
    """
    faults = []
    with without_numbers():
        built = build(overrides)
        batch = played_batch(built)
        if current is not None:
            torch.cuda.set_device(current)
        with algorithms(built.device, reproducible=built.cfg.train.reproducible):
            for _ in range(steps):
                with Watch(built.device) as watch:
                    built.take(batch, built.learning_rate)
                faults += watch.faults
    return {
        "faults": sorted(set(faults)),
        "operations": dict(watch.operations),
        "convolutions": dict(watch.convolutions),
        "precision": built.cfg.precision.value,
        "loss": built.step.model.loss.value,
        "memory": [str(b.dtype) for n, b in built.step.model.named_buffers() if n in MEMORY],
        "captured": built.graphed is not None and steps > WARM_UP_STEPS,
    }
