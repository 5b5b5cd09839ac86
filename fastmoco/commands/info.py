"""`fastmoco info`: describe a dataset file."""

from dataclasses import dataclass
from typing import Any

from fastmoco.commands.command import Command, Result


@dataclass(frozen=True, slots=True)
class Description:
    """Facts about a dataset file, and what its images allow."""

    facts: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """JSON object."""
        return self.facts

    def to_text(self) -> str:
        """Text to read."""
        from fastmoco.data.verify import description_text

        return description_text(self.facts)


def _run(arguments: list[str], _: None) -> Result:
    from fastmoco.data.verify import describe
    from fastmoco.train.advice import outlook

    facts = describe(arguments[0])
    return Description(facts | {"outlook": outlook(facts["num_samples"])})


COMMAND = Command(
    name="info",
    arguments=("FILE.beton",),
    options="",
    summary="say what a dataset file holds and what its images allow",
    examples=("fastmoco info train.beton",),
    run=_run,
)
