"""Upper bound of training speed: counted operations against the device's measured rate."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fastmoco.device import rounds_to_tf32, synchronize
from fastmoco.moco.mechanism import ContrastiveModel, Views

RATE_SECONDS = 0.3  # duration of the measurement of matrix products


@dataclass(frozen=True, slots=True)
class Operation:
    """One convolution or matrix product.

    Attributes:
        flops: Multiplications and additions.
        num_bytes: Size of its inputs and outputs.
    """

    flops: int
    num_bytes: int


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Context that counts the convolutions and matrix products computed in it.

    Attributes:
        operations: Those counted so far.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        _: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute an operation and count it."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(getattr(func, "_overloadpacket", None))
        if formula:
            leaves = tree_leaves((args, kwargs, result))
            num_bytes = sum(leaf.nbytes for leaf in leaves if isinstance(leaf, Tensor))
            flops = formula(*args, **kwargs, out_val=result)
            self.operations.append(Operation(int(flops), num_bytes))
        return result


def count_step(
    model: ContrastiveModel, view_size: int, count: int, dtype: torch.dtype = torch.float32
) -> list[Operation]:
    """Count the operations of a training step on noise: query forward and backward, key forward.

    Args:
        model: Model on its device; its state is restored afterwards.
        view_size: Side of the views in pixels.
        count: Images in the batch, a multiple of the number of batch norm groups.
        dtype: Autocast dtype; float32 disables autocast.
    """
    device = next(model.query_encoder.parameters()).device
    views = torch.randn(2, count, 3, view_size, view_size, device=device)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    autocast = torch.autocast(device.type, dtype, enabled=dtype is not torch.float32)
    counter = OperationCounter()
    with counter:
        ids = torch.arange(count, device=device)
        with autocast:
            loss = model(Views(views[0], views[1], ids, ids, ids)).loss
        loss.backward()
    model.zero_grad(set_to_none=True)
    model.load_state_dict(state)
    return counter.operations


def step_flops_per_image(model: ContrastiveModel, view_size: int, count: int) -> float:
    """Floating-point operations of a training step per image, counted by `count_step`."""
    return sum(one.flops for one in count_step(model, view_size, count)) / count


def matrix_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Measured floating-point operations per second of a large matrix product.

    On a GPU products of float32 run in TF32 if its convolutions do, so that the rate is one that
    training can reach.
    """
    size = 8192 if device.type == "cuda" else 1024
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    with _rounded_as_convolutions():
        torch.mm(left, right)
        synchronize(device)
        start, products = time.perf_counter(), 0
        while time.perf_counter() - start < RATE_SECONDS:
            torch.mm(left, right)
            synchronize(device)
            products += 1
        return 2 * size**3 * products / (time.perf_counter() - start)


@contextmanager
def _rounded_as_convolutions() -> Iterator[None]:
    """Within the block, a GPU rounds products of float32 as cuDNN rounds its convolutions."""
    products: Any = torch.backends.cuda.matmul
    before = products.fp32_precision
    if rounds_to_tf32():
        products.fp32_precision = "tf32"
    try:
        yield
    finally:
        products.fp32_precision = before
