"""Converts again and again, each time cut short at another instant; a script for one process.

It reads a request as JSON from stdin and writes a line of JSON for each instant. Each try runs in a
fork, so that what all share is imported once. The instants are counted in calls to the operating
system, like SQLite's tests of a failing disk: nothing depends on the clock.
"""

import errno
import hashlib
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fastmoco.data import conversion, holdout
from fastmoco.data.convert import ConvertConfig, Encoding, convert

CALLS = ("open", "pwrite", "pwritev", "fsync", "replace", "ftruncate", "unlink")
NO_SPACE = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def main() -> None:
    request = json.load(sys.stdin)
    conversion.RECORD_SECONDS = holdout.RECORD_SECONDS = 0.0  # a record each batch, not each second
    share = request.get("holdout", 0.0)
    options = ConvertConfig(encoding=Encoding.raw, workers=1, page_bytes=1 << 21, holdout=share)
    source, target = request["source"], Path(request["target"])
    for kind, number in request["instants"]:
        for path in target.parent.iterdir():
            path.unlink()
        for name, text in request["old"].items():
            (target.parent / name).write_bytes(bytes.fromhex(text))
        first = _in_a_fork(source, target, options, kind, number)
        after = hashes(target.parent)
        second = _in_a_fork(source, target, options, "", 0)
        report = {"first": first, "after": after, "second": second, "end": hashes(target.parent)}
        sys.stdout.write(json.dumps({"kind": kind, "number": number, **report}) + "\n")


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of each file of a folder."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def _in_a_fork(
    source: str, target: Path, options: ConvertConfig, kind: str, number: int
) -> dict[str, Any]:
    """One conversion in a child; what became of it."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        counted = _arm(kind, number)
        try:
            summary = convert(source, target, options)
            result: dict[str, Any] = {"resumed": summary.num_resumed, "calls": counted}
        except OSError as error:
            result = {"error": str(error), "errno": error.errno}
        os.write(writing, json.dumps(result).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    return {"killed": os.WIFSIGNALED(status), **json.loads(text or "{}")}


def _arm(kind: str, number: int) -> dict[str, int]:
    """Makes the ``number``-th call fail in a way, or the disk end after that many bytes.

    Args:
        kind: ``before``, ``after`` or ``torn`` (half of a write): killed there. ``fails``: that
            call finds no space. ``bytes``: writes find no space beyond so many bytes.
        number: Of the call, from 1; or bytes.

    Returns:
        How many calls and bytes there were, counted on.
    """
    counted = {"calls": 0, "bytes": 0}

    def wrap(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            if name == "open" and not args[1] & os.O_CREAT:
                return real(*args, **options)
            if name == "pwritev":  # the same as one write, which may end in the middle
                descriptor, parts, place = args
                return os.pwrite(descriptor, b"".join(parts), place)
            counted["calls"] += 1
            hit = counted["calls"] == number and kind != "bytes"
            if hit and kind == "fails":
                raise NO_SPACE
            if hit and kind == "torn" and name == "pwrite":
                descriptor, data, place = args
                real(descriptor, bytes(data)[: len(data) // 2], place)
            if hit and kind in ("before", "torn"):
                os.kill(os.getpid(), signal.SIGKILL)
            if name == "pwrite":
                args = _limited(args, number - counted["bytes"]) if kind == "bytes" else args
                counted["bytes"] += len(args[1])
            try:
                return real(*args, **options)
            finally:
                if hit and kind == "after":
                    os.kill(os.getpid(), signal.SIGKILL)

        return call

    for name in CALLS:
        setattr(os, name, wrap(name, getattr(os, name)))
    return counted


def _limited(args: tuple[Any, ...], left: int) -> tuple[Any, ...]:
    """A write of what fits on the disk, as the system does it; where nothing fits, it fails."""
    descriptor, data, place = args
    if left <= 0:
        raise NO_SPACE
    return descriptor, bytes(data)[:left], place


if __name__ == "__main__":
    main()
