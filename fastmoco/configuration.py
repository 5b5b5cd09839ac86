"""Compose presets (``configs/``) and ``key=value`` overrides into the schema's dataclasses.

All configurations come through `load_config`: it composes with Hydra and returns plain
dataclasses, never a ``DictConfig``.
"""

import copy
import json
import os
import re
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fastmoco.addresses import as_path, keep_addresses
from fastmoco.errors import UsageError, nearest_name
from fastmoco.option_names import nearest_option, nearest_value
from fastmoco.preset_files import Groups, full_key, take_preset_files
from fastmoco.ranges import check_range, check_ranges, range_of
from fastmoco.schema_options import describe

T = TypeVar("T")

CONFIG_FOLDER = Path(__file__).parent / "configs"


@runtime_checkable
class Deriving(Protocol):
    """A configuration that chooses values by others, such as the images."""

    def derive(self, keys: Collection[str]) -> list[str]:
        """``key=value`` for options other than `keys`, which the user gave; [] = nothing."""


def preset_groups(schema: type) -> Groups:
    """Groups of presets that a schema accepts as ``GROUP=NAME``.

    A schema lists them in its class variable ``GROUPS``: a group's presets by name, or None if they
    are the files of ``configs/GROUP``.
    """
    groups: Groups = getattr(schema, "GROUPS", {})
    return groups


@cache
def register_schema(schema: type) -> str:
    """Register a schema and its presets from Python with Hydra; return the name to compose.

    A schema may name a file of ``configs/`` in its class variable ``PRESET``; that file holds its
    defaults list. Without one, only the schema is composed.
    """
    store = ConfigStore.instance()
    for group, presets in preset_groups(schema).items():
        for name, preset in (presets or {}).items():
            store.store(group=group, name=name, node=preset)
    preset_file: str | None = getattr(schema, "PRESET", None)
    store.store(name=f"{preset_file}_schema" if preset_file else schema.__name__, node=schema)
    return preset_file or schema.__name__


def preset_names(group: str, presets: Mapping[str, Any] | None = None) -> list[str]:
    """Names that ``GROUP=NAME`` accepts: those of `presets`, or the files of ``configs/GROUP``."""
    if presets is not None:
        return sorted(presets)
    return sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml"))


def load_config(schema: type[T], overrides: Sequence[str] = ()) -> T:
    """Compose a command's configuration.

    Args:
        schema: A dataclass; see `preset_groups` and `register_schema`.
        overrides: ``key=value`` in Hydra's grammar; later ones win.

    Returns:
        An instance of the schema.

    Raises:
        UsageError: If the schema does not know a key, a preset or a value; one line.
    """
    overrides = take_preset_files(preset_groups(schema), overrides)
    keys = [override.key_or_group for override in check_overrides(schema, overrides)]
    kind: type = schema
    name = register_schema(kind)
    try:
        with _hydra():
            composed = compose(name, list(overrides))
        return complete(schema, composed, keys)
    except (HydraException, OmegaConfBaseException) as error:
        raise UsageError(_one_line(error)) from error


_COMPOSING = threading.Lock()


@contextmanager
def _hydra() -> Iterator[None]:
    """Within the block, Hydra composes our presets.

    Its state belongs to the process: other threads wait, and a program's own Hydra comes back.
    """
    with _COMPOSING:
        of_program = GlobalHydra.instance().hydra
        GlobalHydra.instance().clear()
        try:
            with initialize_config_module("fastmoco.configs", version_base="1.3"):
                yield
        finally:
            GlobalHydra.instance().hydra = of_program


def complete(schema: type[T], composed: DictConfig, keys: Collection[str]) -> T:
    """Convert what Hydra composed, and add what the schema derives from it (`Deriving`).

    Args:
        schema: A dataclass.
        composed: Its values.
        keys: Options that the user gave.

    Raises:
        UsageError: If a value is out of range, or cannot be derived.
    """
    config = to_dataclass(schema, composed)
    derived = config.derive(keys) if isinstance(config, Deriving) else []
    if not derived:
        return config
    merged = OmegaConf.merge(composed, OmegaConf.from_dotlist(derived))
    assert isinstance(merged, DictConfig)
    return to_dataclass(schema, merged)


def config_from_dict(schema: type[T], values: dict[str, Any]) -> T:
    """Build the schema's dataclass from a plain dict, such as a checkpoint's.

    Raises:
        UsageError: If the schema does not know a key or a value.
    """
    try:
        return to_dataclass(schema, OmegaConf.create(values))
    except OmegaConfBaseException as error:
        raise UsageError(f"cannot read a saved configuration: {_one_line(error)}") from error


def config_to_dict(config: Any) -> dict[str, Any]:
    """Convert a configuration to plain JSON values."""
    container = OmegaConf.to_container(OmegaConf.structured(config))
    plain: dict[str, Any] = json.loads(json.dumps(container, default=_plain))
    return plain


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        value = as_path(value)
    return value.name if isinstance(value, Enum) else str(value)


def to_dataclass(schema: type[T], composed: DictConfig) -> T:
    """Convert what Hydra composed to the schema's dataclass; ``~/`` in paths is the home folder.

    Raises:
        UsageError: If a value is out of range.
    """
    kind: type = schema
    typed = _structured(kind)
    merged = OmegaConf.merge(typed, OmegaConf.masked_copy(composed, list(typed)))
    for key in _path_options(kind):  # of yaml and Python; the command line has done so
        if str(path := OmegaConf.select(merged, key)).startswith("~/"):
            OmegaConf.update(merged, key, os.path.expanduser(path))
    try:
        config = OmegaConf.to_object(merged)
    except OmegaConfBaseException:
        raise
    except ValueError as error:  # from a dataclass's own check
        raise UsageError(str(error)) from error
    assert isinstance(config, schema)
    keep_addresses(config, _path_options(kind))  # OmegaConf's paths lost a slash of each
    check_ranges(config)
    return config


