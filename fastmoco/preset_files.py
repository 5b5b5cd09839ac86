"""``GROUP=FILE.yaml``: a preset of the user's own, such as ``policy=mine.yaml``.

The file sets fields of the group's dataclass. It may name a preset as the base of all other
fields::

    base: moco_v2
    crop_scale: [0.3, 1.0]
    blur_probability: 0.0

The run folder's ``config.yaml`` stores the values, as for any other preset. So a run resumes only
with equal values, wherever they come from.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fastmoco.errors import UsageError, nearest_name
from fastmoco.files import regular_file
from fastmoco.parsing import read_yaml

SUFFIXES = (".yaml", ".yml")

Groups = Mapping[str, Mapping[str, Any] | None]


def take_preset_files(groups: Groups, overrides: Sequence[str]) -> list[str]:
    """Register the preset files in overrides with Hydra, and replace their paths by Hydra's names.

    Args:
        groups: Presets by group and name; files are accepted for groups that Python defines.
        overrides: ``key=value``; a path may hold spaces, a sweep holds several, joined by commas.

    Returns:
        The overrides; ``policy=a b/c.yaml`` becomes ``policy=a_b_c_yaml``.

    Raises:
        UsageError: If a file is missing or holds no preset; one line.
    """
    return [_taken(groups, override) for override in overrides]


def _taken(groups: Groups, override: str) -> str:
    key, _, value = override.partition("=")
    value, presets = _unquoted(value), groups.get(key)
    if presets is None:
        return override
    choices = [value] if Path(value).exists() else value.split(",")
    if not any(choice.endswith(SUFFIXES) for choice in choices):
        return override
    return f"{key}=" + ",".join(
        _registered(key, Path(choice), presets) if choice.endswith(SUFFIXES) else choice
        for choice in choices
    )


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def _registered(group: str, path: Path, presets: Mapping[str, Any]) -> str:
    name = re.sub(r"\W+", "_", str(path)).strip("_")
    ConfigStore.instance().store(group=group, name=name, node=read_preset(group, path, presets))
    return name


def read_preset(group: str, path: Path, presets: Mapping[str, Any]) -> Any:
    """Read a preset from a file.

    Args:
        group: The preset's group, for messages.
        path: The file.
        presets: Presets that ``base`` may name, all of one dataclass.

    Returns:
        An instance of that dataclass.

    Raises:
        UsageError: If the file is missing, is no yaml, or holds a key or value that the dataclass
            does not know.
    """
    values = _read_mapping(group, path, sorted(presets))
    base = str(values.pop("base", ""))
    if base and base not in presets:
        raise UsageError(f"{path}: unknown base: {base}{nearest_name(base, sorted(presets))}")
    schema = type(next(iter(presets.values())))
    known = [item.name for item in fields(schema)]
    for key in values:
        if key not in known:
            raise UsageError(f"{path}: unknown key {key}{nearest_name(str(key), [*known, 'base'])}")
    typed = OmegaConf.structured(presets[base] if base else schema())
    try:
        return OmegaConf.to_object(OmegaConf.merge(typed, values))
    except (OmegaConfBaseException, ValueError) as error:
        lines = str(error.__cause__ or error).strip().splitlines()
        key = full_key(lines)
        raise UsageError(f"{path}: {lines[0]}{f' (key {key})' if key else ''}") from error


def full_key(lines: Sequence[str]) -> str:
    """Key that the lines of an OmegaConf error name, or ``""``."""
    keys = (line.partition("full_key:")[2].strip() for line in lines if "full_key:" in line)
    return next(keys, "")


def _read_mapping(group: str, path: Path, names: Sequence[str]) -> dict[Any, Any]:
    try:
        values = read_yaml(regular_file(path))
    except FileNotFoundError as error:
        raise UsageError(
            f"{group}={path}: no such file; built-in presets: {', '.join(names)}"
        ) from error
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: must hold `key: value` lines, such as `base: {names[0]}`")
    return values
