"""Checkpoints written in a thread: a step waits for a copy of the state, not for the disk.

`save_checkpoint` is the twin that writes the same bytes before it returns. The price is memory for
one copy of the state, which every save uses again. One checkpoint is written at a time.
"""

import errno
from collections.abc import Mapping
from pathlib import Path
from threading import Thread
from typing import Any

import torch
from torch import Tensor

from fastmoco.runs.checkpoint import Checkpoint, check_finite, write_checkpoint

WAIT_SECONDS = 300.0
"""Longest wait for a disk that does not answer."""


class CheckpointWriter:
    """Writes the checkpoints of a run, one after the other.

    Attributes:
        step: Steps of the checkpoint that was begun last.
    """

    def __init__(self, folder: Path, *, keep: int) -> None:
        """Write to a run's ``checkpoints``; `keep` as in `save_checkpoint`."""
        self.step = 0
        self._folder, self._keep = folder, keep
        self._copies: dict[str, Tensor] = {}
        self._thread: Thread | None = None
        self._error: BaseException | None = None

    def begin(self, checkpoint: Checkpoint) -> None:
        """Copy a state and begin to write the copy; the state may change when this returns.

        Raises:
            DivergedError: If a value is not finite; nothing is written.
            TimeoutError: If an earlier checkpoint is still being written.
        """
        self.step = checkpoint.step
        if self._thread:
            raise self._too_slow()
        tensors = self._copied(checkpoint.tensors)
        check_finite(tensors, checkpoint.step)
        arguments = (checkpoint.step, tensors, checkpoint.facts)
        self._thread = Thread(
            target=self._write, args=arguments, name="fastmoco-checkpoint", daemon=True
        )
        self._thread.start()

    def poll(self, seconds: float = 0.0) -> bool:
        """Whether a checkpoint was completed on the disk since the last call.

        Args:
            seconds: Longest wait for one that is being written.

        Raises:
            OSError: If it could not be written; earlier checkpoints are unchanged.
        """
        if self._thread is None:
            return False
        self._thread.join(seconds)
        if self._thread.is_alive():
            return False
        self._thread, error, self._error = None, self._error, None
        if error:
            raise error
        return True

    def wait(self) -> bool:
        """As `poll`, once nothing is being written any more.

        Raises:
            TimeoutError: If that takes longer than `WAIT_SECONDS`.
        """
        done = self.poll(WAIT_SECONDS)
        if self._thread:
            raise self._too_slow()
        return done

    def _copied(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies on the CPU, contiguous; one wait for a GPU, which copies to pinned memory."""
        copies = {}
        for name, tensor in tensors.items():
            copy = self._copies.get(name)
            if copy is None or (copy.shape, copy.dtype) != (tensor.shape, tensor.dtype):
                copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
            copies[name] = copy.copy_(tensor.detach(), non_blocking=True)
        for device in {tensor.device for tensor in tensors.values() if tensor.is_cuda}:
            torch.cuda.current_stream(device).synchronize()
        self._copies = copies
        return copies

    def _write(self, step: int, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        try:
            write_checkpoint(self._folder, step, tensors, facts, keep=self._keep)
        except BaseException as error:  # `poll` raises it
            self._error = error

    def _too_slow(self) -> TimeoutError:
        reason = f"a checkpoint is still being written after {WAIT_SECONDS:.0f} s"
        return TimeoutError(errno.ETIMEDOUT, reason, str(self._folder))
