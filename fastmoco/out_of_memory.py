"""Memory that ran out, of a GPU or of the machine, as one line; imports no torch."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fastmoco.errors import OutOfMemory

_RAN_OUT = re.compile("out of memory|can't allocate memory|unable to allocate|ALLOC_FAILED", re.I)
_FACTS = {
    r"tried to allocate ([0-9.]+ \w+)": "{} more were asked for",
    r"unable to allocate ([0-9.]+ \w+)": "{} more were asked for",
    r"total capacity of ([0-9.]+ \w+)": "the device has {}",
    r"of which ([0-9.]+ \w+) is free": "{} of them free",
}
"""Sizes in the messages of torch (CUDA and CPU) and NumPy."""


def shortage(error: BaseException) -> str | None:
    """The sizes that an error of torch, NumPy or Python names; None if memory did not run out."""
    text = " ".join(str(error).split())
    if not isinstance(error, MemoryError) and not _RAN_OUT.search(text):
        return None
    found = ((re.search(form, text, re.IGNORECASE), words) for form, words in _FACTS.items())
    facts = [words.format(match[1]) for match, words in found if match]
    return ", ".join(facts) or text.split(". ")[0] or type(error).__name__


@contextmanager
def explained(explain: Callable[[], str]) -> Iterator[None]:
    """Say what needed the memory within the block, and what fits.

    Args:
        explain: Called after the error; says what the block does and which options to set.

    Raises:
        OutOfMemory: If memory ran out.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        sizes = shortage(error)
        if sizes is None:
            raise
        raise OutOfMemory(f"out of memory ({sizes}): {explain()}") from error
