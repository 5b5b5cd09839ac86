"""A command: its name, arguments, options and function.

A command's module must not import torch: its function imports what it needs, so that
`fastmoco --help` answers at once.
"""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from fastmoco.commands.arguments import (
    check_output,
    check_outputs,
    check_run,
    split_arguments,
)
from fastmoco.data.settings import check_data
from fastmoco.errors import UsageError
from fastmoco.ranks import environment_ranks

Config = TypeVar("Config")


class Result(Protocol):
    """Output of a command, as text or, with ``--json``, as one JSON object.

    One with a text in an attribute ``fault`` is printed, and the command then fails.
    """

    def to_text(self) -> str:
        """Text to read."""
        ...

    def to_json(self) -> dict[str, Any]:
        """JSON object."""
        ...


class SlowResult(Protocol):
    """A result whose text is printed line by line, each line as soon as it is known."""

    def to_lines(self) -> Iterator[str]:
        """Lines of the text."""
        ...

    def to_json(self) -> dict[str, Any]:
        """JSON object."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Command(Generic[Config]):
    """One command of the command line."""

    name: str
    arguments: tuple[str, ...] = ()
    """Names of the positional arguments, such as ``RUN``."""
    repeats: bool = False
    """Whether the last positional argument may be given several times."""
    options: str = "[key=value ...]"
    """The options that the usage line shows."""
    summary: str
    """One line for `fastmoco --help`."""
    examples: tuple[str, ...] = ()
    """Command lines for ``--help``."""
    first: tuple[str, ...] = ()
    """Options that ``--help`` lists before all others."""
    config: type[Config] | None = None
    """Dataclass of its options; None: it has no options."""
    run: Callable[[list[str], Config], Result | SlowResult | str] | None = None
    """Called with the positional arguments and the configuration; its result is printed."""
    run_arguments: Callable[[list[str]], None] | None = None
    """Called instead of `run`, with all arguments unparsed."""
    notes: Callable[[], Sequence[str]] = tuple
    """More lines for ``--help``."""

    @property
    def usage(self) -> str:
        """The usage line."""
        prints_json = " [--json]" if self.run is not None else ""
        words = ["fastmoco", self.name, *self.arguments, self.options]
        return " ".join(filter(None, words)) + prints_json

    def __call__(self, arguments: list[str]) -> None:
        """Parse the arguments, run the command, print the result on the first rank.

        Raises:
            UsageError: If an argument is missing, unknown or wrong.
            ValueError: If the result has a ``fault``.
        """
        if self.run_arguments is not None:
            self.run_arguments(arguments)
            return
        assert self.run is not None
        places, overrides, as_json = split_arguments(
            arguments, self.arguments, self.config, repeats=self.repeats
        )
        names = [*self.arguments, *self.arguments[-1:] * (len(places) - len(self.arguments))]
        for name, place in zip(names, places, strict=True):
            if name == "RUN":
                check_run(Path(place))
            elif name == "DST.beton":
                check_output(place, Path(place))
        result = self.run(places, self._load(overrides))
        if environment_ranks().is_first:
            for line in _lines(result, as_json):
                print(line, flush=True)  # noqa: T201
        if fault := getattr(result, "fault", ""):
            raise ValueError(fault)

    def _load(self, overrides: list[str]) -> Any:
        if self.config is None:
            if overrides:
                raise UsageError(f"unexpected argument {overrides[0]}; {self.name} has no options")
            return None
        from fastmoco.configuration import load_config, quote_values

        cfg = load_config(self.config, quote_values(self.config, overrides))
        check_outputs(cfg)
        check_data(cfg)
        return cfg


def _lines(result: Result | SlowResult | str, as_json: bool) -> Iterator[str]:
    """The text, in one piece or line by line, or one line of JSON."""
    if as_json:
        yield json.dumps(result if isinstance(result, str) else result.to_json())
    elif isinstance(result, str):
        yield result
    elif hasattr(result, "to_lines"):
        yield from result.to_lines()
    else:
        yield result.to_text()
