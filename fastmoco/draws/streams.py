"""What draws are for, and the constants of the hash; imports neither torch nor Numba."""

from enum import IntEnum

import numpy as np
import numpy.typing as npt

INT64 = npt.NDArray[np.int64]

GOLDEN = 0x9E3779B97F4A7C15
MIX_1 = 0xBF58476D1CE4E5B9
MIX_2 = 0x94D049BB133111EB


class Draw(IntEnum):
    """What a draw is for. Values are part of the random stream: append, never renumber."""

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


class Stream(IntEnum):
    """Draws that belong to no epoch: the value stands in the place of the epoch in a draw's key.

    Far from any epoch, so that no stream repeats what training draws. Values are part of the random
    stream: append, never renumber.
    """

    LABELED_PART = 2**30
    """The images whose labels a classifier learns from."""
    HELD_OUT = 2**30 + 1
    """The images that choose among settings."""
    WRONG_LABEL = 2**30 + 2
    """Whether a label is replaced by a wrong one."""
    WRONG_CLASS = 2**30 + 3
    """By which class."""
    SCORE_NEGATIVES = 2**30 + 16
    """The images whose keys a request's candidates are compared with."""
    RANDOM_REQUEST = 2**30 + 32
    """The order of a random request."""
    SAMPLE = 2**30 + 64
    """The first random sample of a request by runs; sample n adds n. Keep last."""


def hashed_order(count: int) -> INT64:
    """A fixed order of ``0..count - 1`` that follows no class and no folder, ``(count,)``."""
    keys = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    keys = (keys ^ (keys >> np.uint64(31))) * np.uint64(0xBF58476D1CE4E5B9)
    return np.argsort(keys, kind="stable")
