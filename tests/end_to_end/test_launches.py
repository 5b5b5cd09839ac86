"""The launch budget of a step on a GPU: counts for the torch of constraints.txt, only ever lowered.

A part that needs more fails; one that needs less is to be lowered here, and in docs/step.md.
"""

import re
from pathlib import Path

import pytest
import torch

from tests.played_cuda.played import play

PLAIN_VIEWS = [f"policy.{name}_probability=0" for name in ("jitter", "grayscale", "blur")]
PLANES = ["pipeline.augmentation=planes"]  # counted before Kornia made the views of a GPU
SMALL = ["model.encoder=alexnet_bn", "moco.mechanism=end_to_end", *PLAIN_VIEWS, *PLANES]
BUDGET = {"forward": 60, "backward": 63, "rest": 45, "crops": 7, "graphs": 1}
RESNET18 = {"forward": 186, "backward": 107, "rest": 45, "crops": 7, "graphs": 1}


def require_pinned_torch() -> None:
    text = (Path(__file__).parents[2] / "constraints.txt").read_text()
    pinned = re.search(r"^torch==(\S+)", text, re.MULTILINE)
    assert pinned
    if torch.__version__.partition("+")[0] != pinned[1]:
        pytest.skip(f"the budget is that of torch {pinned[1]}")


def assert_within(found: dict[str, int], budget: dict[str, int]) -> None:
    grown = {part: (found[part], limit) for part, limit in budget.items() if found[part] > limit}
    assert not grown, f"parts that launch more than their budget (found, budget): {grown}"
    assert found == budget, "fewer launches: lower the budget to what was found"


@pytest.mark.full
def test_a_small_step_is_within_its_budget() -> None:
    require_pinned_torch()
    assert_within(play("tests.played_cuda.launches:launches", SMALL, SMALL[:1]), BUDGET)


@pytest.mark.full
def test_the_step_of_a_resnet_18_is_within_its_budget() -> None:
    require_pinned_torch()
    assert_within(play("tests.played_cuda.launches:launches", PLANES, PLANES), RESNET18)
