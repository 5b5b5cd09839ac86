"""Momentum Contrast (MoCo) pretraining of image encoders, as fast as one machine's GPU allows."""

import importlib
from typing import TYPE_CHECKING, Any

from fastmoco.errors import Interrupted, UsageError
from fastmoco.version import __version__

if TYPE_CHECKING:
    from fastmoco.evaluate.frozen_encoder import load_encoder
    from fastmoco.library import pretrain, views
    from fastmoco.moco.loss import info_nce
    from fastmoco.pipelines.build import build_loader

__all__ = [
    "Interrupted",
    "UsageError",
    "__version__",
    "build_loader",
    "info_nce",
    "load_encoder",
    "pretrain",
    "views",
]

# Imported on first use: torch takes seconds, and `fastmoco --help` does not need it.
_LAZY = {
    "build_loader": ("fastmoco.pipelines.build", "build_loader"),
    "info_nce": ("fastmoco.moco.loss", "info_nce"),
    "load_encoder": ("fastmoco.evaluate.frozen_encoder", "load_encoder"),
    "pretrain": ("fastmoco.library", "pretrain"),
    "views": ("fastmoco.library", "views"),
}


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module fastmoco has no attribute {name}")
    module, attribute = _LAZY[name]
    return getattr(importlib.import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})  # so that a notebook completes the names
