"""The options of a configuration's schema: name, kind and help."""

import ast
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints


def describe(schema: Any, prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Yield ``(key, kind, help)`` for every option of a schema; dots join nested keys.

    The help is the string literal under the field. The kind is the type in a user's words.
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
    if get_origin(hint) in (list, tuple):
        return f"list of {_kind(get_args(hint)[0])}"
    return {Path: "path", bool: "true|false", str: "text"}.get(
        hint, getattr(hint, "__name__", str(hint))
    )


@cache
def _field_docs(schema: type) -> dict[str, str]:
    """Read the string literals under a dataclass's fields from its source: Python drops them.

    Literals of inherited dataclasses are included.
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
