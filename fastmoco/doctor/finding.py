"""What a check finds, and all findings as text or JSON; imports no torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
    """Results of all checks."""

    parts: Mapping[str, Finding]

    @property
    def fault(self) -> str:
        """Names of the broken parts that training needs, in one line; "" if it can run."""
        names = [name for name, one in self.parts.items() if one.state is State.broken]
        return f"training cannot run as it should: {', '.join(names)}" if names else ""

    def to_json(self) -> dict[str, Any]:
        """JSON object."""
        parts = {name: asdict(finding) for name, finding in self.parts.items()}
        return {"can_train": not self.fault, "parts": parts}

    def to_text(self) -> str:
        """A line for each part, and one for what to do about it."""
        lines = []
        for name, finding in self.parts.items():
            lines.append(f"{name:<16}{finding.state:<9}{finding.text}")
            if finding.fix:
                lines.append(f"{'':<25}fix: {finding.fix}")
        return "\n".join(lines)
