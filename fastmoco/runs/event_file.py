"""TensorBoard's event file, written by the thread that trains.

`torch.utils.tensorboard` writes in a thread of its own, where a full disk ends the thread with a
traceback that names no file, and later writes wait for it for ever.
"""

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class EventFile:
    """Scalars for TensorBoard; after a failed write the next one begins a new file.

    Attributes:
        path: TensorBoard's folder of the run.
    """

    def __init__(self, folder: Path, *, purge_step: int) -> None:
        """Set the folder, which the first write makes.

        Args:
            folder: TensorBoard's folder of the run.
            purge_step: Values from this step on, in older files of the folder, no longer count.
        """
        self.path, self._purge_step = folder, purge_step
        self._descriptor: int | None = None
        self._file = folder

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append values.

        Raises:
            OSError: If they cannot be written completely.
        """
        from tensorboard.compat.proto.summary_pb2 import Summary

        is_new = self._descriptor is None
        rows = [Summary.Value(tag=tag, simple_value=value) for tag, value in values.items()]
        try:
            if is_new:
                self._begin()
                self._append(file_version="brain.Event:2")
                self._append(step=self._purge_step, session_log={"status": "START"})
            self._append(step=step, summary=Summary(value=rows))
        except OSError:
            self.close()  # a reader stops at a torn record
            if is_new:
                self._file.unlink(missing_ok=True)
            raise

    def close(self) -> None:
        """Close the file; a later write begins another."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def _begin(self) -> None:
        self.path.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time_ns()}.{socket.gethostname()}.{os.getpid()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        self._file = self.path / name
        self._descriptor = os.open(self._file, flags, 0o666)

    def _append(self, **fields: Any) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(Event(wall_time=time.time(), **fields).SerializeToString())
        assert self._descriptor is not None
        write_all(self._descriptor, record.getvalue())


def write_all(descriptor: int, data: bytes) -> None:
    """Write all bytes to an open file.

    Raises:
        OSError: If that fails; a part of them may be written.
    """
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
