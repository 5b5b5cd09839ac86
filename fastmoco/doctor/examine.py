"""`examine`: all checks, one after the other; one that fails never stops the others."""

from collections.abc import Callable, Iterator
from functools import cache

from fastmoco.doctor import system_checks
from fastmoco.doctor.child import in_child
from fastmoco.doctor.finding import NO_GPU, Finding, Findings, State
from fastmoco.errors import first_line
from fastmoco.waiting import waiting

LIMIT_SECONDS = 300.0
"""Longest time of a check; on two busy cores the longest took 60 s."""

Check = Callable[[], Finding]


def examine() -> Findings:
    """All checks, which are done one by one as their results are asked for."""
    of_torch = cache(lambda: in_child(TORCH_PARTS, State.broken, seconds=LIMIT_SECONDS))
    checks = do_checks(
        {
            "Python": system_checks.python,
            "torch": lambda: of_torch()[0],
            "driver": lambda: of_torch()[1],
            "GPU": lambda: of_torch()[2],
            "C++ compiler": system_checks.compiler,
            "torch.compile": _child("compilation"),
            **{part: _child(check) for part, check in GPU_PARTS.items()},
            "libjpeg-turbo": system_checks.libjpeg_turbo,
            "FFCV": _optional("ffcv", "ffcv", "ffcv"),
            "DALI": _optional("nvidia.dali", "dali", "nvidia-dali-cuda130"),
            "other packages": system_checks.other_packages,
            "disk": system_checks.disk,
            "shared memory": system_checks.shared_memory,
            "open files": system_checks.file_limit,
            "caches": system_checks.caches,
        }
    )
    return Findings(checks)


TORCH_PARTS = ("torch_itself", "driver", "card")
"""Checks of `device_checks` that only ask torch."""
GPU_PARTS = {
    "Triton": "triton",
    "fused loss": "fused_loss",
    "CUDA graph": "cuda_graph",
    "copy to GPU": "copy_rate",
    "NCCL": "nccl",
}
"""Parts that only a GPU has, and their checks, which are left out where torch sees none."""


def do_checks(checks: dict[str, Check]) -> Iterator[tuple[str, Finding]]:
    """Do checks in their order; each is done when it is asked for.

    Args:
        checks: Functions by the name of the part.
    """
    has_gpu = True
    for part, check in checks.items():
        found = NO_GPU if part in GPU_PARTS and not has_gpu else _finding(part, check)
        has_gpu &= part != "GPU" or found != NO_GPU
        yield part, found


def _finding(part: str, check: Check) -> Finding:
    try:
        with waiting(f"checking {part}"):
            return check()
    except Exception as error:  # a check that fails is a finding, too
        return Finding(State.without, f"the check failed ({first_line(error)})")


def _child(check: str) -> Check:
    return lambda: in_child((check,), State.without, seconds=LIMIT_SECONDS)[0]


def _optional(module: str, check: str, package: str) -> Check:
    """A check in a child, if the module of a package is installed."""

    def find() -> Finding:
        if system_checks.installed(module):
            return _child(check)()
        return Finding(State.without, "not installed, and not needed", f"pip install {package}")

    return find
