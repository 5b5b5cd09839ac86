"""Asks for what only some machines have: skips without it, or fails where all is required."""

import importlib
import os
import subprocess
import sys
import warnings
from functools import cache

import pytest

from tests.limits import HANG_SECONDS


def require(module_name: str) -> None:
    """Make sure that a module can be imported; FFCV in a process of its own.

    Importing FFCV sets torch's thread count to 1, and with it the order of float sums: it must not
    happen in the process of the tests. Without the module the test, or the whole file when called
    at its top, is skipped with the reason; with ``FASTMOCO_REQUIRE_ALL=1`` it fails instead.
    """
    cause = _failure(module_name)
    if not cause:
        return
    reason = f"{module_name} cannot be imported ({cause}); `make help` says what it needs"
    if os.environ.get("FASTMOCO_REQUIRE_ALL") == "1":
        raise RuntimeError(f"FASTMOCO_REQUIRE_ALL=1, but {reason}")
    pytest.skip(reason, allow_module_level=True)


@cache
def _failure(module_name: str) -> str:
    """Why it cannot be imported; "" if it can."""
    if module_name != "ffcv":
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                importlib.import_module(module_name)
        except ImportError as error:
            return str(error)
        return ""
    command = [sys.executable, "-c", f"import {module_name}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=HANG_SECONDS)
    if done.returncode == 0:
        return ""
    return (done.stderr.strip().splitlines() or ["no message"])[-1]
