"""The host's resize against PIL."""

import numpy as np
import pytest
from PIL import Image

from fastmoco.pipelines.beton_loader import NUMBA_SIZE, crop_and_resize
from fastmoco.pipelines.resize import crop_and_resize_views


def boxes_within(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    """Any boxes, also of one pixel and of the whole image."""
    sizes = rng.integers(1, [height + 1, width + 1], (count, 2))
    sizes[0], sizes[1] = (1, 1), (height, width)
    corners = rng.integers(0, [height, width] - sizes + 1)
    return np.concatenate([corners, sizes], axis=1).astype(np.int32)


def by_pil(image: np.ndarray, boxes: np.ndarray, size: int) -> np.ndarray:
    cuts = [image[top : top + h, left : left + w] for top, left, h, w in boxes]
    resized = [Image.fromarray(cut).resize((size, size), Image.Resampling.BILINEAR) for cut in cuts]
    return np.stack([np.asarray(one) for one in resized])


@pytest.mark.parametrize("size", [1, 5, 32, 64, 97])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (1, 77), (300, 211)])
def test_noise_is_resized_as_pil_does(size: int, height: int, width: int) -> None:
    rng = np.random.default_rng(height + size)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    boxes = boxes_within(rng, 20, height, width)
    out = np.empty((20, size, size, 3), np.uint8)
    crop_and_resize_views(image, boxes, out)
    expected = by_pil(image, boxes, size)
    assert np.abs(out.astype(int) - expected.astype(int)).max() <= 1
    along_rows_first = boxes[:, 2] <= boxes[:, 3]  # of tall boxes PIL 13 turns the order around
    assert along_rows_first.any()
    assert np.array_equal(out[along_rows_first], expected[along_rows_first])


@pytest.mark.parametrize("size", [NUMBA_SIZE, NUMBA_SIZE + 1, 224])
def test_either_way_is_within_a_level_of_pil(size: int) -> None:
    rng = np.random.default_rng(size)
    image = rng.integers(0, 256, (250, 230, 3), dtype=np.uint8)
    boxes = boxes_within(rng, 12, 250, 230)
    boxes = np.concatenate([boxes, [[3, 4, size - 60, size - 60]], [[3, 4, min(size, 224), size]]])
    boxes = boxes[(boxes[:, 0] + boxes[:, 2] <= 250) & (boxes[:, 1] + boxes[:, 3] <= 230)]
    out = np.empty((len(boxes), size, size, 3), np.uint8)
    crop_and_resize(image, boxes.astype(np.int32), out)
    difference = np.abs(out.astype(int) - by_pil(image, boxes, size).astype(int))
    assert difference.max() <= 1
