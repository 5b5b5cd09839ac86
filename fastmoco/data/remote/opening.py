"""From an address to an open dataset: its files are asked for, brought to the cache and opened."""

import time
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

from fastmoco.addresses import Address
from fastmoco.data.beton import BetonError, BetonFile
from fastmoco.data.beton_set import OTHER_FILES, BetonSet
from fastmoco.data.progress import show_progress
from fastmoco.data.remote.arrivals import Arrivals
from fastmoco.data.remote.cache import CachedSet, DataCache
from fastmoco.data.remote.fetch import Advance, fetch, patiently
from fastmoco.data.remote.index import bring_index
from fastmoco.data.remote.storage import (
    DeniedError,
    RemoteError,
    RemoteObject,
    Storage,
    UnreachableError,
    check_packages,
)
from fastmoco.data.remote.streamed import StreamedSet
from fastmoco.data.shards import check_shards, counted_shards
from fastmoco.errors import UsageError
from fastmoco.files import allow_open_files
from fastmoco.ranks import environment_ranks
from fastmoco.waiting import waiting

LOOKS = 3
"""Attempts to ask for the state of what is not in the cache."""
THREADS = 16
"""Objects that are asked for at the same time."""


def check_address(address: Address) -> None:
    """Check what an address names, and that the packages to read it are installed.

    Raises:
        UsageError: If it is no dataset file or pattern of shards, or a package is missing.
    """
    if not address.name.endswith(".beton") or "*" in str(address.parent):
        raise UsageError(
            f"{address}: names no dataset file; from elsewhere only .beton files are read, one "
            "such as train.beton, or shards such as train-*.beton"
        )
    check_packages(address.scheme)


def open_remote(address: Address) -> BetonFile | BetonSet:
    """Bring the files of a set to the cache, unless they are there, and open them.

    Of `CachedSet.is_streamed` only the indexes are brought; shards come when they are read.
    The present state is asked for each time. Without an answer, files that are here are used, with
    a warning. Processes that ask for the same set wait for the first of them.

    Args:
        address: A file, or a pattern of shards.

    Raises:
        UsageError: If it is no such address, a package is missing or a variable is wrong.
        FileNotFoundError: If there is no such file.
        RemoteError: If it cannot be read, changes meanwhile, or has no room here.
        BetonError: If a file is damaged.
        ValueError: If shards are missing.
        OSError: If the disk fails.
    """
    check_address(address)
    cache = DataCache.of_environment()
    storage = Storage(address.scheme)
    wanted = _wanted(storage, cache, address)
    if wanted.is_streamed:
        return _streamed(storage, cache, wanted, address)
    with cache.used(wanted):
        _fill(storage, wanted, address)
        return _opened(address, wanted)


def _wanted(storage: Storage, cache: DataCache, address: Address) -> CachedSet:
    """The set in its present state, or in that of the last use if the server does not answer."""
    former = cache.former(address)
    attempts = 1 if former else LOOKS
    try:
        with waiting(f"asking for {address}"):
            wanted = cache.set_of(_present(storage, address, attempts))
    except UnreachableError as error:
        if former is None or former.missing:  # another process may have removed it meanwhile
            raise
        warnings.warn(
            f"{address}: no answer, so the files fetched {_age(former)} are used without asking "
            f"whether they changed there ({error.reason})",
            stacklevel=3,
        )
        return former
    if former and wanted.missing and former.folder != wanted.folder and not former.missing:
        warnings.warn(
            f"{address}: changed since it was fetched {_age(former)}; it is fetched again, and "
            f"what it was stays in {former.folder} while there is room",
            stacklevel=3,
        )
    return wanted


def _present(storage: Storage, address: Address, attempts: int) -> list[RemoteObject]:
    """The present state of each file."""

    def look(one: Address) -> RemoteObject:
        return patiently(lambda: storage.look(one), attempts)

    first, *others = _addresses(storage, address, attempts)
    found = look(first)  # alone: where the server is lost, only one waits for it
    with ThreadPoolExecutor(THREADS) as pool:
        return [found, *pool.map(look, others)]


