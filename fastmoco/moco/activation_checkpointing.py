"""Activation checkpointing (arXiv:1604.06174): activations computed twice instead of kept.

Batch norm must count its batch once: the second computation normalizes by the same batch and does
not change the running statistics.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """Compute ``block(x)`` and keep only `x` for the backward pass; the numbers are the same.

    `torch.compile` needs no context for batch norm: it writes the buffers once, after its forward
    graph.

    Args:
        block: A module without random draws.
        x: Input of the block.
    """
    output: Tensor
    if torch.compiler.is_compiling():
        output = checkpoint(block, x, use_reentrant=False, preserve_rng_state=False)
    else:
        output = checkpoint(
            block,
            x,
            use_reentrant=False,
            preserve_rng_state=False,
            context_fn=lambda: (nullcontext(), _on_copies_of_buffers(block)),
        )
    return output


@contextmanager
def _on_copies_of_buffers(block: nn.Module) -> Iterator[None]:
    """Discard what layers write into their buffers within the context; addresses stay the same.

    Batch norm without buffers would save fewer tensors than in the first computation, which torch
    refuses.
    """
    owners = [(m._buffers, dict(m._buffers)) for m in block.modules() if m._buffers]
    for buffers, kept in owners:
        buffers.update({name: None if b is None else b.clone() for name, b in kept.items()})
    try:
        yield
    finally:
        for buffers, kept in owners:
            buffers.update(kept)
