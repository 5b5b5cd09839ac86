"""Draws against a twin in plain Python integers, torchvision's crops, and the plan of an epoch."""

import math

import numpy as np
import pytest
import torch
from numpy.testing import assert_array_equal
from torchvision.transforms import RandomResizedCrop

from fastmoco.draws.device import permutation, uniform
from fastmoco.draws.host import (
    CROP_ATTEMPTS,
    draw_keys,
    epoch_order,
    random_resized_crop_boxes,
    shuffled_order,
)
from fastmoco.draws.streams import Draw
from fastmoco.pipelines.contract import EpochPlan
from tests.compiling import require_compiler
from tests.statistics import assert_same_distribution

DRAWS = 100_000
SCALE, RATIO = (0.2, 1.0), (3 / 4, 4 / 3)
IDS = np.array([0, 1, 2, 3, 1000, 2**31, 2**40 + 7], np.int64)


def absorb_twin(state: int, word: int) -> int:
    mask = 2**64 - 1
    z = state + 0x9E3779B97F4A7C15 * (word + 1) & mask
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
    z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
    return z ^ z >> 31


def key_twin(seed: int, epoch: int, sample_id: int) -> int:
    return absorb_twin(absorb_twin(absorb_twin(0, seed), epoch), sample_id)


def uniform_twin(key: int, what: Draw, view: int, attempt: int = 0) -> float:
    return (absorb_twin(key, what << 32 | view << 16 | attempt) >> 40) * 2.0**-24


def box_twin(key: int, view: int, height: int, width: int) -> tuple[int, int, int, int]:
    """RandomResizedCrop with our uniforms, or its central crop."""
    for attempt in range(CROP_ATTEMPTS):
        area, ratio, top, left = (
            uniform_twin(key, what, view, attempt)
            for what in (Draw.CROP_AREA, Draw.CROP_RATIO, Draw.CROP_TOP, Draw.CROP_LEFT)
        )
        area = height * width * (SCALE[0] + (SCALE[1] - SCALE[0]) * area)
        low, high = math.log(RATIO[0]), math.log(RATIO[1])
        ratio = math.exp(low + (high - low) * ratio)
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    w = min(width, round(height * RATIO[1]))
    h = min(height, round(width / RATIO[0]))
    return (height - h) // 2, (width - w) // 2, h, w


# ---------------------------------------------------------------- the hash


@pytest.mark.parametrize(("seed", "epoch"), [(0, 0), (1, 0), (0, 1), (2**62, 10**6)])
def test_keys_equal_plain_integers(seed: int, epoch: int):
    expected = [key_twin(seed, epoch, int(sample_id)) for sample_id in IDS]
    assert_array_equal(draw_keys(seed, epoch, IDS).view(np.uint64), np.array(expected, np.uint64))


def test_the_hash_is_splitmix64():
    """First output of the published generator, seeded with 0 (Vigna's splitmix64.c)."""
    assert absorb_twin(0, 0) == 0xE220A8397B1DCDAF


@pytest.mark.parametrize("what", [Draw.ORDER, Draw.FLIP, Draw.SHUFFLE])
@pytest.mark.parametrize("view", [0, 1])
def test_device_uniforms_equal_plain_integers(what: Draw, view: int):
    keys = draw_keys(3, 1, np.arange(500, dtype=np.int64))
    expected = [uniform_twin(int(key), what, view) for key in keys.view(np.uint64)]
    assert uniform(torch.from_numpy(keys), what, view).tolist() == expected


def test_compiled_uniforms_equal_eager_ones():
    require_compiler()
    keys = torch.from_numpy(draw_keys(3, 1, np.arange(500, dtype=np.int64)))
    compiled = torch.compile(uniform, fullgraph=True)
    assert torch.equal(compiled(keys, Draw.HUE, 1), uniform(keys, Draw.HUE, 1))


def test_uniforms_are_uniform_and_independent():
    keys = torch.from_numpy(draw_keys(0, 0, np.arange(40_000, dtype=np.int64)))
    draws = torch.stack([uniform(keys, what, view) for what in Draw for view in (0, 1)]).double()
    assert draws.min() >= 0
    assert draws.max() < 1
    for row in draws:
        assert_same_distribution(row.numpy(), (np.arange(40_000) + 0.5) / 40_000)
    correlation = torch.corrcoef(draws) - torch.eye(len(draws))
    assert correlation.abs().max() < 5 / math.sqrt(40_000)


# ---------------------------------------------------------------- order


def test_order_is_a_permutation_and_another_in_each_epoch_and_seed():
    orders = [epoch_order(seed, epoch, 1000) for seed, epoch in [(0, 0), (0, 1), (1, 0)]]
    for order in orders:
        assert_array_equal(np.sort(order), np.arange(1000))
    assert_array_equal(orders[0], epoch_order(0, 0, 1000))
    for a, b in [(0, 1), (0, 2), (1, 2)]:
        assert (orders[a] == orders[b]).mean() < 0.01  # a random pair: 1 in 1000
    assert abs(np.corrcoef(orders[0], np.arange(1000))[0, 1]) < 0.15


def test_order_sorts_by_the_hash():
    hashes = [absorb_twin(key_twin(5, 2, sample_id), Draw.ORDER << 32) for sample_id in range(100)]
    assert epoch_order(5, 2, 100).tolist() == sorted(range(100), key=hashes.__getitem__)


def test_batch_permutation_is_one_and_depends_on_the_keys():
    keys = torch.from_numpy(draw_keys(0, 0, np.arange(64, dtype=np.int64)))
    assert torch.equal(permutation(keys).sort().values, torch.arange(64))
    assert not torch.equal(permutation(keys), permutation(keys + 1))


