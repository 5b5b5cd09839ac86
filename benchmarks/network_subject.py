"""One rank of ``benchmarks/network.py``: averages gradients and exchanges key crops, many times.

Computation is replaced by sleeps: each layer's backward pass sleeps as long as it took when it was
measured, then gives its gradients. So the ranks leave the processor to the network.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as dist

from benchmarks.namespaces import LINK
from fastmoco.draws.host import draw_keys
from fastmoco.moco.collectives import average_over_ranks, gather_rows, own_rows
from fastmoco.moco.key_exchange import key_exchange
from fastmoco.ranks import Ranks
from fastmoco.train.overlap import OverlappedGradients
from fastmoco.train.settings import Gradients

SENT = Path(f"/sys/class/net/{LINK}/statistics/tx_bytes")
CPU = torch.device("cpu")


class _Backward(torch.autograd.Function):
    """Identity; its backward pass sleeps, then gives the gradients of the weights."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, seconds: float) -> Tensor:
        ctx.seconds, ctx.like = seconds, weight
        return x.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None]:
        time.sleep(ctx.seconds)
        return gradient, torch.ones_like(ctx.like), None


class Layers(nn.Module):
    """Weights of given sizes, whose gradients come one after the other."""

    def __init__(self, layers: Sequence[tuple[int, float]]) -> None:
        """Take (number of weights, seconds of its backward pass) of each layer, the last first."""
        super().__init__()
        self.seconds = [seconds for _, seconds in reversed(layers)]
        weights = [nn.Parameter(torch.zeros(count)) for count, _ in reversed(layers)]
        self.weights = nn.ParameterList(weights)

    def forward(self, x: Tensor) -> Tensor:
        """Pass a scalar through all layers."""
        for weight, seconds in zip(self.weights, self.seconds, strict=True):
            x = _Backward.apply(x, weight, seconds)
        return x


def backward(model: Layers, forward: Callable[[Tensor], Tensor]) -> None:
    """One forward and backward pass."""
    model.zero_grad(set_to_none=True)
    forward(torch.ones((), requires_grad=True)).backward()  # type: ignore[no-untyped-call]


def gradient_ways(
    layers: Sequence[tuple[int, float]], ranks: Ranks
) -> dict[str, Callable[[], object]]:
    """Ways of averaging gradients, by name; each call is a backward pass and its averages."""
    plain = Layers(layers)

    def flat(dtype: torch.dtype) -> None:
        backward(plain, plain)
        gradients = [weight.grad for weight in plain.parameters() if weight.grad is not None]
        if dtype is torch.float32:
            average_over_ranks(gradients, ranks)
            return
        short = [gradient.to(dtype) for gradient in gradients]
        average_over_ranks(short, ranks)
        torch._foreach_copy_(gradients, short)

    return {
        "backward pass alone": lambda: backward(plain, plain),
        "flat": lambda: flat(torch.float32),
        "flat, bf16": lambda: flat(torch.bfloat16),
        "ddp": _overlapped(layers, Gradients.ddp),
        "ddp, bf16": _overlapped(layers, Gradients.ddp_bf16),
    }


def _overlapped(layers: Sequence[tuple[int, float]], gradients: Gradients) -> Callable[[], object]:
    model = Layers(layers)
    forward = OverlappedGradients(list(model.parameters()), gradients).around(model)
    return lambda: backward(model, forward)


def crop_ways(images: int, size: int, ranks: Ranks) -> dict[str, Callable[[], object]]:
    """Ways of giving each rank the crops whose keys it encodes."""
    keys = draw_keys(0, 0, np.arange(images * ranks.world_size, dtype=np.int64))
    crops = torch.zeros(images, size, size, 3, dtype=torch.uint8)
    exchange = key_exchange(keys, ranks, CPU)
    order = torch.randperm(len(keys), generator=torch.Generator().manual_seed(0))
    return {
        "crops gathered": lambda: gather_rows(crops, ranks)[own_rows(order, ranks)],
        "crops sent once": lambda: exchange.scattered(crops),
    }


def measure(way: Callable[[], object]) -> tuple[float, int]:
    """Seconds of the slowest rank, and bytes that this rank sent."""
    dist.barrier()
    before, start = int(SENT.read_text()), time.perf_counter()
    way()
    seconds = torch.tensor([time.perf_counter() - start], dtype=torch.float64)
    dist.all_reduce(seconds, dist.ReduceOp.MAX)
    # Now all ranks have what was sent; before, megabytes may wait in the buffer of a socket.
    return seconds.item(), int(SENT.read_text()) - before


def main() -> None:
    """Measure all ways in turn; rank 0 writes what came out."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("rank", "world_size"):
        parser.add_argument(name, type=int)
    for name in ("master", "task", "out"):
        parser.add_argument(name)
    given = parser.parse_args()
    task = json.loads(given.task)
    torch.set_num_threads(1)
    ranks = Ranks(given.rank, given.world_size)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://{given.master}:29500",
        rank=ranks.rank,
        world_size=ranks.world_size,
        timeout=timedelta(minutes=5),
    )
    ways = gradient_ways(task["layers"], ranks)
    ways |= crop_ways(task["images"], task["size"], ranks)
    for way in ways.values():
        way()  # connects
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in ways}
    for _ in range(task["rounds"]):
        for name, way in ways.items():
            found[name].append(measure(way))
    dist.destroy_process_group()
    if ranks.is_first:
        Path(given.out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
