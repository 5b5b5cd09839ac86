"""Activation checkpointing (arXiv:1604.06174): activations computed twice instead of kept.

Batch norm must count its batch once: what is computed again normalizes by the same batch and leaves
the running statistics alone.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def recomputed(block: nn.Module, x: Tensor) -> Tensor:
    """``block(x)``, of which only `x` is kept for the backward pass.

    The numbers are the same. `torch.compile` needs no care for batch norm: it writes the buffers
    once, after its forward graph.

    Args:
        block: Must draw nothing at random.
        x: Its input.
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
            context_fn=partial(_contexts, block),
        )
    return output


def _contexts(
    block: nn.Module,
) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    """What surrounds the first computation, and the second."""
    return nullcontext(), _on_copies_of_buffers(block)


@contextmanager
def _on_copies_of_buffers(block: nn.Module) -> Iterator[None]:
    """Within the block, what layers write into their buffers is lost; those stay where they lie.

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
