"""Sources of images: folders, manifests, tar shards, arrays, torchvision's datasets, and code.

A source is a list of names and labels, and a function that loads a sample by its key. The function
travels to worker processes, so it is a module's function or a `functools.partial` of one.
"""

from fastmoco.data.sources.opening import open_source
from fastmoco.data.sources.samples import Loaded, SampleSet, SourceOptions

__all__ = ["Loaded", "SampleSet", "SourceOptions", "open_source"]
