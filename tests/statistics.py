"""Tests of distributions."""

import numpy as np
import numpy.typing as npt


def assert_same_distribution(
    a: npt.NDArray[np.floating], b: npt.NDArray[np.floating], name: str = ""
) -> None:
    """Two-sample Kolmogorov-Smirnov test at the level 1e-4; ties make it stricter about nothing."""
    a, b = np.sort(a), np.sort(b)
    both = np.concatenate([a, b])
    shares = (np.searchsorted(x, both, side="right") / len(x) for x in (a, b))
    distance = np.abs(np.subtract(*shares)).max()
    bound = np.sqrt(-np.log(1e-4 / 2) / 2 * (1 / len(a) + 1 / len(b)))
    assert distance < bound, f"{name}: KS distance {distance:.4f}, allowed {bound:.4f}"
