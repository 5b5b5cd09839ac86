"""``GROUP=FILE.yaml``: a preset of the user's own, such as ``policy=mine.yaml``.

The file holds fields of the group's dataclass, and may name the preset whose other values it
takes::

    base: moco_v2
    crop_scale: [0.3, 1.0]
    blur_probability: 0.0

Its values go into the run folder's ``config.yaml`` like those of any other preset, so a run resumes
only with equal values, wherever they come from.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fastmoco.errors import UsageError, nearest_name

SUFFIXES = (".yaml", ".yml")


def take_preset_files(
    groups: Mapping[str, Mapping[str, Any] | None], overrides: Sequence[str]
) -> list[str]:
    """Register the preset files that overrides name, and name them as Hydra will know them.

    Args:
        groups: Presets by group and name; files are taken where Python defines the presets.
        overrides: ``key=value``; a path may hold spaces, and a sweep several, parted by commas.

    Returns:
        The overrides, ``policy=a b/c.yaml`` become ``policy=a_b_c_yaml``.

    Raises:
        UsageError: If a file is missing or holds no preset; one line.
    """
    return [_taken(groups, override) for override in overrides]


def _taken(groups: Mapping[str, Mapping[str, Any] | None], override: str) -> str:
    key, _, value = override.partition("=")
    value, presets = _unquoted(value), groups.get(key)
    choices = [value] if Path(value).exists() else value.split(",")
    if presets is None or not any(choice.endswith(SUFFIXES) for choice in choices):
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
    """Read a preset's file.

    Args:
        group: Of the preset.
        path: The file.
        presets: Those that ``base`` may name, all of one dataclass.

    Returns:
        That dataclass, filled.

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
        raise UsageError(f"{path}: {lines[0]}{_at(lines)}") from error


def _at(lines: list[str]) -> str:
    keys = [line.split("full_key:")[1].strip() for line in lines if "full_key:" in line]
    return f" (key {keys[0]})" if keys and keys[0] else ""


def _read_mapping(group: str, path: Path, names: Sequence[str]) -> dict[Any, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(
            f"{group}={path}: no such file; presets without a file: {', '.join(names)}"
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: must hold `key: value` lines, such as `base: {names[0]}`")
    return values