def test_hosts_know_the_permutation_of_the_device():
    """Also of keys with equal draws: both sorts are stable."""
    keys = draw_keys(3, 1, np.arange(500, dtype=np.int64))
    keys = np.concatenate([keys, keys])
    assert_array_equal(shuffled_order(keys), permutation(torch.from_numpy(keys)))


# ---------------------------------------------------------------- crop boxes


def crop_boxes(height: int, width: int, num_samples: int, num_views: int = 2) -> np.ndarray:
    keys = draw_keys(7, 3, np.arange(num_samples, dtype=np.int64))
    sizes = np.full(num_samples, height), np.full(num_samples, width)
    return random_resized_crop_boxes(keys, *sizes, scale=SCALE, ratio=RATIO, num_views=num_views)


@pytest.mark.parametrize(("height", "width"), [(375, 500), (20, 300), (300, 20), (1, 1), (3, 2)])
def test_boxes_equal_plain_python_and_lie_inside(height: int, width: int):
    boxes = crop_boxes(height, width, 200)
    keys = draw_keys(7, 3, np.arange(200, dtype=np.int64)).view(np.uint64)
    expected = [[box_twin(int(key), view, height, width) for view in (0, 1)] for key in keys]
    assert_array_equal(boxes, expected)
    top, left, h, w = boxes.reshape(-1, 4).T
    assert min(top.min(), left.min()) >= 0
    assert min(h.min(), w.min()) >= 1
    assert max((top + h).max() - height, (left + w).max() - width) <= 0


@pytest.mark.parametrize(("height", "width"), [(240, 320), (40, 200)])
@pytest.mark.full
def test_boxes_are_distributed_as_torchvisions(height: int, width: int):
    """The second shape: most attempts fail, so central crops are common."""
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, SCALE, RATIO) for _ in range(DRAWS)])
    ours = crop_boxes(height, width, DRAWS // 2).reshape(-1, 4)
    for name, measure in {
        "area share": lambda box: box[:, 2] * box[:, 3] / (height * width),
        "ratio": lambda box: box[:, 3] / box[:, 2],
        "top share": lambda box: box[:, 0] / np.maximum(1, height - box[:, 2]),
        "left share": lambda box: box[:, 1] / np.maximum(1, width - box[:, 3]),
    }.items():
        assert_same_distribution(measure(ours), measure(theirs), name)


def test_two_views_are_drawn_apart():
    boxes = crop_boxes(240, 320, 2000).astype(float)
    for column in range(4):
        assert abs(np.corrcoef(boxes[:, 0, column], boxes[:, 1, column])[0, 1]) < 0.1


# ---------------------------------------------------------------- the plan


def plan(**values) -> EpochPlan:
    settings = {"seed": 1, "epoch": 0, "num_samples": 50, "global_batch_size": 12}
    return EpochPlan(**settings | values)


@pytest.mark.parametrize("training", [True, False])
def test_ranks_together_see_what_one_rank_sees(training: bool):
    alone = list(plan(training=training).batches())
    ranks = [list(plan(training=training, rank=rank, world_size=3).batches()) for rank in range(3)]
    assert len(alone) == plan(training=training).num_batches == (4 if training else 5)
    for batch, *parts in zip(alone, *ranks, strict=True):
        assert_array_equal(np.concatenate(parts), batch)
    assert [len(rank[0]) for rank in ranks] == [4, 4, 4]
    for rank, parts in enumerate(ranks):
        sizes = plan(training=training, rank=rank, world_size=3).batch_sizes()
        assert [*sizes] == [len(part) for part in parts]


def test_a_plan_of_some_samples_visits_those():
    ids = 3 * np.arange(50) + 1
    assert_array_equal(plan(sample_ids=ids).order(), ids[plan().order()])


def test_training_drops_the_partial_batch_and_evaluation_keeps_it():
    training = list(plan().batches())
    assert [len(batch) for batch in training] == [12] * 4
    assert len(np.unique(np.concatenate(training))) == 48
    evaluation = list(plan(training=False).batches())
    assert [len(batch) for batch in evaluation] == [12] * 4 + [2]
    assert_array_equal(np.concatenate(evaluation), np.arange(50))
    assert plan(training=False, num_samples=7, world_size=3).max_count == 3


def test_start_batch_skips_a_prefix():
    whole = list(plan().batches())
    for start in range(5):
        rest = list(plan(start_batch=start).batches())
        assert len(rest) == 4 - start
        for batch, expected in zip(rest, whole[start:], strict=True):
            assert_array_equal(batch, expected)


def test_the_next_epoch_starts_at_its_first_batch_in_another_order():
    following = plan(start_batch=3).next_epoch()
    assert (following.epoch, following.start_batch) == (1, 0)
    assert (following.order() != plan().order()).any()
    assert_array_equal(following.order(), epoch_order(1, 1, 50))


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"global_batch_size": 0}, "global_batch_size must be a positive multiple .* got 0"),
        ({"global_batch_size": 13, "world_size": 2}, "multiple of the 2 devices, got 13"),
        ({"global_batch_size": 51}, "global_batch_size=51 is larger than the dataset of 50"),
        ({"global_batch_size": 51, "num_samples": 7}, "7 images; set global_batch_size=7 or less"),
        ({"num_samples": 1}, "larger than the dataset of 1 image; give 2 or more"),
        ({"start_batch": 5}, r"start_batch must be in \[0, 4\], .* got 5; resume"),
        ({"start_batch": -1}, r"start_batch must be in \[0, 4\], .* got -1; resume"),
    ],
)
def test_sizes_that_make_no_batch_are_refused(values: dict[str, int], named: str):
    with pytest.raises(ValueError, match=named):
        plan(**values)
