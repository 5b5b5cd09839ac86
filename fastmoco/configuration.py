"""From presets (``configs/``) and ``key=value`` overrides to the schema's dataclasses.

`load_config` is the one door: it composes by Hydra and returns plain dataclasses; a ``DictConfig``
never passes it.
"""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fastmoco.errors import UsageError, nearest_name
from fastmoco.preset_files import take_preset_files

T = TypeVar("T")
Groups = Mapping[str, Mapping[str, Any] | None]

HELP_WIDTH, HELP_INDENT = 100, 36  # columns
CONFIG_FOLDER = Path(__file__).parent / "configs"


def preset_groups(schema: type) -> Groups:
    """The groups of presets that a schema is chosen from, by ``GROUP=NAME``.

    A schema names them in its class variable ``GROUPS``: the presets by name, or None where they
    are the files of ``configs/GROUP``.
    """
    groups: Groups = getattr(schema, "GROUPS", {})
    return groups


def register_schema(schema: type) -> str:
    """Tell Hydra a schema and the presets that Python defines; gives the name to compose.

    A schema names in its class variable ``PRESET`` the file of ``configs/`` that its defaults list
    is in; without one it is composed as it is.
    """
    store = ConfigStore.instance()
    for group, presets in preset_groups(schema).items():
        for name, preset in (presets or {}).items():
            store.store(group=group, name=name, node=preset)
    preset_file: str | None = getattr(schema, "PRESET", None)
    store.store(name=f"{preset_file}_schema" if preset_file else schema.__name__, node=schema)
    return preset_file or schema.__name__


def preset_names(group: str, presets: Mapping[str, Any] | None = None) -> list[str]:
    """Names that ``GROUP=NAME`` may take: those of given presets, or of ``configs/GROUP``."""
    if presets is not None:
        return sorted(presets)
    return sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml"))


