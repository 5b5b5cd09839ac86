"""The kernels of the fused loss, compiled for cards that are not here."""

import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
if find_spec("triton"):
    from fastmoco.moco.kernels.info_nce import TILES, num_parts, tile_for
    from tests.ahead_of_time import CARDS, DIMS, compile_merge, compile_sums, table

QUICK = [(80, 256), (90, 128), (120, 512)]
ALL = [(card, dim) for card in (80, 86, 89, 90, 100, 120) for dim in (64, 128, 256, 512)]
REST = [pytest.param(*one, marks=pytest.mark.full) for one in ALL if one not in QUICK]


def check(capability, needs):
    assert needs.spilled_bytes == 0
    assert needs.registers <= 255
    assert needs.shared_bytes <= CARDS[capability][1] * 1024


@pytest.mark.parametrize(("capability", "dim"), [*QUICK, *REST])
def test_sums_fit_the_card_and_spill_no_registers(capability, dim):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check(capability, compile_sums(capability, dim))


@pytest.mark.parametrize(
    ("dtype", "dim"), [(torch.bfloat16, 128), (torch.float32, 128), (torch.float32, 256)]
)
@pytest.mark.full
def test_other_queues_fit_too(dtype, dim):
    for capability in (80, 90, 120):
        check(capability, compile_sums(capability, dim, dtype))


@pytest.mark.parametrize("capability", [pytest.param(80, marks=pytest.mark.full), 90])
def test_the_merge_fits(capability):
    for dim in (128, 512):
        check(capability, compile_merge(capability, dim))


@pytest.mark.full
def test_the_table_of_the_page_is_what_the_compiler_says():
    expected = "\n".join(table())
    text = (Path(__file__).parents[2] / "docs/step.md").read_text()
    assert expected in text, f"put this there:\n{expected}"


def test_a_dimension_that_does_not_fit_is_refused():
    assert max(DIMS) == TILES[-1][0]
    with pytest.raises(ValueError, match=r"C = 513 is larger than 512 with a queue of torch\.f"):
        tile_for(513, torch.float16)
    with pytest.raises(ValueError, match=r"C = 257 is larger than 256 with a queue of torch\.f"):
        tile_for(257, torch.float32)


@pytest.mark.parametrize(
    ("count", "num_keys", "expected"),
    [(256, 65_536, 66), (4096, 65_536, 4), (1, 5, 1), (64, 1024, 4)],
)
def test_parts_fill_the_gpu_and_none_is_tiny(count, num_keys, expected):
    """An H100 has 132 multiprocessors."""
    assert num_parts(count, num_keys, tile_for(128, torch.float16), 132) == expected
