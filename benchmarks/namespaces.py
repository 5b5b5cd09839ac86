"""A network of several machines on one: network namespaces, joined by a bridge, each with a rate.

Both directions of each link pass a token bucket (``tc tbf``). The bridge has a namespace of its
own, so nothing of this machine's own network changes, and all of it is gone when the block ends.
Left out: latency and loss, for which a kernel needs ``netem``.
"""

import os
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

BURST = "256kb"  # a rate of 1 Gbit/s needs 500 kB a jiffy at 250 Hz; a bucket refills oftener
LINK = "eth0"
"""Name of a machine's link, inside its namespace."""


class NoNamespaces(Exception):
    """The kernel, or the rights of this user, do not allow such a network; one line says why."""


def address(rank: int) -> str:
    """IPv4 address of a machine."""
    return f"10.89.0.{rank + 1}"


@contextmanager
def machines(count: int, megabits: int) -> Iterator[list[str]]:
    """Namespaces of `count` machines whose links carry `megabits` Mbit/s each way.

    Raises:
        NoNamespaces: If they cannot be made.
    """
    prefix = f"fastmoco-{os.getpid()}"
    hub, names = f"{prefix}-hub", [f"{prefix}-{rank}" for rank in range(count)]
    with ExitStack() as stack:
        for name in [hub, *names]:
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "del", name)
            _ip("-n", name, "link", "set", "lo", "up")
        _ip("-n", hub, "link", "add", "bridge", "type", "bridge")
        _ip("-n", hub, "link", "set", "bridge", "up")
        for rank, name in enumerate(names):
            _connect(hub, name, rank, megabits)
        yield names


def _connect(hub: str, name: str, rank: int, megabits: int) -> None:
    port = f"port{rank}"
    _ip("link", "add", LINK, "netns", name, "type", "veth", "peer", port, "netns", hub)
    _ip("-n", hub, "link", "set", port, "master", "bridge")
    _ip("-n", name, "addr", "add", f"{address(rank)}/24", "dev", LINK)
    for space, link in ((name, LINK), (hub, port)):
        _ip("-n", space, "link", "set", link, "up")
        limit = ["rate", f"{megabits}mbit", "burst", BURST, "latency", "200ms"]
        _run("tc", "-n", space, "qdisc", "add", "dev", link, "root", "tbf", *limit)


def _ip(*arguments: str) -> None:
    _run("ip", *arguments)


def _run(*command: str) -> None:
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise NoNamespaces(f"{command[0]} is not installed (package iproute2)") from error
    except subprocess.CalledProcessError as error:
        said = (error.stderr.strip().splitlines() or [f"code {error.returncode}"])[0]
        raise NoNamespaces(f"`{' '.join(command)}`: {said}") from error