def _addresses(storage: Storage, address: Address, attempts: int) -> list[Address]:
    """The addresses of all files.

    Raises:
        UsageError: If a pattern needs a listing, and there is none.
        DeniedError: If a pattern needs a listing, and may not read it.
        ValueError: If shards are missing.
    """
    if "*" not in address.name:
        return [address]
    names = counted_shards(address)
    if not names:
        try:
            names = patiently(lambda: storage.matching(address), attempts)
        except DeniedError as error:
            raise DeniedError(
                f"{error}; if only their list is denied, say how many files there are, as in "
                "train-*-of-00008.beton, which needs none"
            ) from error
        if not names:
            raise UsageError(
                f"{address}: {address.parent} lists no such files; if they are there, say how many "
                "they are, as in train-*-of-00008.beton, which needs no listing"
            )
        check_shards(address, names)
    return [Address(address.with_name(name)) for name in names]


def _streamed(
    storage: Storage, cache: DataCache, wanted: CachedSet, address: Address
) -> StreamedSet:
    """Bring the indexes of shards to the cache, and open them."""
    allow_open_files(len(wanted.objects) + OTHER_FILES)
    with ExitStack() as kept:
        kept.enter_context(cache.used(wanted, makes_room=False))
        if missing := wanted.missing:
            asked = min(missing, key=lambda one: one.num_bytes or 0)  # one without a length, if any
            if not patiently(lambda: storage.sends_ranges(asked)):
                with cache.used(wanted):
                    _fill(storage, wanted, address)
        if any(not wanted.index(one).exists() for one in wanted.objects):
            with suppress(PermissionError):  # a complete set of somebody else has its own
                _bring_indexes(storage, wanted, address)
        arrivals = Arrivals(storage, cache, wanted)
        return StreamedSet(address, wanted, arrivals, kept.pop_all())


def _bring_indexes(storage: Storage, wanted: CachedSet, address: Address) -> None:
    with waiting(f"reading the index of {address}"), wanted.filling():
        lacking = [one for one in wanted.objects if not wanted.index(one).exists()]
        with ThreadPoolExecutor(THREADS) as pool:
            for _ in pool.map(lambda one: bring_index(storage, one, wanted), lacking):
                pass


def _fill(storage: Storage, wanted: CachedSet, address: Address) -> None:
    if not wanted.missing:
        return
    with _shown(wanted, address) as advance, wanted.filling():
        for known in wanted.missing:  # another process may have brought some meanwhile
            fetch(storage, known, wanted, advance)


@contextmanager
def _shown(wanted: CachedSet, address: Address) -> Iterator[Advance]:
    """Show on the first rank how much has come."""
    total = sum(known.num_bytes or 0 for known in wanted.missing)
    if not environment_ranks().is_first:
        yield lambda _: None
        return
    with show_progress(total // 1_000_000, noun="MB", title=f"fetching {address}") as show:
        done = 0

        def advance(num_bytes: int) -> None:
            nonlocal done
            before, done = done, done + num_bytes
            show(done // 1_000_000 - before // 1_000_000, num_bytes)

        yield advance


def _opened(address: Address, wanted: CachedSet) -> BetonFile | BetonSet:
    """Open the files, which then stay in the cache until they are closed."""
    with ExitStack() as opened:
        files = []
        for path in wanted.paths:
            try:
                files.append(opened.enter_context(BetonFile.open(path)))
            except BetonError as error:
                path.unlink()
                raise RemoteError(
                    f"{path}: was sound when it was fetched and is damaged now, so it is removed "
                    "from the cache; give the same command again, which fetches it"
                ) from error
            files[-1].hold()
        dataset = BetonSet(address, files) if "*" in address.name else files[0]
        dataset.path = address
        opened.pop_all()
    return dataset


def _age(former: CachedSet) -> str:
    """When a set was fetched."""
    when = max(path.stat().st_mtime for path in former.paths)
    return time.strftime("on %Y-%m-%d at %H:%M", time.localtime(when))
