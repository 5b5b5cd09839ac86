"""Agreement of all ranks on saving and stopping, carried by the collective of the gradients.

Each rank adds what it asks for to the numbers that are averaged in a step, so that the hosts need
no collective of their own. On a GPU a host that read this step's answer would wait for the device:
there it reads the answer of `LAG` steps ago, and so do all ranks.
"""

import signal
from collections import deque
from collections.abc import Callable

import torch
from torch import Tensor

from fastmoco.ranks import Ranks
from fastmoco.runs.stop_signals import LATE, NOTHING, SAVE

LAG = 2
"""Steps between a question and its answer on a GPU. A host that is so far ahead waits in any case:
a loader has two buffers on the device."""
REQUESTS = (LATE, SAVE, *(SAVE + n for n in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)))
"""What a rank may ask for, in ascending order: the largest of all ranks' requests holds."""


class Agreement:
    """What the ranks do after a step; the same on all of them."""

    def __init__(
        self,
        ask: Callable[[], int],
        ranks: Ranks,
        device: torch.device,
        *,
        lag: int | None = None,
    ) -> None:
        """Set what is asked.

        Args:
            ask: Returns what this rank asks for now, one of `REQUESTS` or `NOTHING`.
            ranks: Ranks that agree.
            device: Device of this rank.
            lag: Steps between a question and its answer; None: by the device.
        """
        self._ask, self._ranks, self._device = ask, ranks, device
        self._lag = lag if lag is not None else LAG * (device.type == "cuda")
        self._late_is_asked = False
        self._carried: Tensor | None = None
        self._answers: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()

    def carried(self) -> list[Tensor]:
        """Ask; returns what is to be averaged over the ranks, in place, before `answer`.

        Returns:
            ``(len(REQUESTS),)`` float32 on the device; nothing if there is one rank.
        """
        if not self._ranks.several:
            return []
        self._carried = torch.zeros(len(REQUESTS), device=self._device)
        request = self._ask()
        if request == LATE and self._late_is_asked:
            request = NOTHING  # until it is answered
        if request != NOTHING:
            self._carried[REQUESTS.index(request)] = 1
        self._late_is_asked |= request == LATE
        return [self._carried]

    def answer(self) -> int:
        """The largest request of all ranks, `NOTHING` if there is none; call it after each step."""
        if not self._ranks.several:
            return self._ask()
        assert self._carried is not None
        self._answers.append(_to_host(self._carried))
        if len(self._answers) <= self._lag:
            return NOTHING
        values, copied = self._answers.popleft()
        if copied is not None:
            copied.synchronize()
        found = max((r for r, v in zip(REQUESTS, values, strict=True) if v > 0), default=NOTHING)
        self._late_is_asked &= found == NOTHING
        return found


def _to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """Begin a copy to the host; it is there when the event is passed."""
    if values.device.type != "cuda":
        return values, None
    host = values.to("cpu", non_blocking=True)
    copied = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]
    copied.record(torch.cuda.current_stream(values.device))
    return host, copied
