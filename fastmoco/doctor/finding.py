"""What a check finds, and all findings as lines or JSON; imports no torch."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class State(StrEnum):
    """How a part of the machine is."""

    works = "works"
    without = "without"
    """Training runs without it: more slowly, or with less choice."""
    broken = "broken"
    """Training needs it."""
    skipped = "skipped"
    """It is not for this machine."""


@dataclass(frozen=True, slots=True)
class Finding:
    """Result of a check."""

    state: State
    """How the part is."""
    text: str
    """What was found: version, rate, or what is wrong."""
    fix: str = ""
    """Command or change that makes it work; "" if nothing is to be done."""


NO_GPU = Finding(State.skipped, "no NVIDIA GPU here")


@dataclass(frozen=True, slots=True)
class Findings:
    """Results of all checks; each check is done when its result is asked for."""

    checks: Iterator[tuple[str, Finding]]
    """Name of the part and result, of the checks that are left."""
    parts: dict[str, Finding] = field(default_factory=dict)
    """Results so far, by the name of the part."""

    @property
    def fault(self) -> str:
        """Names of the broken parts that training needs, in one line; "" if it can run."""
        names = [name for name, one in self.parts.items() if one.state is State.broken]
        return f"training cannot run as it should: {', '.join(names)}" if names else ""

    def to_json(self) -> dict[str, Any]:
        """JSON object."""
        self.parts.update(self.checks)
        parts = {name: asdict(finding) for name, finding in self.parts.items()}
        return {"can_train": not self.fault, "parts": parts}

    def to_lines(self) -> Iterator[str]:
        """A line for each part as soon as it is checked, and one for what to do about it."""
        for name, finding in self.checks:
            self.parts[name] = finding
            yield f"{name:<16}{finding.state:<9}{finding.text}"
            if finding.fix:
                yield f"{'':<25}fix: {finding.fix}"
