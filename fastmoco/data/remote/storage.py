"""What is elsewhere, by fsspec: which objects there are, in which version, and their bytes.

fsspec's errors become one line each, without the addresses that servers redirect to: those of
object stores hold signatures.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self
from urllib.parse import unquote

from fastmoco.addresses import Address
from fastmoco.errors import UsageError, first_line, without_secrets

TIMEOUT_SECONDS = 30.0
"""Longest silence of a server, while connecting and while reading."""
PACKAGES = {"http": "aiohttp", "https": "aiohttp", "s3": "s3fs"}
"""What fsspec needs for a scheme."""
DENIED = (401, 403)
MISSING = (404, 410)


class RemoteError(OSError):
    """Something elsewhere cannot be used; one line says what, why and what to do."""


class UnreachableError(RemoteError):
    """A server does not answer, or not completely; a later attempt may succeed."""

    reason: str

    @classmethod
    def of(cls, address: Any, reason: str) -> Self:
        """The error for an address."""
        error = cls(
            f"{address}: cannot be read ({reason}); check the connection and give the same command "
            "again, which continues where it stopped"
        )
        error.reason = reason
        return error


class DeniedError(RemoteError):
    """A server wants other credentials, or any."""


@dataclass(frozen=True, slots=True)
class RemoteObject:
    """An object as a server describes it."""

    address: Address
    num_bytes: int | None
    """Its length; None if the server does not say."""
    version: str
    """Hash of the length and the ETag, or without one the time of the last change."""
    has_ranges: bool = True
    """False if the server says that it sends no parts of it."""


def check_packages(scheme: str) -> None:
    """Check that what reads a scheme is installed; it is not imported.

    Raises:
        UsageError: If it is not.
    """
    package = PACKAGES[scheme]
    if find_spec(package) is None:
        raise UsageError(f"{scheme}:// needs {package}; install it: pip install {package}")


class Storage:
    """A connection to what an address is on; any number of threads may use it.

    Credentials are those of ``~/.netrc`` for https, and those that AWS's own tools use for s3;
    without any, s3 is read as the public.
    """

    def __init__(self, scheme: str) -> None:
        """Connect nothing yet.

        Args:
            scheme: A key of `PACKAGES`.

        Raises:
            UsageError: If a package is missing.
        """
        check_packages(scheme)
        self.scheme = scheme
        self.is_public = False
        self._in_parts: set[Path] = set()  # folders of which a file was read in parts
        self._files: Any = self._of_s3() if scheme == "s3" else _of_http()

    def _of_s3(self) -> Any:
        import s3fs
        from botocore.exceptions import BotoCoreError
        from botocore.session import get_session

        try:
            self.is_public = get_session().get_credentials() is None
        except BotoCoreError as error:  # an unknown profile, a broken file
            raise UsageError(
                f"S3's credentials cannot be read: {error}; correct AWS_PROFILE or ~/.aws"
            ) from error
        limits = {"connect_timeout": TIMEOUT_SECONDS, "read_timeout": TIMEOUT_SECONDS}
        return s3fs.S3FileSystem(
            anon=self.is_public,
            config_kwargs=limits,
            use_listings_cache=False,
            skip_instance_cache=True,
        )

    def look(self, address: Address) -> RemoteObject:
        """Ask for the present state of an object.

        Raises:
            FileNotFoundError: If there is none.
            DeniedError: If it may not be read.
            UnreachableError: If the server does not answer.
        """
        with self._explained(address):
            info = self._files.info(str(address))
        size = info.get("size")
        marks = (info.get(key) for key in ("ETag", "Last-Modified", "LastModified"))
        version = hashlib.sha256(f"{size} {next(filter(None, marks), '')}".encode()).hexdigest()
        return RemoteObject(address, size, version, info.get("partial", True) is not False)

    def matching(self, pattern: Address) -> list[str]:
        """Names of the objects beside a pattern that match it, sorted; [] without a listing.

        Raises:
            DeniedError: If they may not be listed.
            UnreachableError: If the server does not answer.
        """
        folder = str(pattern.parent)
        try:
            with self._explained(pattern.parent):
                found = self._files.ls(folder if self.scheme == "s3" else f"{folder}/", False)
        except FileNotFoundError:
            return []
        names = {unquote(name.rstrip("/").rpartition("/")[2]) for name in found}
        return sorted(name for name in names if fnmatchcase(name, pattern.name))

    def ranges(self, address: Address, bounds: Sequence[tuple[int, int]]) -> list[bytes]:
        """Read parts (start, end) of an object at the same time.

        Returns:
            The parts up to the first that could not be read: at least one.

        Raises:
            UnreachableError, DeniedError, FileNotFoundError: If none could be read.
        """
        starts, ends = [start for start, _ in bounds], [end for _, end in bounds]
        with self._explained(address):
            found = self._files.cat_ranges([str(address)] * len(bounds), starts, ends)
        parts: list[bytes] = []
        for (start, end), part in zip(bounds, found, strict=True):
            if isinstance(part, bytes) and len(part) == end - start:
                parts.append(part)
            elif parts:
                break
            else:
                with self._explained(address):
                    if isinstance(part, BaseException):
                        raise part
                    raise ConnectionError(f"got {len(part):,} bytes for {end - start:,}")
        return parts

    def sends_ranges(self, known: RemoteObject) -> bool:
        """Whether an object can be read in parts, asked by reading its last byte.

        The server is asked once for the objects of a folder, unless it says no.

        Raises:
            UnreachableError, DeniedError, FileNotFoundError: If that fails for another reason.
        """
        if self.scheme == "s3":
            return True
        if not known.has_ranges or not known.num_bytes or known.num_bytes < 2:
            return False
        if known.address.parent in self._in_parts:
            return True
        size = known.num_bytes
        options = {"block_size": 1, "cache_type": "none", "size": size}
        with self._explained(known.address):
            with self._files.open(str(known.address), "rb", **options) as file:
                file.seek(size - 1)
                try:
                    found = len(file.read(1)) == 1
                except ValueError:  # fsspec's answer to a server that sends all of it instead
                    return False
        if found:
            self._in_parts.add(known.address.parent)
        return found

    def stream(self, address: Address, part_bytes: int = 1 << 20) -> Iterator[bytes]:
        """Read an object from its beginning to its end; only for https.

        Raises:
            UnreachableError, DeniedError, FileNotFoundError: If it ends early.
        """
        with self._explained(address):
            file = self._files.open(str(address), "rb", block_size=0)
        with file:
            while True:
                with self._explained(address):
                    part: bytes = file.read(part_bytes)
                if not part:
                    return
                yield part

    @contextmanager
    def _explained(self, address: Any) -> Iterator[None]:
        """Turn the errors of fsspec and of what it uses into ours."""
        try:
            yield
        except RemoteError:
            raise
        except _errors_of(PACKAGES[self.scheme]) as error:
            raise self._translated(error, address) from error

    def _translated(self, error: BaseException, address: Any) -> OSError:
        cause = error
        if isinstance(error, FileNotFoundError) and error.__cause__ and self.scheme != "s3":
            cause = error.__cause__  # fsspec's `info` calls every failure over http so
        status = getattr(cause, "status", None)
        if status in MISSING or (isinstance(cause, FileNotFoundError) and status is None):
            return FileNotFoundError(f"{address}: no such file there; correct the address")
        if status in DENIED or isinstance(cause, PermissionError):
            return DeniedError(f"{address}: access denied; {self._credentials_advice()}")
        if type(cause).__name__ in ("NoCredentialsError", "PartialCredentialsError"):
            return DeniedError(f"{address}: credentials missing; {self._credentials_advice()}")
        return UnreachableError.of(address, _reason(cause, status))

    def _credentials_advice(self) -> str:
        if self.scheme != "s3":
            return "put the server's user and password into ~/.netrc"
        found = "none were found: " if self.is_public else "those that were found do not fit: "
        return f"{found}set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"


def _of_http() -> Any:
    import aiohttp
    from fsspec.implementations.http import HTTPFileSystem

    timeout = aiohttp.ClientTimeout(
        total=None, sock_connect=TIMEOUT_SECONDS, sock_read=TIMEOUT_SECONDS
    )
    return HTTPFileSystem(
        client_kwargs={"timeout": timeout, "trust_env": True},  # ~/.netrc, and proxies
        headers={"Accept-Encoding": "identity"},
        skip_instance_cache=True,
    )


@cache
def _errors_of(package: str) -> tuple[type[Exception], ...]:
    """What reading may raise."""
    if package == "aiohttp":
        import aiohttp

        return OSError, TimeoutError, aiohttp.ClientError
    import aiohttp
    from botocore.exceptions import BotoCoreError, ClientError

    return OSError, TimeoutError, aiohttp.ClientError, BotoCoreError, ClientError


def _reason(error: BaseException, status: int | None) -> str:
    """Why a server's answer is of no use."""
    if status is not None:
        return f"HTTP {status}"
    if isinstance(error, TimeoutError) or "Timeout" in type(error).__name__:
        return f"no answer for {TIMEOUT_SECONDS:g} s"
    if isinstance(inner := getattr(error, "os_error", None), OSError):  # of aiohttp
        number = inner.errno or 0  # below 0 for names that are not found
        return (os.strerror(number) if number > 0 else str(inner.strerror or inner)).lower()
    return without_secrets(first_line(error))
