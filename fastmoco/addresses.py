"""Addresses of files elsewhere, ``https://`` and ``s3://``, as paths that keep both slashes.

Settings and functions take paths, and `pathlib` would shorten ``https://host`` to ``https:/host``.
"""

import functools
import re
from collections.abc import Sequence
from pathlib import Path, PosixPath
from typing import Any

from fastmoco.errors import UsageError

_ADDRESS = re.compile(r"(https?|s3):/+(?=[^/])")


class Address(PosixPath):
    """The address of a file elsewhere; make it by `as_path`. No such file exists on this disk."""

    def __str__(self) -> str:
        return _ADDRESS.sub(r"\1://", super().__str__())

    def __fspath__(self) -> str:
        return str(self)

    @property
    def scheme(self) -> str:
        """https, http or s3."""
        return str(self).partition(":")[0]


def as_path(given: str | Path) -> Path:
    """A path as it is, or an `Address` if it is one.

    Raises:
        UsageError: If an address has a user, a password, a key or a signature in it. Addresses are
            printed, logged and saved; the message repeats nothing of what is secret.
    """
    found = _ADDRESS.match(str(given))
    if not found:
        return Path(given)
    rest = str(given)[found.end() :]
    host = rest.partition("/")[0]
    if "@" in host or re.search("[?#]", rest):
        shown = re.split("[?#]", rest.removeprefix(host))[0]
        raise UsageError(
            f"{found[1]}://{host.rpartition('@')[2]}{shown}: was given with a user, password or "
            "?key; an address has none of these: ~/.netrc holds those of https, "
            "~/.aws/credentials or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY those of s3"
        )
    return Address(given)


def keep_addresses(config: Any, keys: Sequence[str]) -> None:
    """Make an `Address` of each path of a configuration that is one, in place.

    Args:
        config: Nested dataclasses.
        keys: Its options that are paths, with dots.

    Raises:
        UsageError: As `as_path`.
    """
    for key in keys:
        *sections, name = key.split(".")
        owner = functools.reduce(getattr, sections, config)
        path = getattr(owner, name)
        if path is not None and _ADDRESS.match(str(path)):
            setattr(owner, name, as_path(path))
