"""Text of `fastmoco COMMAND --help`: examples, options with defaults and ranges, presets."""

import textwrap
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any

from omegaconf import ListConfig, OmegaConf

from fastmoco.commands.command import Command
from fastmoco.configuration import (
    CONFIG_FOLDER,
    config_to_dict,
    load_config,
    preset_groups,
    preset_names,
    quote_values,
)
from fastmoco.pipelines.policies import ABOUT_POLICIES
from fastmoco.ranges import range_of
from fastmoco.schema_options import describe

WIDTH, INDENT, PRESET_INDENT = 100, 36, 28  # columns


def command_help(command: Command[Any], overrides: Sequence[str] = ()) -> list[str]:
    """Lines of a command's help.

    Args:
        command: The command.
        overrides: Presets or options, ``key=value``: only the values that they set are listed.

    Raises:
        UsageError: If an override is unknown or wrong.
    """
    lines = [command.usage, "", command.summary]
    if command.config and overrides:
        return [*lines, "", *changed_lines(command.config, overrides, command.name)]
    if command.examples:
        lines += ["", "examples:", *(f"  {example}" for example in command.examples)]
    if command.config:
        lines += ["", *help_lines(command.config, command.first)]
    if notes := command.notes():
        lines += ["", *notes]
    return lines


def changed_lines(schema: type, overrides: Sequence[str], name: str) -> list[str]:
    """List the values that presets and options set, each with its default.

    Raises:
        UsageError: If an override is unknown or wrong.
    """
    default: Any = load_config(schema)
    chosen: Any = load_config(schema, quote_values(schema, overrides))
    before, after = dict(_flat(config_to_dict(default))), dict(_flat(config_to_dict(chosen)))
    changed = [
        f"  {f'{key}={_shown(value)}':<{INDENT - 1}} default: {_shown(before[key])}"
        for key, value in after.items()
        if value != before[key]
    ]
    title = f"values set by {' '.join(overrides)} (all others keep their defaults):"
    return [title, *changed, "", f"fastmoco {name} --help lists all options."]


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def help_lines(schema: type, first: Sequence[str] = ()) -> list[str]:
    """List the options, those of `first` first, then the groups of presets."""
    options = {key: (kind, text) for key, kind, text in describe(schema)}
    defaults = OmegaConf.structured(schema)

    def option_lines(keys: Sequence[str]) -> Iterator[str]:
        for key in keys:
            allowed = range_of(schema, key)
            kind = options[key][0] + (f" {allowed}" if allowed else "")
            kind = kind.replace("|", " | ") if len(kind) > WIDTH - INDENT else kind  # to break it
            option = f"{key}={_shown(OmegaConf.select(defaults, key))}"
            yield from _entry(option, f"{kind}. {options[key][1]}", INDENT)

    title = "options (key=DEFAULT, type, meaning):"
    if not first:
        return [*presets_lines(schema), title, *option_lines(list(options))]
    others = [key for key in options if key not in first]
    top = [f"the first {title}", *option_lines(first), ""]
    return [*top, *presets_lines(schema), "all other options:", *option_lines(others)]


def presets_lines(schema: type) -> Iterator[str]:
    """List the presets of each group, a line for each, then an empty line."""
    for group, presets in preset_groups(schema).items():
        yield f"{group}=NAME, a preset:"
        for name in preset_names(group, presets):
            about = ABOUT_POLICIES[name] if presets is not None else _first_comment(group, name)
            yield from _entry(name, about, PRESET_INDENT)
        if presets is not None:
            yield f"{group}=FILE.yaml, a preset of your own:"
            yield f"  `key: value` lines, with the keys of {group}. without this prefix;"
            yield "  `base: NAME` takes all other values from a preset"
        yield ""


def _first_comment(group: str, name: str) -> str:
    """First line of comment in a preset's file, after the line that is for Hydra."""
    lines = (CONFIG_FOLDER / group / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if not line.startswith("# @")).lstrip("# ")


def _entry(name: str, text: str, indent: int) -> list[str]:
    """A name and, from the column `indent` on, its text."""
    head = f"  {name}"
    if len(head) >= indent and len(line := f"{head}  {text}") <= WIDTH:
        return [line]
    before = [head] if len(head) >= indent else []
    return before + textwrap.wrap(
        text,
        WIDTH,
        initial_indent=f"{'' if before else head:<{indent}}",
        subsequent_indent=" " * indent,
        break_on_hyphens=False,
        break_long_words=False,
    )


def _shown(value: Any) -> str:
    """Format a value as on the command line."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, ListConfig | list):
        return f"[{','.join(_shown(item) for item in value)}]"
    return "null" if value is None else str(value)