def load_config(schema: type[T], overrides: Sequence[str] = ()) -> T:
    """Compose a command's configuration.

    Args:
        schema: A dataclass; see `preset_groups` and `register_schema`.
        overrides: ``key=value`` in Hydra's grammar, later ones win.

    Returns:
        The schema's dataclass, filled.

    Raises:
        UsageError: If a key, a preset or a value is not one that the schema knows; one line.
    """
    overrides = take_preset_files(preset_groups(schema), overrides)
    check_overrides(schema, overrides)
    name = register_schema(schema)
    try:
        with initialize_config_module("fastmoco.configs", version_base="1.3"):
            composed = compose(name, list(overrides))
        return to_dataclass(schema, composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(_one_line(error)) from error


def config_from_dict(schema: type[T], values: dict[str, Any]) -> T:
    """The schema's dataclass from a plain dict, as a checkpoint holds it.

    Raises:
        UsageError: If a key or value is not one that the schema knows.
    """
    try:
        return to_dataclass(schema, OmegaConf.create(values))
    except OmegaConfBaseException as error:
        raise UsageError(f"cannot read a saved configuration: {_one_line(error)}") from error


def config_to_dict(config: Any) -> dict[str, Any]:
    """A configuration as plain JSON values."""
    container = OmegaConf.to_container(OmegaConf.structured(config))
    plain: dict[str, Any] = json.loads(json.dumps(container, default=_plain))
    return plain


def _plain(value: Any) -> Any:
    return value.name if isinstance(value, Enum) else str(value)


def to_dataclass(schema: type[T], composed: DictConfig) -> T:
    """What Hydra composed, as the schema's own dataclass.

    Raises:
        UsageError: If a value is out of range.
    """
    typed = OmegaConf.structured(schema)
    merged = OmegaConf.merge(typed, OmegaConf.masked_copy(composed, list(typed)))
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException:
        raise
    except ValueError as error:  # of a dataclass's own check
        raise UsageError(str(error)) from error
    assert isinstance(config, schema)
    return config


def check_overrides(schema: type, overrides: Sequence[str]) -> list[Override]:
    """Refuse unknown keys and presets with the nearest known name; give what Hydra parsed.

    Raises:
        UsageError: On the first that is unknown.
    """
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise UsageError(f"cannot read the options: {_one_line(error)}") from error
    groups = preset_groups(schema)
    known = [key for key, _, _ in describe(schema)]
    for override in parsed:
        key = override.key_or_group
        if key in groups:
            for choice in _choices(override):
                _check_choice(key, choice, preset_names(key, groups[key]))
        elif key not in known:
            raise UsageError(f"unknown option {key}{nearest_name(key, [*known, *groups])}")
    return parsed


def _choices(override: Override) -> list[str]:
    """The presets that an override names: one, those of a sweep, or none where it is a pattern."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return [str(choice) for choice in value.list]
    return [] if override.is_sweep_override() else [str(value)]


def _check_choice(group: str, choice: str, allowed: list[str]) -> None:
    registered = [name.removesuffix(".yaml") for name in ConfigStore.instance().repo.get(group, {})]
    if choice not in [*allowed, *registered, "null", "None"]:  # registered: also files
        raise UsageError(f"unknown {group}={choice}{nearest_name(choice, allowed)}")


def _one_line(error: BaseException) -> str:
    if str(error).startswith("Error merging override") and error.__cause__:
        error = error.__cause__  # OmegaConf's own words: the value, the type and the key
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = next(
        (line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")), None
    )
    return f"{key}: {lines[0]}" if key and key not in lines[0] else lines[0]


def quote_values(schema: type, overrides: Sequence[str], *, lists: bool = True) -> list[str]:
    """Put values as a shell gives them into Hydra's grammar.

    Args:
        schema: A dataclass: tells which options are paths and which are lists.
        overrides: ``key=value``; paths may hold spaces and the like.
        lists: Also put a list such as ``3,17`` into brackets: to Hydra it would be a sweep.

    Raises:
        UsageError: If a preset's file is missing or holds no preset.
    """
    kinds = {key: kind for key, kind, _ in describe(schema)}
    return [
        _quoted(override, kinds, lists)
        for override in take_preset_files(preset_groups(schema), overrides)
    ]


def _quoted(override: str, kinds: Mapping[str, str], lists: bool) -> str:
    key, separator, value = override.partition("=")
    kind = kinds.get(key, "")
    if not separator or value in ("", "null") or value[0] in ("'", '"', "["):
        return override
    if kind == "path":
        # Hydra reads a backslash as one but before a quote, where each backslash is doubled.
        escaped = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + ('\\"' if m[2] else ""), value)
        return f'{key}="{escaped}"'
    return f"{key}=[{value}]" if lists and kind.startswith("list") else override


def describe(schema: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield ``(key, kind, help)`` of every option of a schema, nested keys joined by dots.

    The help is the string literal under the field, and the kind the type as a user would say it.
    """
    hints, docs = get_type_hints(schema), _field_docs(schema)
    for item in fields(schema):
        hint = hints[item.name]
        if is_dataclass(hint):
            yield from describe(hint, f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", _kind(hint), docs.get(item.name, "")


def _kind(hint: Any) -> str:
    if get_args(hint) and type(None) in get_args(hint):
        return _kind(get_args(hint)[0])
    if isinstance(hint, type) and issubclass(hint, Enum):
        return "|".join(member.name for member in hint)
    return {Path: "path", bool: "true|false", str: "text"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )


@cache
def _field_docs(schema: type) -> dict[str, str]:
    """The string literals under a dataclass's fields, from its source: Python drops them.

    Those of the dataclasses that it extends are its own.
    """
    docs: dict[str, str] = {}
    for owner in filter(is_dataclass, reversed(schema.__mro__)):
        body = ast.parse(textwrap.dedent(inspect.getsource(owner))).body[0]
        assert isinstance(body, ast.ClassDef)
        for statement, following in zip(body.body, body.body[1:], strict=False):
            if isinstance(statement, ast.AnnAssign) and isinstance(following, ast.Expr):
                name, value = statement.target, following.value
                if isinstance(name, ast.Name) and isinstance(value, ast.Constant):
                    docs[name.id] = inspect.cleandoc(str(value.value)).replace("\n", " ")
    return docs


def _shown(value: Any) -> str:
    """A default as one would write it on the command line."""
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, ListConfig):
        return f"[{','.join(_shown(item) for item in value)}]"
    return "null" if value is None else str(value)


def help_lines(schema: type) -> list[str]:
    """Each option with its default, its type and its meaning; then the groups of presets."""
    defaults = OmegaConf.structured(schema)
    lines = ["options (key=DEFAULT, type, meaning):"]
    for key, kind, text in describe(schema):
        value = OmegaConf.select(defaults, key)
        option = f"  {key}={_shown(value)}"
        if len(option) >= HELP_INDENT:
            lines.append(option)
            option = ""
        lines += textwrap.wrap(
            f"{kind}. {text}",
            HELP_WIDTH,
            initial_indent=f"{option:<{HELP_INDENT}}",
            subsequent_indent=" " * HELP_INDENT,
            break_on_hyphens=False,
            break_long_words=False,
        )
    for group, presets in preset_groups(schema).items():
        notes = [f"{group}=NAME: {', '.join(preset_names(group, presets))}"]
        if presets is not None:
            notes.append(
                f"{group}=FILE.yaml: your own, `key: value` lines of the keys above without "
                f"{group}.; `base: NAME` takes the rest from that one"
            )
        for note in notes:
            lines += textwrap.wrap(note, HELP_WIDTH, subsequent_indent="    ")
    return lines
