"""Imports what only some machines have: skips the test without it, or fails where it must run."""

import importlib
import os
from types import ModuleType

import pytest


def require(module_name: str) -> ModuleType:
    """The imported module.

    Without it the test, or the whole module when called at its top, is skipped with the reason;
    with ``FASTMOCO_REQUIRE_ALL=1`` in the environment it fails instead.
    """
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        reason = f"{module_name} cannot be imported ({error}); `make help` says what it needs"
        if os.environ.get("FASTMOCO_REQUIRE_ALL") == "1":
            raise RuntimeError(f"FASTMOCO_REQUIRE_ALL=1, but {reason}") from error
        pytest.skip(reason, allow_module_level=True)
