"""What makes the same step faster on a device: `torch.compile`, and one CUDA graph.

A graph is captured once, then replayed by one launch. A step starts several hundred kernels, and
where they are short the host cannot start them as fast as the GPU ends them (views of 32 pixels). A
replay starts all of them at once. It costs a private pool of memory, and whatever is not a tensor
stays as it was at capture: the batch comes through buffers at fixed addresses, the learning rate
through a tensor, and draws through ``draw_key``. Left out: several devices, and what reads the host
in a step (`resolve_cuda_graph`).
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Protocol

import torch
from torch import Tensor

from fastmoco.errors import UsageError
from fastmoco.optim.optimizers import set_learning_rate
from fastmoco.pipelines.contract import Batch
from fastmoco.ranks import Ranks
from fastmoco.train.settings import Compile, CudaGraph, TrainConfig
from fastmoco.train.step import TrainStep

WARM_UP_STEPS = 3  # torch.compile, cuDNN and Triton choose and compile in the first
CAPTURABLE_OPTIMIZERS = ("sgd", "adam", "adamw")


class Recording(Protocol):
    """Work that is done as it is, then recorded, then done again and again from the record."""

    def warm_up(self, work: Callable[[], Tensor]) -> Tensor:
        """Do it, where it will be recorded."""
        ...

    def record(self, work: Callable[[], Tensor]) -> None:
        """Record it without doing it."""
        ...

    def replay(self) -> Tensor:
        """Do what was recorded; gives the tensor that the work gave, at the same address."""
        ...


class CudaRecording:
    """A CUDA graph, on a stream of its own."""

    def __init__(self, device: torch.device) -> None:
        """Nothing is recorded yet."""
        self._graph = torch.cuda.CUDAGraph()
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._output = torch.empty(0)

    def warm_up(self, work: Callable[[], Tensor]) -> Tensor:
        """Do it on the stream that will be captured: autograd's buffers belong to a stream."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            output = work()
        current.wait_stream(self._stream)
        return output

    def record(self, work: Callable[[], Tensor]) -> None:
        """Capture it.

        Raises:
            RuntimeError: If it does what a graph cannot hold.
        """
        # Loaders' threads go on using the device: only this thread is watched.
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
            self._output = work()

    def replay(self) -> Tensor:
        """Start all kernels."""
        self._graph.replay()
        return self._output


class GraphedStep:
    """A `TrainStep` that is recorded after a few steps; the same numbers.

    The warm-up steps are steps of the run, each on its own batch, and so is the first replay: no
    batch is seen twice, and a resumed run, which warms up again, learns the same.
    """

    def __init__(self, step: TrainStep, recording: Recording, *, required: bool = False) -> None:
        """Take the step.

        Args:
            step: At its final addresses: restored, if it is to be.
            recording: What records it.
            required: Whether a step that cannot be recorded is an error; else the run goes on
                without, and says so.
        """
        self.step = step
        self.required = required
        self._recording: Recording | None = recording
        self._warmed_up = 0
        self._batch: Batch | None = None

    def __call__(self, batch: Batch, learning_rate: float) -> Tensor:
        """Do one step; arguments and result as of `TrainStep`.

        The result is overwritten by the next call.

        Raises:
            RuntimeError: If the step is to be recorded and cannot be.
        """
        if self._recording is None:
            return self.step(batch, learning_rate)
        set_learning_rate(self.step.optimizer, learning_rate)
        if self._warmed_up < WARM_UP_STEPS:
            self._warmed_up += 1
            return self._recording.warm_up(lambda: self.step.learn(batch))
        if self._batch is None:
            static = self._batch = _copied(batch)
            try:
                self._recording.record(lambda: self.step.learn(static))
            except RuntimeError as error:
                self._recording = None
                self._give_up(error)
                return self.step(batch, learning_rate)
        else:
            _fill(self._batch, batch)
        return self._recording.replay()

    def _give_up(self, error: RuntimeError) -> None:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if self.required:
            raise RuntimeError(
                f"the step cannot be captured as a CUDA graph ({reason}); "
                "set train.cuda_graph=never, the same run goes on"
            ) from error
        warnings.warn(
            f"the step cannot be captured as a CUDA graph and runs without ({reason})",
            stacklevel=3,
        )


def _copied(batch: Batch) -> Batch:
    """The batch at addresses of its own; of what the step reads."""
    return replace(
        batch,
        crops=batch.crops.clone(),
        draw_key=batch.draw_key.clone(),
        sample_id=batch.sample_id.clone(),
    )


def _fill(static: Batch, batch: Batch) -> None:
    for name in ("crops", "draw_key", "sample_id"):
        getattr(static, name).copy_(getattr(batch, name), non_blocking=True)


def resolve_cuda_graph(cfg: TrainConfig, device: torch.device, ranks: Ranks) -> tuple[bool, str]:
    """Whether the step is captured, and a few words for the run's header.

    Raises:
        UsageError: If it must be and cannot.
    """
    if cfg.train.cuda_graph is CudaGraph.never:
        return False, "no CUDA graph (train.cuda_graph=never)" if device.type == "cuda" else ""
    obstacle = _obstacle(cfg, device, ranks)
    if not obstacle:
        return True, f"CUDA graph after {WARM_UP_STEPS} steps"
    if cfg.train.cuda_graph is CudaGraph.always:
        raise UsageError(f"train.cuda_graph=always cannot be: {obstacle}; set it to auto")
    return False, f"no CUDA graph ({obstacle})" if device.type == "cuda" else ""


def _obstacle(cfg: TrainConfig, device: torch.device, ranks: Ranks) -> str:
    """Why the step cannot be captured; "" if it can."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    if ranks.several:
        return "several devices"
    if cfg.optimizer.name not in CAPTURABLE_OPTIMIZERS:
        return f"optimizer.name={cfg.optimizer.name} takes its rate from the host"
    if cfg.policy.pool:
        return "policy.pool chooses images by host reads"
    if cfg.train.profile:
        return "train.profile tells a step's stages apart"
    return ""


@cache
def _compile_failure(device: torch.device) -> str | None:
    """Compile one addition: nothing else proves compiler, headers and cache folder together."""
    try:
        with warnings.catch_warnings():
            # torch warns of its own old parts while it loads the compiler (2.11 does).
            warnings.simplefilter("ignore")
            torch.compile(lambda x: x + 1)(torch.ones(8, device=device))
    except Exception as error:  # the toolchain fails in more ways than torch names
        return str(error).strip().splitlines()[0]
    return None


def resolve_compile(choice: Compile, device: torch.device) -> tuple[bool, str]:
    """Whether to compile, and a line that says so.

    Raises:
        UsageError: If it must and cannot.
    """
    if choice is Compile.never:
        return False, "eager (train.compile=never)"
    failure = _compile_failure(device)
    if failure is None:
        return True, "torch.compile"
    if choice is Compile.always:
        raise UsageError(f"torch.compile fails here: {failure}; set train.compile=auto or never")
    return (
        False,
        f"eager, torch.compile fails here ({failure}); a C++ compiler (g++) makes it faster",
    )
