"""Errors that a user can fix, their form as one line, and the nearest name for a misspelled one.

Imports no torch: the command line turns each error into one line and an exit code.
"""

import difflib
import re


class UsageError(ValueError):
    """The command line or configuration is wrong; one line says what, where and what to do."""


class DivergedError(ValueError):
    """A loss or weight became infinite or NaN during training."""


class OutOfMemory(ValueError):
    """Memory ran out; one line says what needed it and what fits."""


class Interrupted(RuntimeError):
    """A signal asked the run to stop; the run saved its state.

    Attributes:
        signal_number: SIGINT or SIGTERM; decides the exit code.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        super().__init__(message)
        self.signal_number = signal_number


_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Characters that move a terminal's cursor, start its commands, or turn the direction of text."""


def without_controls(text: str) -> str:
    """Escape control characters, except line breaks and tabs, and those that turn text around."""
    return _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


_SECRETS = re.compile(r"(?<=://)[^\s/@'\"]+@|(?<=://)([^\s?#'\"]+)[?#][^\s'\"]+")
"""User and password of an address, and what follows its question mark, such as a signature."""


def without_secrets(text: str) -> str:
    """Remove user, password and query from every address in a text."""
    return _SECRETS.sub(lambda found: f"{found[1]}?..." if found[1] else "", text)


def one_line(text: str, *, keep_bytes: bool = False) -> str:
    """Escape what is not printable: file names may contain line breaks and control codes.

    With `keep_bytes`, bytes of names that are not UTF-8 stay, for standard output (`output`).
    """

    def is_shown(character: str) -> bool:
        return character.isprintable() or (keep_bytes and "\udc80" <= character <= "\udcff")

    return "".join(c if is_shown(c) else c.encode("unicode_escape").decode() for c in text)


def first_line(error: BaseException) -> str:
    """First line of what an error says; its kind if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def nearest_name(name: str, known: list[str]) -> str:
    """Return ``; did you mean NAME?`` for a misspelled name, or else ``; known: NAMES``.

    A known name with the same last part in another section comes before one of similar spelling.
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    near = [key for key in known if key.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]][:1] or near
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