def check_overrides(
    schema: type, overrides: Sequence[str], *, sweeping: bool = False
) -> list[Override]:
    """Refuse unknown keys, presets and values, naming the nearest known one; return Hydra's parse.

    Args:
        schema: A dataclass; see `load_config`.
        overrides: ``key=value`` in Hydra's grammar.
        sweeping: Accept several values of an option, ``key=1,2``, and check each.

    Raises:
        UsageError: At the first that is unknown or wrong.
    """
    parsed = [_parsed(override) for override in overrides]
    groups = preset_groups(schema)
    kinds = {key: kind for key, kind, _ in describe(schema)}
    for override in parsed:
        key = override.key_or_group
        if override.is_sweep_override() and not sweeping:
            raise UsageError(_several_values(key, kinds.get(key, "preset"), override))
        if key in groups:
            for choice in _choices(override):
                _check_choice(key, str(choice), preset_names(key, groups[key]))
        elif key not in kinds:
            raise UsageError(f"unknown option {key}{nearest_option(key, [*kinds, *groups])}")
        else:
            for choice in _choices(override):
                value = _converted(schema, key, kinds[key], choice)
                if allowed := range_of(schema, key):
                    check_range(key, value, allowed)
    return parsed


def _parsed(override: str) -> Override:
    try:
        return OverridesParser.create().parse_override(override)
    except HydraException as error:
        advice = "quote a value with special characters twice, such as 'name=\"a(b\"'"
        if "=" not in override:
            advice = "options are given as key=value"
        raise UsageError(f"cannot read {override}; {advice}") from error


def _several_values(key: str, kind: str, override: Override) -> str:
    given = override.get_value_string()
    if kind == "float" and re.fullmatch(r"-?\d+,\d+", given):
        return f"{key} must be one number, got {given}; decimals have a point: {key}=" + (
            given.replace(",", ".")
        )
    return f"{key} must be one value, got {given}; fastmoco train --multirun makes one run of each"


def _choices(override: Override) -> list[Any]:
    """Values that an override gives: one, those of a sweep, or none for a glob or range."""
    value = override.value()
    if isinstance(value, ChoiceSweep):
        return [getattr(choice, "text", choice) for choice in value.list]
    return [] if override.is_sweep_override() or override.is_delete() else [value]


def _check_choice(group: str, choice: str, allowed: list[str]) -> None:
    registered = [name.removesuffix(".yaml") for name in ConfigStore.instance().repo.get(group, {})]
    if choice not in [*allowed, *registered, "null", "None"]:  # registered also holds preset files
        raise UsageError(f"unknown {group}={choice}{nearest_name(choice, allowed)}")


KIND_WORDS = {
    "int": "a whole number",
    "float": "a number",
    "true|false": "true or false",
    "list of int": "a list of whole numbers, [1,2]",
    "list of float": "a list of numbers, [0.1,0.2]",
    "list of text": "a list, [a,b]",
}
"""What a value must be, by the kind of its option."""


@cache
def _structured(schema: type) -> DictConfig:
    """A schema's defaults; making them takes longer than all that is done with them."""
    typed: DictConfig = OmegaConf.structured(schema)
    return typed


@cache
def _path_options(schema: type) -> list[str]:
    """Options of a schema that are one path."""
    return [key for key, kind, _ in describe(schema) if kind == "path"]


@cache
def _trial(schema: type) -> DictConfig:
    """A configuration to try values in."""
    return copy.deepcopy(_structured(schema))


def _converted(schema: type, key: str, kind: str, value: Any) -> Any:
    """Convert a value to its option's type; what OmegaConf takes is allowed."""
    try:
        OmegaConf.update(_trial(schema), key, value)
        return OmegaConf.select(_trial(schema), key)
    except OmegaConfBaseException as error:
        names = kind.removeprefix("list of ").split("|") if "|" in kind else []
        one_of = f"{'some' if kind.startswith('list') else 'one'} of {', '.join(names)}"
        wanted = KIND_WORDS.get(kind, one_of if names else f"a {kind}")
        given = [str(one) for one in value] if isinstance(value, list) else [str(value)]
        wrong = next((one for one in given if one not in names), given[0] if given else "")
        is_word = value is None or isinstance(value, bool)
        shown = str(value).lower().replace("none", "null") if is_word else value
        raise UsageError(
            f"{key} must be {wanted}, got {shown}{nearest_value(wrong, names)}"
        ) from error


def _one_line(error: BaseException) -> str:
    if str(error).startswith("Error merging override") and error.__cause__:
        error = error.__cause__  # OmegaConf's message names value, type and key
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = full_key(lines)
    return f"{key}: {lines[0]}" if key and key not in lines[0] else lines[0]


def quote_values(schema: type, overrides: Sequence[str], *, lists: bool = True) -> list[str]:
    """Quote values from a shell for Hydra's grammar.

    Args:
        schema: A dataclass; its types tell which options are paths and which are lists.
        overrides: ``key=value``; paths may hold spaces and other special characters.
        lists: Also put a list such as ``3,17`` into brackets; Hydra would read it as a sweep.

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
    if not separator or value in ("", "null") or value[0] in ("'", '"'):
        return override
    if kind == "path":
        # Hydra keeps a backslash as it is, except before a quote, where each must be doubled.
        escaped = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + ('\\"' if m[2] else ""), value)
        return f'{key}="{escaped}"'
    is_bare_list = kind.startswith("list") and value[0] != "["
    return f"{key}=[{value}]" if lists and is_bare_list else override
