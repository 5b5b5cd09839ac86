"""Which of how many processes this one is: one process a device, numbered by torchrun.

Imports no torch, so that the command line can ask before anything is loaded.
"""

import os
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of a run."""

    rank: int = 0
    """0 to `world_size` - 1, over all machines."""
    world_size: int = 1
    """Processes of the run."""

    @property
    def is_first(self) -> bool:
        """Whether this one writes the run folder and prints."""
        return self.rank == 0

    @property
    def several(self) -> bool:
        """Whether there are others."""
        return self.world_size > 1


ALONE = Ranks()


def environment_ranks() -> Ranks:
    """As torchrun's ``RANK`` and ``WORLD_SIZE`` say; alone where there is no ``WORLD_SIZE``."""
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    return Ranks(int(os.environ.get("RANK", "0")), world_size) if world_size > 1 else ALONE


def local_ranks() -> Ranks:
    """As `environment_ranks`, among the processes on this machine alone."""
    if not environment_ranks().several:
        return ALONE
    return Ranks(
        int(os.environ.get("LOCAL_RANK", "0")), int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    )
