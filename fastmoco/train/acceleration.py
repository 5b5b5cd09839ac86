"""Acceleration of the same step by one CUDA graph.

A graph is captured once, then replayed by one launch. A step starts several hundred kernels, and
where they are short the host cannot start them as fast as the GPU ends them (views of 32 pixels). A
replay starts all of them at once. It costs a private pool of memory, and whatever is not a tensor
stays as it was at capture: the batch comes through buffers at fixed addresses, the learning rate
through a tensor, and draws through ``draw_key``. Not supported: several devices, and steps that
read the host (`resolve_cuda_graph`).
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor

from fastmoco.errors import UsageError
from fastmoco.kept_checks import AGAIN, CUDA_GRAPH, recall
from fastmoco.optim.optimizers import set_learning_rate
from fastmoco.pipelines.contract import Batch
from fastmoco.ranks import Ranks
from fastmoco.train.compilation import reason_of
from fastmoco.train.settings import CudaGraph, TrainConfig
from fastmoco.train.step import TrainStep

WARM_UP_STEPS = 3  # torch.compile, cuDNN and Triton choose and compile in the first
CAPTURABLE_OPTIMIZERS = ("sgd", "adam", "adamw")
STEP_INPUTS = ("crops", "draw_key", "sample_id")  # the fields of a batch that a step reads
CUT_INPUTS = (*STEP_INPUTS, "boxes")  # where it cuts crops from `Batch.images`, always one tensor


class Recording(Protocol):
    """Recorder of work that is first run directly, then recorded, then replayed many times."""

    def warm_up(self, work: Callable[[], Tensor]) -> Tensor:
        """Run the work directly, on the stream that will record it."""

    def record(self, work: Callable[[], Tensor]) -> None:
        """Record the work without running it."""

    def replay(self) -> Tensor:
        """Run the recorded work; return the tensor of the work, at the same address."""

    def abandon(self) -> None:
        """Leave the device as it was before `record`, which failed."""


class CudaRecording:
    """A CUDA graph, on its own stream."""

    def __init__(self, device: torch.device) -> None:
        """Create an empty graph and its stream."""
        self._graph = torch.cuda.CUDAGraph()
        self._stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._before = torch.cuda.current_stream(device)
        self._output = torch.empty(0)

    def warm_up(self, work: Callable[[], Tensor]) -> Tensor:
        """Run the work on the stream that will be captured: autograd's buffers belong to it."""
        current = torch.cuda.current_stream(self._stream.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            output = work()
        current.wait_stream(self._stream)
        return output

    def record(self, work: Callable[[], Tensor]) -> None:
        """Capture the work.

        Raises:
            RuntimeError: If a graph does not support an operation of it; other errors come from
                compilers, Python code of the step, or memory.
        """
        self._before = torch.cuda.current_stream(self._stream.device)
        # Loaders' threads keep using the device, so only this thread is checked.
        with torch.cuda.graph(self._graph, stream=self._stream, capture_error_mode="thread_local"):
            self._output = work()

    def abandon(self) -> None:
        """Go back to the stream before the capture and free the graph; waits for the device.

        Where ending a capture fails, torch stays on the stream of the capture. torch 2.11 also
        keeps the memory of that graph (PyTorch's pull request 180395, in 2.12).
        """
        torch.cuda.set_stream(self._before)
        self._output = torch.empty(0)
        self._graph.reset()
        torch.cuda.synchronize(self._stream.device)

    def replay(self) -> Tensor:
        """Launch all kernels of the graph."""
        self._graph.replay()
        return self._output


class GraphedStep:
    """A `TrainStep` that is recorded after a few steps; the numbers are the same.

    The warm-up steps are steps of the run, each on its own batch, and so is the first replay: no
    batch is seen twice, and a resumed run, which warms up again, learns the same.
    """

    def __init__(self, step: TrainStep, recording: Recording, *, required: bool = False) -> None:
        """Wrap a step.

        Args:
            step: Step whose tensors keep their addresses.
            recording: Recorder of the step.
            required: Whether a step that cannot be recorded is an error; otherwise the run warns
                and continues without a graph.
        """
        self.step = step
        self.required = required
        self.warms_up = True  # whether the last call did more than replay
        self._recording: Recording | None = recording
        self._warmed_up = 0
        self._batch: Batch | None = None

    def __call__(self, batch: Batch, learning_rate: float) -> Tensor:
        """Do one step as `TrainStep` does; the next call overwrites the returned metrics.

        Raises:
            ValueError: If a graph is required and the step cannot be recorded.
        """
        self.warms_up = self._recording is not None and self._batch is None
        if self._recording is None:
            return self.step(batch, learning_rate)
        set_learning_rate(self.step.optimizer, learning_rate)
        if self._warmed_up < WARM_UP_STEPS:
            self._warmed_up += 1
            return self._recording.warm_up(lambda: self.step.learn(batch))
        inputs = STEP_INPUTS if batch.images is None else CUT_INPUTS
        if self._batch is None:
            static = replace(batch, **{name: getattr(batch, name).clone() for name in inputs})
            self._batch = static
            try:
                self._recording.record(lambda: self.step.learn(static))
            except Exception as error:  # of a driver, a compiler, or Python code of the step
                self._give_up(self._recording, error)
                return self.step(batch, learning_rate)
        else:
            assert batch.images is self._batch.images
            for name in inputs:
                getattr(self._batch, name).copy_(getattr(batch, name), non_blocking=True)
        return self._recording.replay()

    def _give_up(self, recording: Recording, error: Exception) -> None:
        """Run without a graph from now on: no tensor was changed, since recording computes nothing.

        Raises:
            ValueError: If a graph is required.
        """
        self._recording = self._batch = None
        self.step.optimizer.zero_grad(set_to_none=True)  # gradients in the memory of the graph
        recording.abandon()
        if self.required:
            raise ValueError(
                f"the step cannot be captured as a CUDA graph ({reason_of(error)}); "
                "set train.cuda_graph=never to resume the same run"
            ) from error
        warnings.warn(
            f"the step cannot be captured as a CUDA graph and runs without ({reason_of(error)})",
            stacklevel=3,
        )


def resolve_cuda_graph(cfg: TrainConfig, device: torch.device, ranks: Ranks) -> tuple[bool, str]:
    """Decide whether the step is captured as a CUDA graph, with words for the run's header.

    Raises:
        UsageError: If train.cuda_graph=always cannot be fulfilled.
    """
    if cfg.train.cuda_graph is CudaGraph.never:
        return False, "no CUDA graph (train.cuda_graph=never)" if device.type == "cuda" else ""
    obstacle = _obstacle(cfg, device, ranks)
    if not obstacle:
        return True, f"CUDA graph after {WARM_UP_STEPS} steps"
    if cfg.train.cuda_graph is CudaGraph.always:
        raise UsageError(
            f"train.cuda_graph=always is not possible: {obstacle}; set train.cuda_graph=auto"
        )
    return False, f"no CUDA graph ({obstacle})" if device.type == "cuda" else ""


def _obstacle(cfg: TrainConfig, device: torch.device, ranks: Ranks) -> str:
    """The reason why the step cannot be captured; "" if it can."""
    if device.type != "cuda":
        return f"the device is {device.type}"
    if ranks.several:
        return "several devices"
    if cfg.optimizer.name not in CAPTURABLE_OPTIMIZERS:
        return f"optimizer.name={cfg.optimizer.name} reads its learning rate on the host"
    if cfg.policy.pool:
        return "policy.pool chooses images by host reads"
    if cfg.train.profile:
        return "train.profile measures the stages of a step separately"
    fault = recall(CUDA_GRAPH, device)
    return f"{fault}; {AGAIN}" if fault else ""
