"""Several processes, one a device: their group, their device, and what they must agree on.

``torchrun --no-python fastmoco train ...`` starts the processes and says in the environment who is
who; without it there is one process and no group. Gradients and keys are `moco.collectives`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist

from fastmoco.device import resolve_device
from fastmoco.errors import UsageError
from fastmoco.moco.collectives import naming_a_lost_rank
from fastmoco.ranks import Ranks, local_ranks

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others. A process that ends is noticed at once; this is for one
that hangs, and must outlast what rank 0 does alone: the kNN monitor and the checkpoint."""


def resolve_rank_device(name: str, ranks: Ranks) -> torch.device:
    """The device of this process: of several, ``cuda`` is the one of its ``LOCAL_RANK``.

    Raises:
        UsageError: If the name is no device, or all processes would share one GPU.
    """
    device = resolve_device(name)
    if not ranks.several or device.type == "cpu":
        return device
    local = local_ranks()
    if name not in ("auto", "cuda"):
        raise UsageError(
            f"device={name} would serve all {ranks.world_size} processes; set device=cuda: each "
            "takes its own"
        )
    if local.rank >= torch.cuda.device_count():
        raise UsageError(
            f"{local.world_size} processes on this machine, but torch sees "
            f"{torch.cuda.device_count()} CUDA devices; set torchrun's --nproc-per-node to that, "
            "or device=cpu"
        )
    return torch.device("cuda", local.rank)


@contextmanager
def process_group(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Within the block, the ranks are connected; nothing at all where there is one.

    NCCL for what lies on a GPU; gloo on a CPU, and for what the hosts agree on. After an error the
    NCCL group is left to the end of the process: to take it down may wait for an answer that the
    other ranks never give.
    """
    if not ranks.several:
        yield
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=TIMEOUT)
    try:
        yield
    except BaseException:
        if device.type == "cpu":
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def wait_for_all(ranks: Ranks) -> None:
    """Return when every rank has come here."""
    largest(0, ranks)


def largest(value: int, ranks: Ranks) -> int:
    """The largest of the ranks' values; the hosts wait for each other, not for their devices."""
    if not ranks.several:
        return value
    values = torch.tensor([value])
    with naming_a_lost_rank():
        dist.all_reduce(values, dist.ReduceOp.MAX)
    return int(values.item())


def of_first(text: str, ranks: Ranks) -> str:
    """Rank 0's text."""
    if not ranks.several:
        return text
    texts = [text]
    with naming_a_lost_rank():
        dist.broadcast_object_list(texts, src=0, device=torch.device("cpu"))
    return texts[0]


def check_same_step(step: int, ranks: Ranks) -> None:
    """Refuse to go on from different checkpoints.

    Raises:
        UsageError: If the ranks do not all start from this step.
    """
    if largest(step, ranks) != -largest(-step, ranks):
        raise UsageError(
            f"rank {ranks.rank} would go on from step {step}, another rank from another one; "
            "run_dir must lie on a file system that all machines share"
        )


def loader_threads(num_threads: int) -> int:
    """Threads for one process's loader: the machine's cores are shared by its processes.

    Args:
        num_threads: As configured; 0 is one per core, and stays 0 where this process is alone.
    """
    local = local_ranks()
    if num_threads or not local.several:
        return num_threads
    return max(1, len(os.sched_getaffinity(0)) // local.world_size)
