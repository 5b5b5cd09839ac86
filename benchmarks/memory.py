"""Peak memory: of a tree of processes by sampling, of this process by the kernel's own mark."""

import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Self

SAMPLE_SECONDS = 0.1
# Of a core, that sampling may take from what is timed meanwhile. The kernel walks all pages of each
# process, 20 to 35 ms of CPU time: ten times a second that was 15% of a core beside a loader of
# threads and 30% beside one of processes, which is no fair comparison.
BUSY_SHARE = 0.05


class PeakMemory:
    """A context that samples the memory of a session of processes in a thread.

    What is counted is PSS, where a page that n processes share counts 1/n in each, so that the sum
    is what the session really holds. Peaks that are shorter than the pauses may be missed, but not
    what it holds at the end of the context.

    Args:
        session_id: Of the processes, which have it from a leader that called `setsid`.

    Attributes:
        peak_bytes: The greatest sum so far.
    """

    def __init__(self, session_id: int) -> None:
        self.peak_bytes = 0
        self._session_id = session_id
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._look()

    def _sample(self) -> None:
        pause = SAMPLE_SECONDS
        while not self._ended.wait(pause):
            start = time.thread_time()
            self._look()
            pause = pause_seconds(time.thread_time() - start)

    def _look(self) -> None:
        total = sum(_pss_bytes(process) for process in session_members(self._session_id))
        self.peak_bytes = max(self.peak_bytes, total)


def pause_seconds(sample_seconds: float) -> float:
    """How long to wait after a sample that took so much CPU time."""
    return max(SAMPLE_SECONDS, sample_seconds / BUSY_SHARE)


def reset_own_peak() -> int:
    """Puts this process's high-water mark back to what it holds now, in bytes, and gives that."""
    Path("/proc/self/clear_refs").write_text("5")  # man 5 proc
    return own_peak_bytes()


def own_peak_bytes() -> int:
    """The most that this process held resident since `reset_own_peak`."""
    return _field_bytes(Path("/proc/self/status"), "VmHWM:")


def session_members(session_id: int) -> list[Path]:
    """The folders in /proc of a session's living processes, whoever their parents are by now."""
    found = []
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            # After the name, in parentheses: state, parent, group, session (man 5 proc).
            state, _, _, session = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:  # it has ended since
            continue
        if int(session) == session_id and state not in "ZX":
            found.append(folder)
    return found


def _pss_bytes(process: Path) -> int:
    try:
        return _field_bytes(process / "smaps_rollup", "Pss:")
    except (OSError, LookupError):  # it has ended since
        return 0


def _field_bytes(path: Path, name: str) -> int:
    """A field of a file of /proc that is in kB."""
    for line in path.read_text().splitlines():
        if line.startswith(name):
            return int(line.split()[1]) * 1024
    raise LookupError(f"{path} has no {name}")
