"""`torch.compile` where it works: tried before the run, and given up in its first step.

All ranks of a run are eager, or all are compiled: a compiled step orders its collectives, and adds
in another order. So each rank tells the others how its compiler did, before anything runs.
Left out: failures while a compiled kernel runs on several ranks. The others are then within a
collective and cannot turn back, so the run ends.
"""

import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch._dynamo.backends.registry import lookup_backend
from torch._dynamo.exc import RestartAnalysis, TorchDynamoException
from torch._functorch import config as autograd_config
from torch._inductor.runtime.cache_dir_utils import cache_dir

from fastmoco.caches import remove_half_written
from fastmoco.errors import UsageError, first_line
from fastmoco.kept_checks import COMPILE, checked
from fastmoco.moco.collectives import naming_a_lost_rank
from fastmoco.out_of_memory import shortage
from fastmoco.ranks import ALONE, Ranks
from fastmoco.runs.distributed import of_all, own_store
from fastmoco.train.settings import Compile

SLOWEST = timedelta(minutes=30)
"""How long a rank waits for another one's compiler."""
_GRAPHS = count()
"""Number of the next graph that ranks agree on; they compile in the same order."""


@cache
def compile_failure(device: torch.device) -> str:
    """Compile one addition: only this checks compiler, headers and cache folder together."""
    try:
        with warnings.catch_warnings():
            # torch warns of its own deprecated parts while it loads the compiler (2.11 does).
            warnings.simplefilter("ignore")
            torch.compile(lambda x: x + 1)(torch.ones(8, device=device))
    except Exception as error:  # the toolchain fails in more ways than torch names
        return reason_of(error)
    return ""


def reason_of(error: BaseException) -> str:
    """First line of what a compiler or a driver says, without torch's words before it."""
    told = str(error).partition(" raised:\n")[2].strip()
    return told.splitlines()[0] if told else first_line(error)


def resolve_compile(
    choice: Compile, device: torch.device, ranks: Ranks = ALONE
) -> tuple[bool, str]:
    """Decide whether the step is compiled, with words for the run's header; the same on all ranks.

    Raises:
        UsageError: If train.compile=always cannot be fulfilled.
    """
    if choice is Compile.never:
        return False, "eager (train.compile=never)"
    remove_half_written(Path(cache_dir()))
    failures = of_all(checked(COMPILE, device, lambda: compile_failure(device)), ranks)
    failure = _first(failures)
    if not failure:
        return True, "torch.compile"
    if choice is Compile.always:
        raise UsageError(f"torch.compile fails {failure}; set train.compile=auto or never")
    where, _, reason = failure.partition(": ")
    hint = "a C++ compiler (g++) makes it faster"
    return False, f"eager, torch.compile fails {where} ({reason}); {hint}"


def _first(failures: list[str]) -> str:
    """The first rank that failed and its reason; "" if none did."""
    for rank, failure in enumerate(failures):
        if failure:
            return f"{f'on rank {rank}' if len(failures) > 1 else 'here'}: {failure}"
    return ""


class Compiler:
    """`torch.compile` for the functions of one step, which all ranks compile in the same order.

    On several ranks a failure of one is raised on all, before any of them has computed or sent
    anything: forward and backward pass are compiled together (torch would leave the backward pass
    for later).

    Attributes:
        settled: Whether the first step is done: what is compiled later is this rank's own matter.
    """

    def __init__(self, ranks: Ranks = ALONE) -> None:
        """Set the ranks that agree."""
        self._ranks, self._failure, self.settled = ranks, "", False

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Compile a function at its first call."""
        agreed: dict[str, Any] = {"backend": self._backend} if self._ranks.several else {}
        compiled: Callable[..., Any] = torch.compile(function, dynamic=False, **agreed)
        return compiled

    def explain(self, error: Exception) -> str:
        """The reason why the eager step may do better after an error; "" if it may not.

        An error that is not the compiler's is raised by the eager step again.
        """
        if self.settled:
            return ""
        if self._ranks.several:
            if isinstance(error, TorchDynamoException) and not self._failure:
                # Before its backend: the others wait there, at the graph of the same number.
                self._failure = _first(self._exchanged(reason_of(error)))
            return self._failure
        if shortage(error) is not None or isinstance(error, ConnectionError):
            return ""
        return f"here: {reason_of(error)}"

    def _backend(self, graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> Any:
        if self.settled:
            return lookup_backend("inductor")(graph, inputs)
        failure, compiled = "", None
        try:
            with autograd_config.patch(force_non_lazy_backward_lowering=True):
                compiled = lookup_backend("inductor")(graph, inputs)
        except RestartAnalysis:  # torch traces the function again, on all ranks alike
            raise
        except Exception as error:
            failure = reason_of(error)
        self._failure = _first(self._exchanged(failure))
        if self._failure:
            raise RuntimeError(f"torch.compile fails {self._failure}")
        return compiled

    def _exchanged(self, failure: str) -> list[str]:
        """The failure of each rank at this graph; by the store, since no collective may run now."""
        store = own_store(f"compile/{next(_GRAPHS)}", SLOWEST)
        with naming_a_lost_rank():
            store.set(str(self._ranks.rank), failure or "-")
            found = [store.get(str(rank)).decode() for rank in range(self._ranks.world_size)]
        return ["" if one == "-" else one for one in found]
