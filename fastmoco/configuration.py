"""From presets (``configs/``) and ``key=value`` overrides to the schema's dataclasses.

`load_config` is the one door: it composes by Hydra and returns plain dataclasses; a ``DictConfig``
never passes it.
"""

import ast
import inspect
import json
import re
import textwrap
from collections.abc import Iterator, Sequence
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

from fastmoco.data.settings import ConvertConfig
from fastmoco.detection.settings import DetectConfig
from fastmoco.errors import nearest_name
from fastmoco.evaluate.settings import (
    EvaluateConfig,
    FinetuneConfig,
    KnnConfig,
    LinearConfig,
    NoiseTableConfig,
)
from fastmoco.interop.settings import EmbedConfig, ExportConfig, ImportConfig, NeighborsConfig
from fastmoco.labeling.settings import FeatureMapsConfig, MergeLabelsConfig, RequestConfig
from fastmoco.pipelines.policies import POLICIES
from fastmoco.preset_files import take_policy_files
from fastmoco.reproduce.settings import SweepConfig, SweepTableConfig
from fastmoco.schema import TrainConfig, UsageError, ViewsConfig

T = TypeVar("T")

HELP_WIDTH, HELP_INDENT = 100, 36  # columns
CONFIG_FOLDER = Path(__file__).parent / "configs"

# Groups of presets that a command chooses from.
GROUPS: dict[type, tuple[str, ...]] = {
    TrainConfig: ("experiment", "policy"),
    ViewsConfig: ("policy",),
    LinearConfig: ("protocol", "policy"),
    FinetuneConfig: ("policy",),
    DetectConfig: ("recipe",),
}

CONFIG_NAMES: dict[type, str] = {
    TrainConfig: "train",
    ViewsConfig: "views",
    KnnConfig: "knn",
    LinearConfig: "linear",
    FinetuneConfig: "finetune",
    EvaluateConfig: "evaluate",
    NoiseTableConfig: "noise_table",
    EmbedConfig: "embed",
    NeighborsConfig: "neighbors",
    ConvertConfig: "convert",
    ExportConfig: "export",
    ImportConfig: "import",
    DetectConfig: "detect",
    RequestConfig: "request",
    MergeLabelsConfig: "merge_labels",
    FeatureMapsConfig: "feature_maps",
    SweepConfig: "sweep",
    SweepTableConfig: "sweep_table",
}


@cache
def register_schemas() -> None:
    """Tell Hydra the schema of each command, and the policies that Python defines; once."""
    store = ConfigStore.instance()
    store.store(name="train_schema", node=TrainConfig)
    store.store(name="views_schema", node=ViewsConfig)
    store.store(name="knn", node=KnnConfig)
    store.store(name="linear_schema", node=LinearConfig)
    store.store(name="finetune_schema", node=FinetuneConfig)
    store.store(name="evaluate", node=EvaluateConfig)
    store.store(name="noise_table", node=NoiseTableConfig)
    store.store(name="embed", node=EmbedConfig)
    store.store(name="neighbors", node=NeighborsConfig)
    store.store(name="convert", node=ConvertConfig)
    store.store(name="export", node=ExportConfig)
    store.store(name="import", node=ImportConfig)
    store.store(name="detect_schema", node=DetectConfig)
    store.store(name="request", node=RequestConfig)
    store.store(name="merge_labels", node=MergeLabelsConfig)
    store.store(name="feature_maps", node=FeatureMapsConfig)
    store.store(name="sweep", node=SweepConfig)
    store.store(name="sweep_table", node=SweepTableConfig)
    for name, policy in POLICIES.items():
        store.store(group="policy", name=name, node=policy)


def preset_names(group: str) -> list[str]:
    """Names that ``group=NAME`` may take."""
    if group == "policy":
        return sorted(POLICIES)
    return sorted(path.stem for path in (CONFIG_FOLDER / group).glob("*.yaml"))


def load_config(schema: type[T], overrides: Sequence[str] = ()) -> T:
    """Compose a command's configuration.

    Args:
        schema: A key of `CONFIG_NAMES`.
        overrides: ``key=value`` in Hydra's grammar, later ones win.

    Returns:
        The schema's dataclass, filled.

    Raises:
        UsageError: If a key, a preset or a value is not one that the schema knows; one line.
    """
    overrides = take_policy_files(overrides)
    check_overrides(schema, overrides)
    register_schemas()
    try:
        with initialize_config_module("fastmoco.configs", version_base="1.3"):
            composed = compose(CONFIG_NAMES[schema], list(overrides))
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
    groups = GROUPS.get(schema, ())
    known = [key for key, _, _ in describe(schema)]
    for override in parsed:
        key = override.key_or_group
        if key in groups:
            for choice in _choices(override):
                _check_choice(key, choice, preset_names(key))
        elif key not in known and not (schema is TrainConfig and key.startswith("hydra")):
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
    if choice not in [*allowed, *registered, "null", "None"]:  # registered: also policy files
        hint = nearest_name(choice, allowed)
        if group == "experiment" and choice in preset_names("sweep"):
            hint = f"; it is several runs: fastmoco sweep {choice}"
        raise UsageError(f"unknown {group}={choice}{hint}")


def _one_line(error: BaseException) -> str:
    if str(error).startswith("Error merging override") and error.__cause__:
        error = error.__cause__  # OmegaConf's own words: the value, the type and the key
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    key = next(
        (line.removeprefix("full_key: ") for line in lines if line.startswith("full_key: ")), None
    )
    return f"{key}: {lines[0]}" if key and key not in lines[0] else lines[0]


def quote_paths(schema: Any, overrides: Sequence[str]) -> list[str]:
    """Put paths as a shell gives them into Hydra's grammar, whatever spaces and the like they hold.

    Raises:
        UsageError: If a policy file is missing or is no policy.
    """
    path_keys = {key for key, kind, _ in describe(schema) if kind == "path"}
    return [_quoted(override, path_keys) for override in take_policy_files(overrides)]


def _quoted(override: str, path_keys: set[str]) -> str:
    key, separator, value = override.partition("=")
    if not separator or key not in path_keys or value in ("", "null") or value[0] in "'\"":
        return override
    # Hydra reads a backslash as one but before a quote, where each backslash is doubled.
    escaped = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + ('\\"' if m[2] else ""), value)
    return f'{key}="{escaped}"'


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
    for group in GROUPS.get(schema, ()):
        notes = [f"{group}=NAME: {', '.join(preset_names(group))}"]
        if group == "policy":
            notes.append(
                "policy=FILE.yaml: your own, `key: value` lines of the keys above without policy.; "
                "`base: NAME` takes the rest from that one"
            )
        for note in notes:
            lines += textwrap.wrap(note, HELP_WIDTH, subsequent_indent="    ")
    return lines
