"""`fastmoco info`: say what a dataset file holds."""

from dataclasses import dataclass
from typing import Any

from fastmoco.commands.command import Command, Result


@dataclass(frozen=True, slots=True)
class Description:
    """What a dataset file holds."""

    facts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return self.facts

    def to_text(self) -> str:
        """For people."""
        from fastmoco.data.verify import description_text

        return description_text(self.facts)


def run(places: list[str], _: None) -> Result:
    """Describe a dataset file."""
    from fastmoco.data.verify import describe

    return Description(describe(places[0]))


COMMAND = Command(
    name="info",
    arguments=("FILE.beton",),
    options="",
    summary="say what a dataset file holds",
    run=run,
)
