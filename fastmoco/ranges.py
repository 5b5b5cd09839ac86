"""Allowed range of every number among the settings, and the one check of them.

A settings dataclass lists the ranges of its numbers, and of lists of numbers, in its class variable
``RANGES``. `configuration.load_config` checks the given ones before anything else, then those of
presets and saved configurations; the help shows them. NaN and infinity are in no range.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any, get_type_hints

from fastmoco.errors import UsageError

MOST, LARGEST = 2**31 - 1, 3e38
"""Upper bounds of counts and of other numbers that nothing else bounds: what 32 bits hold."""


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`, both included unless `above` or `below` is set."""

    low: float
    high: float = LARGEST
    above: bool = False
    """The number must be above `low`."""
    below: bool = False
    """The number must be below `high`."""

    def __contains__(self, number: float) -> bool:
        """Whether a number is allowed; False for NaN."""
        fits_low = self.low < number if self.above else self.low <= number
        return fits_low and (number < self.high if self.below else number <= self.high)

    def __str__(self) -> str:
        """Format as in "must be ...": ``1 or more``, ``above 0``, ``in (0, 1]``."""
        if self.high >= MOST:
            return f"above {self.low}" if self.above else f"{self.low} or more"
        left, right = "(" if self.above else "[", ")" if self.below else "]"
        return f"in {left}{self.low}, {self.high}{right}"


COUNT = Range(1, MOST)
COUNT_OR_ZERO = Range(0, MOST)
POSITIVE = Range(0, above=True)
NOT_NEGATIVE = Range(0)
FRACTION = Range(0, 1)
SHARE = Range(0, 1, above=True)
SEED = Range(0, 2**63 - 1)

Ranges = Mapping[str, Range]


@cache
def ranges_of(schema: type) -> dict[str, Range]:
    """Ranges of a settings dataclass by field, inherited ones included."""
    found: dict[str, Range] = {}
    for owner in reversed(schema.__mro__):
        found |= vars(owner).get("RANGES", {})
    return found


@cache
def _sections(schema: type) -> dict[str, type]:
    """Fields that are settings dataclasses themselves."""
    hints = get_type_hints(schema)
    return {
        item.name: hints[item.name] for item in fields(schema) if is_dataclass(hints[item.name])
    }


def check_ranges(values: Any, prefix: str = "") -> None:
    """Refuse numbers out of range.

    Args:
        values: A settings dataclass.
        prefix: Key of `values` on the command line with a dot after it, such as ``moco.``.

    Raises:
        UsageError: At the first number that its range does not contain.
    """
    schema: type = type(values)
    for name, allowed in ranges_of(schema).items():
        check_range(f"{prefix}{name}", getattr(values, name), allowed)
    for name in _sections(schema):
        check_ranges(getattr(values, name), f"{prefix}{name}.")


def check_range(key: str, given: Any, allowed: Range) -> None:
    """Refuse a number, or a list with a number, out of range; None is allowed.

    Raises:
        UsageError: Naming the key.
    """
    numbers = [given] if isinstance(given, int | float) else given or ()
    for number in numbers:
        if number not in allowed:
            shown = given if number is given else list(given)
            if not math.isfinite(number):
                raise UsageError(f"{key} must be a finite number, {allowed}, got {shown}")
            most = f", at most {allowed.high}" if number > allowed.high >= MOST else ""
            raise UsageError(f"{key} must be {allowed}{most}, got {shown}")


def range_of(schema: type, key: str) -> Range | None:
    """Range of an option by its dotted key; None if it is not a number."""
    section, _, rest = key.partition(".")
    if rest:
        return range_of(_sections(schema)[section], rest)
    return ranges_of(schema).get(key)
