"""Where compiled code and fonts are cached if the usual folders cannot be written.

That is so in a container without a home folder, whose packages belong to another user. Imports
neither Numba nor torch: the command line calls `prepare_caches` before either is loaded.
"""

import fcntl
import glob
import hashlib
import os
import re
import stat
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar, cast

from fastmoco.version import __version__

F = TypeVar("F", bound=Callable[..., Any])

TORCH_LIBRARY = re.compile(r"([a-z2-7]{2})/(c\1[a-z2-7]{20,})(?:\.main)?\.so")
"""Names that torch gives to the libraries that it compiles; the second group is the key."""
HOME_FOLDERS = {"TRITON_CACHE_DIR": "~/.triton", "MPLCONFIGDIR": "~/.config/matplotlib"}
"""Variables that name a cache folder, and the folder that Triton or matplotlib uses without it."""


def private_folder() -> Path | None:
    """A folder below the temporary one, of this user and version of fastmoco.

    Cached code is executed, so nobody else may write there: the folder has mode 0700.

    Returns:
        The folder; None if it cannot be made, or is a link, another user's or open to others.
    """
    try:
        folder = Path(tempfile.gettempdir(), f"fastmoco-{os.geteuid()}-{__version__}")
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
    except OSError:
        return None
    is_private = stat.S_ISDIR(found.st_mode) and not stat.S_IMODE(found.st_mode) & 0o077
    return folder if is_private and found.st_uid == os.geteuid() else None


def kept_folder() -> Path | None:
    """Folder for small facts that outlast a restart: in the user's cache, else `private_folder`."""
    usual = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    if _can_be_made(usual):
        return Path(os.path.expanduser(usual), "fastmoco")
    return private_folder()


def prepare_caches() -> None:
    """Set the variables of cache folders for this process and its children, if the user did not.

    Torch's own default is named after the user, whom a container may not know, and may belong to
    somebody else. Those of Triton and matplotlib stay unless the home folder cannot be written.
    """
    lacking = [name for name, usual in HOME_FOLDERS.items() if not _can_be_made(usual)]
    for name in ("TORCHINDUCTOR_CACHE_DIR", *lacking):
        if name not in os.environ and (folder := private_folder()):
            os.environ[name] = str(folder / name.partition("_")[0].lower())


def remove_half_written(folder: Path) -> None:
    """Remove from torch's cache the libraries that a killed process left half-written.

    Torch takes every file that exists for a whole one: an empty library would make each later run
    eager, one that lacks its end would kill it. A library that another process links now is left
    alone, and so are files of other names: the folder may be of more than torch.
    """
    if sys.platform != "linux":  # others have other formats
        return
    for name in glob.iglob("??/c*.so", root_dir=folder):
        found, library = TORCH_LIBRARY.fullmatch(name), folder / name
        with suppress(OSError):  # another process links it or has removed it
            if found and not _is_whole(library):
                with _held(folder / "locks" / f"{found[2]}.lock"):
                    if not _is_whole(library):
                        library.unlink()


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """Hold the lock by which torch compiles a library.

    Raises:
        OSError: If another process holds it, or it cannot be made.
    """
    path.parent.mkdir(exist_ok=True)
    with path.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def _is_whole(library: Path) -> bool:
    """Whether an ELF file reaches to the end of its table of sections, which linkers put last."""
    with library.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or header[:4] != b"\x7fELF":
        return False
    (table,) = struct.unpack_from("<Q", header, 40)
    size, count = struct.unpack_from("<HH", header, 58)
    end: int = table + size * count
    return library.stat().st_size >= end > len(header)


def _can_be_made(path: str) -> bool:
    """Whether a folder is writable, or can be made."""
    folder = Path(os.path.expanduser(path))
    if not folder.is_absolute():  # HOME is not set, and the system does not know this user
        return False
    existing = next(one for one in (folder, *folder.parents) if os.path.exists(one))
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


def cached_njit(*, fastmath: bool = False) -> Callable[[F], F]:
    """`numba.njit` without the GIL, whose machine code is kept on the disk.

    Numba tries ``NUMBA_CACHE_DIR``, ``__pycache__`` beside the module and the user's cache folder.
    If it can write to none of them, the code is kept in `private_folder`, or else compiled again in
    each process. Numba compiles again when the function's file has changed, but not when that of a
    function that it calls has, whose code it contains; so the name says which code that is. Called
    functions must be defined above.
    """

    def decorate(function: F) -> F:
        import numba

        function.__qualname__ += f"_{_called_code(function)}"
        try:
            return _njit(function, fastmath=fastmath, cache=True)
        except RuntimeError:  # Numba found no folder
            config: Any = numba.config
            config.CACHE_DIR = str(private_folder() or "")
        try:
            return _njit(function, fastmath=fastmath, cache=True)
        except RuntimeError:
            return _njit(function, fastmath=fastmath)

    return decorate


def _called_code(function: Callable[..., Any]) -> str:
    """Digest of the compiled functions and the whole numbers that a function uses."""
    digest = hashlib.sha256()
    for name in function.__code__.co_names:
        used = function.__globals__.get(name)
        if called := getattr(used, "py_func", None):
            file = Path(called.__code__.co_filename)
            content = file.read_bytes() if file.exists() else called.__code__.co_code
            used = called.__qualname__, hashlib.sha256(content).hexdigest()
        if isinstance(used, int | tuple):
            digest.update(f"{name} {used}".encode())
    return digest.hexdigest()[:8]


def _njit(function: F, **options: bool) -> F:
    import numba

    njit: Any = numba.njit  # noqa: TID251
    return cast("F", njit(nogil=True, **options)(function))
