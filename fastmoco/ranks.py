"""Rank and world size of this process; torchrun starts one process for each device.

Imports no torch, so that the command line can ask before anything is loaded.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ranks:
    """Rank of this process, and the number of processes of the run."""

    rank: int = 0
    """0 to `world_size` - 1, over all machines."""
    world_size: int = 1
    """Number of processes of the run."""

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run folder and prints."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether the run has more than one process."""
        return self.world_size > 1


ALONE = Ranks()


def environment_ranks() -> Ranks:
    """Read torchrun's ``RANK`` and ``WORLD_SIZE``; `ALONE` without ``WORLD_SIZE``."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    return Ranks(int(os.environ.get("RANK", "0")), world_size) if world_size > 1 else ALONE


def local_ranks() -> Ranks:
    """Rank and number of the processes on this machine only; see `environment_ranks`."""
    if not environment_ranks().several:
        return ALONE
    return Ranks(
        int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    )
