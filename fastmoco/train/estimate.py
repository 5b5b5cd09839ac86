"""Memory and duration of a run, estimated from its settings alone; imports no torch.

Only for ResNets, whose layers can be counted. `train.dry_run=true` measures any encoder.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastmoco.moco.resnet_designs import view_cost
from fastmoco.moco.settings import Mechanism, ModelConfig, Precision
from fastmoco.train.machine import Machine

if TYPE_CHECKING:
    from fastmoco.train.settings import TrainConfig

PROCESS_BYTES = {"cpu": 1_000_000_000, "cuda": 1_000_000_000}
"""A process with torch (CPU, torch 2.15), or a CUDA context with its libraries (not measured)."""
WORKING = {"cpu": 1.75, "cuda": 1.3}
"""Peak of a step, as a multiple of the activations that are kept: gradients, views, and what the
allocator holds. CPU, torch 2.15, one run each: 1.72 (ResNet-50, 128 pixels, batches of 8 to 128)
and 1.74 (ResNet-18, 64 pixels, 16 to 192) eager; compiled, the last needs 2% more. A GPU's is not
measured."""
SIXTEEN_BIT = 0.6
"""Activations under autocast, as a fraction of float32's: half, and what batch norm keeps wide."""
RECOMPUTED = 0.7
"""Activations with model.activation_checkpointing, as a fraction (docs/step.md: 501 of 678 MB)."""
COPIES = {"adam": 5, "adamw": 5}
"""Copies of the weights: query, key, gradient, and the optimizer's moments."""
MEMORY_SHARE = 0.8
"""Fraction of a device's memory that a run may need; the rest is for others and for errors."""
BOTH_VIEWS = (Mechanism.end_to_end, Mechanism.moco_v3, Mechanism.fast_moco)
"""Mechanisms with gradients through both views of an image."""
FORWARDS = 4
"""A step in forward passes of a query: its own, its backward pass (2), and the key's."""
FLOPS_PER_SECOND = {"cpu": 40e9, "cuda": 0.4e12}
"""Reached by a core (float32, narrow ResNet-18: 37e9 to 58e9 on an AMD EPYC; compiled 1.00 x eager,
1.5 x at width 16; benchmarks/results/README.md) and by a multiprocessor (16 bits; computed from
published rates: 0.25e12 on a T4 to 1e12 on an H100)."""
FLOAT32_ON_A_GPU = 0.4
"""Its speed as a fraction of 16 bits' (computed, not measured)."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Estimated cost of a run."""

    memory_bytes: float
    """Peak memory of each device; of the process if the device is a CPU."""
    seconds: float
    """Duration of all steps."""


def memory_bytes(
    model: ModelConfig,
    kind: str,
    *,
    view_size: int,
    images: int,
    precision: Precision,
    optimizer: str = "sgd",
    queue_bytes: int = 0,
) -> float | None:
    """Estimate the memory of a device; None for encoders other than ResNets.

    Args:
        model: The encoder.
        kind: cpu or cuda.
        view_size: Side of the views, pixels.
        images: Images whose activations are in memory at the same time.
        precision: Number format of the passes.
        optimizer: Its name.
        queue_bytes: Size of the queue.
    """
    cost = view_cost(model, view_size)
    if cost is None:
        return None
    factor = WORKING[kind] * (1.0 if precision is Precision.float32 else SIXTEEN_BIT)
    factor *= RECOMPUTED if model.activation_checkpointing else 1.0
    weights = 4 * cost.weights * COPIES.get(optimizer, 4)
    return PROCESS_BYTES[kind] + weights + queue_bytes + images * factor * cost.kept_bytes


def run_cost(cfg: "TrainConfig", steps: int, machine: Machine) -> Cost | None:
    """Estimate a run's cost; None for encoders other than ResNets.

    Args:
        cfg: Configuration of the run.
        steps: Steps of the complete run.
        machine: Its devices.
    """
    cost = view_cost(cfg.model, cfg.pipeline.view_size)
    both = cfg.moco.symmetric or cfg.moco.mechanism in BOTH_VIEWS
    sides = 2 if both else 1
    memory = memory_bytes(
        cfg.model,
        machine.kind,
        view_size=cfg.pipeline.view_size,
        images=sides * cfg.global_batch_size // machine.devices // cfg.train.accumulate,
        precision=cfg.precision,
        optimizer=cfg.optimizer.name,
        queue_bytes=4 * cfg.moco.queue_size * cfg.moco.dim,
    )
    if cost is None or memory is None:
        return None
    rate = FLOPS_PER_SECOND[machine.kind] * machine.units * machine.devices
    if machine.kind == "cuda" and cfg.precision is Precision.float32:
        rate *= FLOAT32_ON_A_GPU
    flops = FORWARDS * sides * cost.flops * steps * cfg.global_batch_size
    return Cost(memory, flops / rate)
