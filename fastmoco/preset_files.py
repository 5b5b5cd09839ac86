"""``policy=FILE.yaml``: an augmentation policy of the user's own.

The file holds fields of `Policy`, and may name the policy whose other values it takes::

    base: moco_v2
    crop_scale: [0.3, 1.0]
    blur_probability: 0.0

Its values go into the run folder's ``config.yaml`` like those of any other policy, so a run resumes
only with equal values, wherever they come from.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fastmoco.errors import nearest_name
from fastmoco.pipelines.policies import POLICIES, Policy
from fastmoco.schema import UsageError

SUFFIXES = (".yaml", ".yml")


def take_policy_files(overrides: Sequence[str]) -> list[str]:
    """Register the policy files that overrides name, and name them as Hydra will know them.

    Args:
        overrides: ``key=value``; a path may hold spaces, and a sweep several, parted by commas.

    Returns:
        The overrides, ``policy=a b/c.yaml`` become ``policy=a_b_c_yaml``.

    Raises:
        UsageError: If a file is missing or is no policy; one line.
    """
    return [_taken(override) for override in overrides]


def _taken(override: str) -> str:
    key, _, value = override.partition("=")
    value = _unquoted(value)
    choices = [value] if Path(value).exists() else value.split(",")
    if key != "policy" or not any(choice.endswith(SUFFIXES) for choice in choices):
        return override
    return "policy=" + ",".join(
        _registered(Path(choice)) if choice.endswith(SUFFIXES) else choice for choice in choices
    )


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"" else value


def _registered(path: Path) -> str:
    name = re.sub(r"\W+", "_", str(path)).strip("_")
    ConfigStore.instance().store(group="policy", name=name, node=read_policy(path))
    return name


def read_policy(path: Path) -> Policy:
    """Read a policy file.

    Raises:
        UsageError: If it is missing, is no yaml, or holds a key or value that `Policy` does not
            know.
    """
    values = _read_mapping(path)
    base = str(values.pop("base", ""))
    if base and base not in POLICIES:
        raise UsageError(f"{path}: unknown base: {base}{nearest_name(base, sorted(POLICIES))}")
    known = list(Policy.__slots__)
    for key in values:
        if key not in known:
            raise UsageError(f"{path}: unknown key {key}{nearest_name(str(key), [*known, 'base'])}")
    typed = OmegaConf.structured(POLICIES[base] if base else Policy())
    try:
        policy = OmegaConf.to_object(OmegaConf.merge(typed, values))
    except (OmegaConfBaseException, ValueError) as error:
        lines = str(error.__cause__ or error).strip().splitlines()
        raise UsageError(f"{path}: {lines[0]}{_at(lines)}") from error
    assert isinstance(policy, Policy)
    return policy


def _at(lines: list[str]) -> str:
    keys = [line.split("full_key:")[1].strip() for line in lines if "full_key:" in line]
    return f" (key {keys[0]})" if keys and keys[0] else ""


def _read_mapping(path: Path) -> dict[Any, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        names = ", ".join(sorted(POLICIES))
        raise UsageError(f"policy={path}: no such file; names without a file: {names}") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise UsageError(f"{path}: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise UsageError(f"{path}: is no list of `key: value` lines, such as `base: moco_v2`")
    return values
