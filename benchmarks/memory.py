"""Peak memory: of a tree of processes by sampling, of this process by the kernel's own mark."""

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

SAMPLE_SECONDS = 0.1


class PeakMemory:
    """A context that samples the memory of a session of processes in a thread.

    What is counted is PSS, where a page that n processes share counts 1/n in each, so that the sum
    is what the session really holds. Peaks shorter than `SAMPLE_SECONDS` may be missed.

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

    def _sample(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            total = sum(_pss_bytes(process) for process in session_members(self._session_id))
            self.peak_bytes = max(self.peak_bytes, total)


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
