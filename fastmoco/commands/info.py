"""`fastmoco info`: describe a dataset file."""

from dataclasses import dataclass
from typing import Any

from fastmoco.commands.command import Command, Result

WORDS = {
    "path": "file",
    "num_samples": "images",
    "num_unlabeled": "images without a class",
    "class_counts": "images of each class",
    "width_range": "width, pixels, from to",
    "height_range": "height, pixels, from to",
    "num_jpeg": "stored as JPEG",
    "num_raw": "stored as pixels",
    "num_duplicates": "equal to another image",
    "num_quarantined": "left out, could not be read",
    "image_bytes": "bytes of all images",
    "num_bytes": "bytes of the file",
    "num_files": "files",
    "page_bytes": "bytes of a page",
    "has_checksums": "checksum of each image",
    "channel_mean": "mean of red, green, blue",
    "channel_std": "deviation over all pixels",
    "channel_std_per_image": "deviation within an image",
    "num_measured_pixels": "pixels measured for these",
    "fingerprint": "fingerprint",
    "outlook": "what they allow",
}
"""Names of the facts for people, in their order; ``--json`` has the keys."""
NOT_FOR_PEOPLE = {"classes", "facts_version"}
"""The counts name the classes too; the version is for programs."""


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

        shown = {
            WORDS.get(key, key.replace("_", " ")): _answer(value)
            for key, value in sorted(self.facts.items(), key=_place)
            if key not in NOT_FOR_PEOPLE
        }
        return description_text(shown)


def _answer(value: Any) -> Any:
    return ("no", "yes")[value] if isinstance(value, bool) else value


def _place(fact: tuple[str, Any]) -> int:
    """Where a fact stands: unknown ones come last but for what the images allow."""
    order = [*WORDS][:-1]
    if fact[0] == "outlook":
        return len(order) + 1
    return order.index(fact[0]) if fact[0] in order else len(order)


def _run(arguments: list[str], _: None) -> Result:
    from fastmoco.data.verify import describe
    from fastmoco.train.advice import outlook

    facts = describe(arguments[0])
    return Description(facts | {"outlook": outlook(facts["num_samples"])})


COMMAND = Command(
    name="info",
    arguments=("FILE.beton",),
    options="",
    summary="show what a dataset holds and what its images allow",
    examples=("fastmoco info train.beton",),
    run=_run,
)
