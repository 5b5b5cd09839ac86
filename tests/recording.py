"""Stands in for a CUDA graph on a CPU: a tape of operations at fixed addresses."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Tape(TorchDispatchMode):
    """Writes down each operation with what it was given and what it gave."""

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        del types
        result = func(*args, **(kwargs or {}))
        if func.namespace != "profiler":
            self.operations.append((func, args, kwargs or {}, result))
        return result


class TapeRecording:
    """Does again what was recorded, as a CUDA graph would.

    Numbers of the host are those of the recording, tensors are read and written where they lay
    then, and no Python of the step runs.
    """

    def __init__(self, state: Callable[[], Iterable[Tensor]]) -> None:
        """Take what gives all tensors that outlive a step: recording must leave them alone."""
        self.state = state
        self.tape = Tape()
        self.warm_ups = self.replays = self.abandoned = 0

    def warm_up(self, work: Callable[[], Tensor]) -> Tensor:
        self.warm_ups += 1
        return work()

    def record(self, work: Callable[[], Tensor]) -> None:
        before = [(tensor, tensor.clone()) for tensor in self.state()]
        with self.tape:
            self.output = work()
        for tensor, value in before:
            tensor.copy_(value)

    def abandon(self) -> None:
        self.abandoned += 1

    @torch.no_grad()
    def replay(self) -> Tensor:
        self.replays += 1
        for func, args, kwargs, recorded in self.tape.operations:
            if func.is_view:
                continue  # lies where it lay
            result = func(*args, **kwargs)
            for place, value in zip(tree_leaves(recorded), tree_leaves(result), strict=True):
                if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
                    place.copy_(value)
        return self.output


class HostReads(TorchDispatchMode):
    """Lists the operations that make the host wait for the device."""

    FORBIDDEN = ("aten._local_scalar_dense", "aten.nonzero", "aten.equal", "aten.is_nonzero")

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        del types
        if str(func).startswith(self.FORBIDDEN):
            self.found.append(str(func))
        return func(*args, **(kwargs or {}))
