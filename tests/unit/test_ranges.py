import math

import pytest

from fastmoco.commands import COMMANDS
from fastmoco.configuration import check_overrides, load_config
from fastmoco.errors import UsageError
from fastmoco.evaluate.settings import KnnConfig
from fastmoco.ranges import COUNT, FRACTION, LARGEST, POSITIVE, Range, range_of, ranges_of
from fastmoco.schema_options import describe
from fastmoco.train.settings import TrainConfig

SCHEMAS = list(dict.fromkeys(command.config for command in COMMANDS.values() if command.config))
NUMBERS = ("int", "float", "list of int", "list of float")


@pytest.mark.parametrize("schema", SCHEMAS)
def test_every_number_has_a_finite_range(schema):
    kinds = {key: kind for key, kind, _ in describe(schema)}
    allowed = {key: range_of(schema, key) for key, kind in kinds.items() if kind in NUMBERS}
    assert [key for key, one in allowed.items() if one is None] == []
    for one in allowed.values():
        assert -LARGEST <= one.low < one.high <= LARGEST
        assert not any(number in one for number in (math.nan, math.inf, -math.inf))
    assert [key for key in kinds if key not in allowed and range_of(schema, key)] == []


@pytest.mark.parametrize("schema", SCHEMAS)
def test_ranges_are_of_fields(schema):
    assert set(ranges_of(schema)) <= {key for key, _, _ in describe(schema)}


@pytest.mark.parametrize(
    ("allowed", "text", "inside", "outside"),
    [
        (COUNT, "1 or more", [1, 2**31 - 1], [0, 2**31]),
        (POSITIVE, "above 0", [1e-30, 1e30], [0, -1e-30, math.inf, math.nan]),
        (FRACTION, "in [0, 1]", [0, 0.5, 1], [-0.1, 1.1]),
        (Range(0, 1, above=True, below=True), "in (0, 1)", [0.5], [0, 1]),
    ],
)
def test_bounds(allowed, text, inside, outside):
    assert str(allowed) == text
    assert all(number in allowed for number in inside)
    assert not any(number in allowed for number in outside)


def test_presets_and_callers_from_python_are_checked_too():
    with pytest.raises(UsageError, match=r"^k must be 1 or more, got 0$"):
        KnnConfig(k=0)
    with pytest.raises(UsageError, match=r"^moco\.dim must be 1 or more, got -1$"):
        load_config(TrainConfig, ["experiment=moco_v1", "moco.dim=-1"])


def test_the_values_of_a_sweep_are_checked_before_its_first_run():
    override = "optimizer.learning_rate=0.1,-3"
    check_overrides(TrainConfig, ["optimizer.learning_rate=0.1,3"], sweeping=True)
    with pytest.raises(UsageError, match=r"optimizer\.learning_rate must be 0 or more, got -3"):
        check_overrides(TrainConfig, [override], sweeping=True)
    with pytest.raises(UsageError, match=r"must be one value, got 0\.1,-3; .*--multirun"):
        check_overrides(TrainConfig, [override])
