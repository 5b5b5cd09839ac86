"""What became of each injected fault and each bad input, counted, and kept where it is committed.

A campaign is all cases of one promise. With ``--full-faults`` its parts run one by one, and each is
written to ``tests/faults/results/NAME.json`` when it ends. A part that was counted on this state of
the code is not run again, so a campaign that was stopped resumes. Without the option one small part
runs and nothing is written. ``docs/faults.md`` is made of the results (`document.py`).
"""

import json
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from fastmoco.files import atomic_write_text
from tests.full_suite import CODE, processor, state_of_code

RESULTS = Path(__file__).with_name("results")
BAD = ("silent", "crashed", "hung")
"""Outcomes that break a promise: a wrong result without a word, a traceback, no end."""
LIMIT_SECONDS = 120.0
"""For one case; slower ones hang."""
MOST_EXAMPLES = 5


class Hung(BaseException):
    """A case took longer than its limit."""


@dataclass(kw_only=True)
class Campaign:
    """All cases of one promise.

    Attributes:
        name: Name of the file of results.
        promise: What must hold, a sentence.
        how: How the faults or inputs are made, with the seed.
        unit: ``faults`` or ``inputs``.
        test: The test's id.
        gap: Why the promise is not kept yet; the test then fails once it is.
    """

    name: str
    promise: str
    how: str
    unit: str
    test: str
    gap: str = ""
    full: bool = False
    results: Path = RESULTS
    state: str = ""
    """State of the code; only read with `full`."""
    seen: "Counter[str]" = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)

    def parts(self, count: int) -> Iterator["Part"]:
        """The parts of ``count`` that are left, for the caller to fill; or one small part."""
        if not self.full:
            yield (part := Part(number=0, quick=True))
            self._count(part.outcomes, part.examples)
            return
        for number in range(count):
            found = self._read()
            if found.get(str(number), {}).get("state") == self.state:
                self._count(found[str(number)]["outcomes"], found[str(number)]["examples"])
                continue
            start = time.monotonic()
            yield (part := Part(number=number, quick=False))
            self._count(part.outcomes, part.examples)
            self._write({**found, str(number): self._row(part, time.monotonic() - start)}, count)

    def check(self) -> None:
        """Fail where the promise was broken, or where a gap is named and nothing broke it."""
        broken = {name: self.seen[name] for name in BAD if self.seen[name]}
        print(f"{self.name}: {dict(self.seen)}")
        assert self.seen, self.name
        if not self.gap:
            assert not broken, (self.name, broken, self.examples)
        elif self.full:
            assert broken, f"{self.name} is kept now: remove its gap ({self.gap})"

    def _count(self, outcomes: Mapping[str, int], examples: Sequence[str]) -> None:
        self.seen.update(outcomes)
        self.examples += examples

    def _read(self) -> dict[str, Any]:
        path = self.results / f"{self.name}.json"
        parts: dict[str, Any] = json.loads(path.read_text())["parts"] if path.exists() else {}
        return parts

    def _row(self, part: "Part", seconds: float) -> dict[str, Any]:
        return {
            "outcomes": dict(part.outcomes),
            "slowest_seconds": round(part.slowest_seconds, 3),
            "places": dict(sorted(part.places.items())),
            "examples": part.examples,
            "facts": part.facts,
            "seconds": round(seconds, 1),
            "state": self.state,
            "torch": torch.__version__,
            "processor": processor(),
        }

    def _write(self, parts: dict[str, Any], count: int) -> None:
        kept = {str(number): parts[str(number)] for number in range(count) if str(number) in parts}
        about = {name: getattr(self, name) for name in ("promise", "how", "unit", "test", "gap")}
        text = json.dumps({**about, "of_parts": count, "parts": kept}, indent=1)
        atomic_write_text(self.results / f"{self.name}.json", text + "\n")


@dataclass(kw_only=True)
class Part:
    """Some cases of a campaign.

    Attributes:
        number: Part of the campaign, from 0; part of the seed.
        quick: Whether a few cases are enough.
    """

    number: int
    quick: bool
    outcomes: "Counter[str]" = field(default_factory=Counter)
    places: "Counter[str]" = field(default_factory=Counter)
    examples: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)
    slowest_seconds: float = 0.0

    def add(self, outcome: str, seconds: float, *, place: str = "", example: str = "") -> None:
        """Count a case.

        Args:
            outcome: One of `BAD`, or another word.
            seconds: Until it was noticed.
            place: Where or how it was injected, for a table.
            example: What it was, kept where the outcome is bad.
        """
        self.outcomes[outcome] += 1
        self.slowest_seconds = max(self.slowest_seconds, seconds)
        if place:
            self.places[place] += 1
        if outcome in BAD and len(self.examples) < MOST_EXAMPLES:
            self.examples.append(f"{place}: {outcome}: {example}"[:400])


@dataclass(frozen=True)
class Ledger:
    """Makes campaigns of the test that asks for them."""

    test: str
    full: bool

    def campaign(
        self, name: str, *, promise: str, how: str, unit: str = "faults", gap: str = ""
    ) -> Campaign:
        """See `Campaign`."""
        code = [one for one in CODE if one != "tests"]
        state = state_of_code((*code, self.test.partition("::")[0])) if self.full else ""
        return Campaign(
            name=name,
            promise=promise,
            how=how,
            unit=unit,
            test=self.test,
            gap=gap,
            full=self.full,
            state=state,
        )


@dataclass(frozen=True)
class Seen:
    """An action's outcome, its result or the text of its error, and its duration."""

    outcome: str
    result: Any
    seconds: float


def observe(
    action: Callable[[], Any], refusals: tuple[type[BaseException], ...] = (ValueError, OSError)
) -> Seen:
    """Call an action: ``done``, or ``refused`` with a one-line error, ``crashed``, or ``hung``."""
    start = time.monotonic()
    try:
        with time_limit(LIMIT_SECONDS):
            outcome, result = "done", action()
    except refusals as error:
        one_line = "\n" not in str(error) and str(error)
        outcome, result = "refused" if one_line else "crashed", f"{type(error).__name__}: {error}"
    except Hung:
        outcome, result = "hung", f"no end after {LIMIT_SECONDS:.0f} s"
    except Exception as error:
        outcome, result = "crashed", f"{type(error).__name__}: {error}"
    return Seen(outcome, result, time.monotonic() - start)


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise `Hung` in the block after some seconds; then set the timer of the test again."""

    def stop(_number: int, _frame: FrameType | None) -> None:
        raise Hung

    handler = signal.signal(signal.SIGALRM, stop)
    left, _ = signal.setitimer(signal.ITIMER_REAL, seconds)
    start = time.monotonic()
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            signal.setitimer(signal.ITIMER_REAL, max(0.1, left - (time.monotonic() - start)))
