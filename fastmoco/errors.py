"""What a user can fix, as exceptions, and the nearest known name for a misspelled one.

Imports no torch: the command line turns each into one line and an exit code.
"""

import difflib


class UsageError(ValueError):
    """The command line or configuration is wrong; one line says what, where and what to do."""


class DivergedError(ValueError):
    """Training left the finite numbers."""


class Interrupted(RuntimeError):
    """The run was asked to stop, and saved its state.

    Attributes:
        signal_number: SIGINT or SIGTERM.
    """

    def __init__(self, signal_number: int, message: str) -> None:
        """Keep the signal for the exit code."""
        super().__init__(message)
        self.signal_number = signal_number


def check_least(settings: object, section: str, **least: int) -> None:
    """Refuse numbers below the smallest allowed value.

    Args:
        settings: A settings dataclass.
        section: Its key on the command line, before the dot.
        least: Smallest allowed value of each field.

    Raises:
        UsageError: On the first that is too small.
    """
    for name, smallest in least.items():
        if getattr(settings, name) < smallest:
            given = getattr(settings, name)
            raise UsageError(f"{section}.{name} must be {smallest} or more, got {given}")


def nearest_name(name: str, known: list[str]) -> str:
    """``; did you mean ...?`` for a misspelled name, or the list of those that are known.

    The same last part under another section is the likelier slip than a similar spelling of the
    whole.
    """
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    near = [key for key in known if key.rsplit(".", 1)[-1] == name.rsplit(".", 1)[-1]][:1] or near
    return f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
