"""The images that are made by code, ``builtin:textures``."""

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.sources.samples import SampleSet, SourceOptions
from fastmoco.errors import UsageError


def open_builtin(name: str, options: SourceOptions) -> SampleSet:
    """The textures.

    Raises:
        UsageError: If there is no such set or split.
    """
    from fastmoco.data import textures

    if name != "textures":
        raise UsageError(f"builtin:{name} is unknown; there is builtin:textures")
    split = options.split or "train"
    if split not in textures.SPLIT_SIZES:
        known = ", ".join(textures.SPLIT_SIZES)
        raise UsageError(f"builtin:textures has no split={split}; it has {known}")
    count = textures.SPLIT_SIZES[split]
    return SampleSet(
        names=[f"{split}/{index:05d}" for index in range(count)],
        labels=np.array([textures.label_of(split, index) for index in range(count)], np.int64),
        classes=list(textures.CLASS_NAMES),
        load=_render_texture,
    )


def _render_texture(name: str) -> NDArray[np.uint8]:
    """A texture by its name, ``train/00017``."""
    from fastmoco.data import textures

    split, _, index = name.partition("/")
    return textures.render(split, int(index))
