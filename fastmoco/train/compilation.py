"""Whether torch.compile works on a device."""

import warnings
from functools import cache

import torch

from fastmoco.errors import UsageError
from fastmoco.train.settings import Compile


@cache
def _compile_failure(device: torch.device) -> str | None:
    """Compile one addition: nothing else proves compiler, headers and cache folder together."""
    try:
        with warnings.catch_warnings():
            # torch warns of its own old parts while it loads the compiler (2.11 does).
            warnings.simplefilter("ignore")
            torch.compile(lambda x: x + 1)(torch.ones(8, device=device))
    except Exception as error:  # the toolchain fails in more ways than torch names
        return str(error).strip().splitlines()[0]
    return None


def resolve_compile(choice: Compile, device: torch.device) -> tuple[bool, str]:
    """Whether to compile, and a line that says so.

    Raises:
        UsageError: If it must and cannot.
    """
    if choice is Compile.never:
        return False, "eager (train.compile=never)"
    failure = _compile_failure(device)
    if failure is None:
        return True, "torch.compile"
    if choice is Compile.always:
        raise UsageError(f"torch.compile fails here: {failure}; set train.compile=auto or never")
    return (
        False,
        f"eager, torch.compile fails here ({failure}); a C++ compiler (g++) makes it faster",
    )
