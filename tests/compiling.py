"""Skips what needs torch.compile where it does not work."""

import pytest
import torch

from fastmoco.train.compilation import resolve_compile
from fastmoco.train.settings import Compile


def require_compiler() -> None:
    """Skips the test, with the reason, where torch.compile fails on the CPU."""
    works, why = resolve_compile(Compile.auto, torch.device("cpu"))
    if not works:
        pytest.skip(why)
