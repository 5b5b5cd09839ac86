"""Where images come from: folders, manifests, tar shards, arrays, torchvision's sets, and code.

A source is a list of names and labels and a function that loads one of its samples by a key; the
function travels to worker processes, so it is a module's function or a `functools.partial` of one.
"""

from fastmoco.data.sources.opening import open_source
from fastmoco.data.sources.samples import (
    EXTENSIONS,
    MAX_FILE_BYTES,
    Loaded,
    SampleSet,
    SourceOptions,
)

__all__ = [
    "EXTENSIONS",
    "MAX_FILE_BYTES",
    "Loaded",
    "SampleSet",
    "SourceOptions",
    "open_source",
]
