"""Process group, device of each rank, and agreement between the hosts.

``torchrun --no-python fastmoco train ...`` starts one process a device and sets their environment
variables. Gradients and keys are exchanged in `moco.collectives`.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
from torch import distributed as dist
from torch.distributed.distributed_c10d import PrefixStore, Store, _get_default_store

from fastmoco.device import resolve_device
from fastmoco.errors import UsageError
from fastmoco.moco.collectives import naming_a_lost_rank
from fastmoco.ranks import Ranks, local_ranks

TIMEOUT = timedelta(minutes=30)
"""How long a rank waits for the others. Gloo notices at once that a process has ended, and
`train.heartbeat` that one hangs or failed. It must be longer than the work of rank 0 alone: kNN
monitor and checkpoint."""


def resolve_rank_device(name: str, ranks: Ranks) -> torch.device:
    """Device of this rank; with several ranks, ``cuda`` is the GPU number ``LOCAL_RANK``.

    Raises:
        UsageError: If the device does not exist, or all processes would share one GPU.
    """
    device = resolve_device(name)
    if not ranks.several or device.type == "cpu":
        return device
    local = local_ranks()
    if name not in ("auto", "cuda"):
        raise UsageError(
            f"device={name} would be shared by all {ranks.world_size} processes; set device=cuda, "
            "which gives each its own"
        )
    if local.rank >= torch.cuda.device_count():
        raise UsageError(
            f"{local.world_size} processes on this machine, but torch sees "
            f"{torch.cuda.device_count()} CUDA devices; set torchrun's --nproc-per-node to that "
            "number, or device=cpu"
        )
    return torch.device("cuda", local.rank)


@contextmanager
def process_group(ranks: Ranks, device: torch.device) -> Iterator[None]:
    """Connect the ranks within the block; does nothing for a single rank.

    NCCL exchanges GPU tensors, gloo CPU tensors. After an error the NCCL group is not destroyed:
    that could wait forever for the other ranks.
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


def own_store(name: str, timeout: timedelta) -> Store:
    """A connection of its own to the store of the process group, for a thread beside the step.

    Args:
        name: Prefix of its keys.
        timeout: How long it waits for an answer.
    """
    store = _get_default_store().clone()
    store.set_timeout(timeout)
    return PrefixStore(name, store)


def wait_for_all(ranks: Ranks) -> None:
    """Return when every rank has called this."""
    largest(0, ranks)


def largest(value: int, ranks: Ranks) -> int:
    """The largest of the ranks' values; waits for the other hosts, not for any device."""
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


def of_all(text: str, ranks: Ranks) -> list[str]:
    """The texts of all ranks, in their order."""
    if not ranks.several:
        return [text]
    texts: list[str] = [""] * ranks.world_size
    with naming_a_lost_rank():
        dist.all_gather_object(texts, text)  # by gloo: text is in the host's memory
    return texts


def check_same_step(step: int, ranks: Ranks) -> None:
    """Check that all ranks resume from the same step.

    Raises:
        UsageError: If they do not.
    """
    if largest(step, ranks) != -largest(-step, ranks):
        raise UsageError(
            f"rank {ranks.rank} would resume from step {step}, another rank from a different one; "
            "run_dir must be on a file system that all machines share"
        )


def loader_threads(num_threads: int) -> int:
    """Threads of this process's loader, so that the processes of a machine share its cores.

    Args:
        num_threads: As configured; 0 = one per core, and stays 0 for a single process.
    """
    local = local_ranks()
    if num_threads or not local.several:
        return num_threads
    return max(1, len(os.sched_getaffinity(0)) // local.world_size)
