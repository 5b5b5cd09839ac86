"""Runs a function in several processes, connected by gloo on this machine, within a time limit."""

import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fastmoco.ranks import Ranks
from fastmoco.runs.distributed import process_group
from tests.limits import HANG_SECONDS


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _one_rank(
    function: Callable[..., Any], arguments: tuple[Any, ...], ranks: Ranks, port: int, out: Path
) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(ranks.rank),
        "WORLD_SIZE": str(ranks.world_size),
    }
    torch.set_num_threads(1)
    with process_group(ranks, torch.device("cpu")):
        torch.save(function(ranks, *arguments), out)


def run_ranks(
    function: Callable[..., Any],
    *arguments: Any,
    world_size: int = 2,
    timeout_seconds: float = HANG_SECONDS,
) -> list[Any]:
    """What ``function(ranks, *arguments)`` gives on each rank; a module's own function."""
    context, port = multiprocessing.get_context("spawn"), free_port()
    with tempfile.TemporaryDirectory() as folder:
        outs = [Path(folder) / f"{rank}.pt" for rank in range(world_size)]
        processes = [
            context.Process(
                target=_one_rank,
                args=(function, arguments, Ranks(rank, world_size), port, out),
            )
            for rank, out in enumerate(outs)
        ]
        try:
            for process in processes:
                process.start()
            for process in processes:
                process.join(timeout_seconds)
            assert [process.exitcode for process in processes] == [0] * world_size
        finally:
            for process in processes:
                process.kill()
                process.join()
        return [torch.load(out, weights_only=True) for out in outs]
