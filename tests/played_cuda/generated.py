"""What Inductor makes of a run's step for a card that is not there, counted from its code.

The step is captured, partitioned and lowered as `torch.compile` does it; the code is written and
counted, and torch's own operations run in its place.
"""

import contextlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from functorch.compile import make_boxed_func
from torch import Tensor
from torch._inductor import config
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.graph import GraphLowering

from fastmoco.device import algorithms
from tests.played_cuda.step import build, operands_of, played_batch, without_numbers


@dataclass
class Counts:
    """Counts of one graph."""

    kernels: dict[str, int] = field(default_factory=dict)
    """Launches of Triton kernels by kind: pointwise, reduction, persistent reduction, foreach."""
    external: dict[str, int] = field(default_factory=dict)
    """Calls of libraries and custom operations by name."""
    convolutions: dict[str, int] = field(default_factory=dict)
    """Operands of convolutions by dtype and memory format."""
    other_devices: list[str] = field(default_factory=list)
    """Values that are not on the device."""
    code: str = ""

    @property
    def launches(self) -> int:
        """Launches of Triton kernels."""
        return sum(self.kernels.values())


class _WrittenError(BaseException):
    """Ends the lowering where the code is complete."""


def graphs(overrides: Sequence[str]) -> dict[str, Any]:
    """`generated` without Inductor's code, in half the time."""
    return generated(overrides, lower=False)


def generated(overrides: Sequence[str], *, lower: bool = True) -> dict[str, Any]:
    """Compile the step of a run.

    Args:
        overrides: Options of the run, after `step.SMALL`.
        lower: Whether Inductor writes code.

    Returns:
        ``graphs`` that Dynamo cut the step into, ``forward`` and ``backward``: lists of `Counts`.
    """
    found: dict[str, Any] = {"graphs": 0, "forward": [], "backward": []}

    def backend(graph: torch.fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        found["graphs"] += 1
        return compile_fx(graph, inputs, inner_compile=partial(_counted, found, lower))

    compiled = partial(torch.compile, backend=backend)
    _play_triton()
    with without_numbers(), mock.patch.object(torch, "compile", compiled):
        trainer = build([*overrides, "train.compile=always"])
        with algorithms(trainer.device, reproducible=trainer.cfg.train.reproducible):
            trainer.take(played_batch(trainer), trainer.learning_rate)
    return found


def _counted(
    found: dict[str, Any],
    lower: bool,
    graph: torch.fx.GraphModule,
    inputs: Sequence[Any],
    *,
    is_backward: bool = False,
    **settings: Any,
) -> Callable[..., Any]:
    """Lower a graph, count its code, and return the graph itself."""
    run = make_boxed_func(graph.forward)
    counts = Counts(convolutions=_operands(graph), other_devices=_other_devices(graph))
    if lower:
        _count(counts, _code(graph, inputs, is_backward=is_backward, **settings))
    found["backward" if is_backward else "forward"].append(asdict(counts))
    return run


def _code(graph: torch.fx.GraphModule, inputs: Sequence[Any], **settings: Any) -> str:
    """Inductor's Python code for a graph."""
    written: list[str] = []

    def save(code: Any) -> None:
        written.append(getattr(code, "value", code))
        raise _WrittenError

    with (
        mock.patch.object(GraphLowering, "save_output_code", staticmethod(save)),
        config.patch(fx_graph_cache=False, compile_threads=1),
        contextlib.suppress(_WrittenError),
    ):
        compile_fx_inner(graph, inputs, **settings)
    return written[0]


def _count(counts: Counts, code: str) -> None:
    """Launches in the function that calls the kernels."""
    counts.code = code
    calls = code[code.index("def call(") :]
    names = re.findall(r"(\w+)\.run\(", calls)
    kinds = [re.match(r"triton_(poi|red|per|for)", name) for name in names]
    counts.kernels = dict(Counter(kind[1] if kind else "other" for kind in kinds))
    external = re.findall(r"extern_kernels\.(\w+)\(|torch\.ops\.([\w.]+)\(", calls)
    counts.external = dict(Counter(one or other for one, other in external))


def _operands(graph: torch.fx.GraphModule) -> dict[str, int]:
    """Operands of the graph's convolutions, by dtype and memory format."""
    found: Counter[str] = Counter()
    for node in graph.graph.nodes:
        name = getattr(getattr(node.target, "overloadpacket", None), "__name__", "")
        values = [getattr(argument, "meta", {}).get("val") for argument in node.args[:3]]
        found.update(operands_of(name, values))
    return dict(found)


def _other_devices(graph: torch.fx.GraphModule) -> list[str]:
    """Values of a graph that are not on the current device."""
    here = torch.device("cuda", torch.cuda.current_device())
    values = [(node.name, node.meta.get("val")) for node in graph.graph.nodes]
    return [n for n, value in values if isinstance(value, Tensor) and value.device != here]


def _play_triton() -> None:
    """Replace Triton's driver, which would compile a library against the real one."""
    import triton
    from triton.backends.compiler import GPUTarget

    major, minor = torch.cuda.get_device_capability()
    properties = torch.cuda.get_device_properties()
    limits = {
        "max_shared_mem": properties.shared_memory_per_block_optin,
        "multiprocessor_count": properties.multi_processor_count,
    }
    driver = SimpleNamespace(
        get_current_target=lambda: GPUTarget("cuda", 10 * major + minor, 32),
        get_current_device=torch.cuda.current_device,
        get_current_stream=lambda _=0: 0,
        get_device_interface=lambda: torch.cuda,
        get_active_torch_device=lambda: torch.device("cuda", torch.cuda.current_device()),
        utils=SimpleNamespace(get_device_properties=lambda _: limits),
    )
    triton.runtime.driver.set_active(driver)
