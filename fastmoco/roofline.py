"""What a device's arithmetic would allow, were nothing else to do."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from fastmoco.device import synchronize
from fastmoco.moco.mechanism import ContrastiveModel, Views

RATE_SECONDS = 0.3  # how long the device's matrix products are timed


@dataclass(frozen=True, slots=True)
class Operation:
    """One convolution or matrix product.

    Attributes:
        flops: Multiplications and additions.
        num_bytes: Of its inputs and outputs, each once.
    """

    flops: int
    num_bytes: int


class OperationCounter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """A context that counts what is computed in it; all is computed as without it.

    Attributes:
        operations: Those of which torch knows the operations: convolutions and matrix products.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.operations: list[Operation] = []

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Compute an operation, and count it."""
        del types
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        formula = flop_registry.get(getattr(func, "_overloadpacket", None))
        if formula:
            found = [
                leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)
            ]
            num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in found)
            flops = formula(*args, **kwargs, out_val=result)
            self.operations.append(Operation(int(flops), num_bytes))
        return result


def count_step(
    model: ContrastiveModel, view_size: int, count: int, dtype: torch.dtype = torch.float32
) -> list[Operation]:
    """The operations of one training step on noise: query forward and backward, key forward.

    Args:
        model: On its device; as before afterwards.
        view_size: Side of the views, pixels.
        count: Images in the batch of noise, a multiple of batch norm's groups.
        dtype: Of autocast; float32 is none.
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
    """Operations of one training step for an image with its two views, as `count_step`."""
    return sum(one.flops for one in count_step(model, view_size, count)) / count


def matrix_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second of a large matrix product of random numbers."""
    size = 8192 if device.type == "cuda" else 1024
    left = torch.randn(size, size, device=device).to(dtype)
    right = torch.randn(size, size, device=device).to(dtype)
    torch.mm(left, right)
    synchronize(device)
    start, products = time.perf_counter(), 0
    while time.perf_counter() - start < RATE_SECONDS:
        torch.mm(left, right)
        synchronize(device)
        products += 1
    return 2 * size**3 * products / (time.perf_counter() - start)
