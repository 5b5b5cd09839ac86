"""Loads all samples of a source as a worker process would."""

import io
import pickle

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fastmoco.data.sources import SampleSet, SourceOptions, open_source


def opened(source: object, **options: str) -> SampleSet:
    """Opens a source with the options that are given."""
    samples = open_source(str(source), SourceOptions(**options))
    count = len(samples.names)
    assert len(set(samples.names)) == len(samples.keys) == len(samples.labels) == count
    assert samples.labels.dtype == samples.stamps.dtype == np.int64
    assert samples.stamps.ndim == samples.stamps.shape[1] == 2
    assert samples.labels.max() < max(1, len(samples.classes))
    return samples


def pixels_of(samples: SampleSet) -> list[NDArray[np.uint8]]:
    """All images, loaded by what pickle makes of the function and of the keys."""
    load, keys = pickle.loads(pickle.dumps((samples.load, list(samples.keys[:]))))
    return [_decoded(load(key)) for key in keys]


def labels_by_name(samples: SampleSet) -> dict[str, str | None]:
    """Class name of each sample, None where it is unlabeled, in the samples' order."""
    names = [*samples.classes, None]
    return {name: names[label] for name, label in zip(samples.names, samples.labels, strict=True)}


def _decoded(loaded: bytes | NDArray[np.uint8]) -> NDArray[np.uint8]:
    if isinstance(loaded, bytes):
        return np.asarray(Image.open(io.BytesIO(loaded)).convert("RGB"))
    assert loaded.dtype == np.uint8
    assert loaded.shape[2] == 3
    assert loaded.flags.c_contiguous
    return loaded
