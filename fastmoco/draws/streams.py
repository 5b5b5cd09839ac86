"""Purposes of random draws, and constants of the hash; imports neither torch nor Numba."""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

INT64 = npt.NDArray[np.int64]

GOLDEN = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB


class Draw(IntEnum):
    """Purpose of a draw. Values are part of the random stream: append, never renumber."""

    ORDER = 0
    CROP_AREA = 1
    CROP_RATIO = 2
    CROP_TOP = 3
    CROP_LEFT = 4
    FLIP = 5
    JITTER_APPLY = 6
    BRIGHTNESS = 7
    CONTRAST = 8
    SATURATION = 9
    HUE = 10
    JITTER_ORDER = 11
    GRAYSCALE = 12
    BLUR_APPLY = 13
    BLUR_SIGMA = 14
    SHUFFLE = 15
    POOL = 16
    NEGATIVES = 17
    SOLARIZE_APPLY = 18
    SHARD_ORDER = 19


class Stream(IntEnum):
    """Purposes that belong to no epoch; in a draw's key, the value replaces the epoch.

    The values are far from any epoch, so that no stream repeats training's draws. They are part of
    the random stream: append, never renumber.
    """

    LABELED_PART = 2**30
    """Choice of the images whose labels a classifier learns from."""
    HELD_OUT = 2**30 + 1
    """Choice of the images that select among settings."""
    WRONG_LABEL = 2**30 + 2
    """Whether a label is replaced by a wrong one."""
    WRONG_CLASS = 2**30 + 3
    """Class that replaces the right one."""
    SCORE_NEGATIVES = 2**30 + 16
    """Images whose keys a request's candidates are compared with."""
    RANDOM_REQUEST = 2**30 + 32
    """Order of a random request."""
    SAMPLE = 2**30 + 64
    """First random sample of a request by runs; sample n adds n. Keep last."""


def mixed(values: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Hash each value one-to-one; unlike `draws.host`, without Numba."""
    keys = values * np.uint64(GOLDEN)
    return (keys ^ (keys >> np.uint64(31))) * np.uint64(MIX_1)


def hashed_order(count: int) -> INT64:
    """Fixed pseudo-random order of ``0..count - 1``, unrelated to class or folder, ``(count,)``."""
    return np.argsort(mixed(np.arange(1, count + 1, dtype=np.uint64)), kind="stable")
