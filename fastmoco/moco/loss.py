"""InfoNCE, the contrastive loss of MoCo: plain, and in one pass that never holds N x K logits.

The queue and the keys need no gradient, so the gradient is known in the forward pass:
``dL/dq = (sum_i softmax_i k_i - k+) / (N T)``, where the sum goes over the positive and the queue.
One online softmax over chunks of the queue gives loss, gradient and rank in O(N chunk) memory. It
is plain PyTorch on a CPU (``chunked``) and a Triton kernel on a GPU (``fused``). On one core of an
AMD EPYC, torch 2.15, C = 128, forward and backward, CPU time, medians of 3, plain against chunked:
N = 64 and K = 1,024 0.9 and 0.8 ms, 64 and 16,384 8.7 and 6.1, 256 and 65,536 352 and 102.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fastmoco.moco.settings import Loss

Sums = tuple[Tensor, Tensor, Tensor, Tensor]

CHUNK_KEYS = 4096
FUSED_PARTS = 32  # blocks of queries times parts should fill a GPU: 4 x 32 programs at N = 256


def info_nce(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float, loss: Loss = Loss.plain
) -> tuple[Tensor, Tensor]:
    """InfoNCE over one positive and K queued negatives (arXiv:1911.05722, Eq. 1).

    ``L = -log(exp(q.k+/T) / (exp(q.k+/T) + sum_i exp(q.k_i/T)))``, the mean over queries.

    Args:
        query: Unit-norm queries, ``(N, C)`` float; gradients flow.
        key: Unit-norm positive keys, ``(N, C)``; no gradient.
        queue: Unit-norm negatives, ``(K, C)``, any float dtype.
        temperature: tau > 0, dimensionless.
        loss: Form of the computation, not ``auto`` (`resolve_loss`).

    Returns:
        Scalar mean loss in nats, and the number of negatives above the positive per query, ``(N,)``
        int64: the query's (K+1)-way look-up is correct at top-k if that number is below k.

    Raises:
        ValueError: If temperature <= 0 or shapes disagree.
    """
    if temperature <= 0:
        raise ValueError(
            f"temperature must be above 0, got {temperature}; set moco.temperature=0.2"
        )
    if query.shape != key.shape or query.shape[1:] != queue.shape[1:]:
        raise ValueError(
            "query, key and queue must have the shapes (N, C), (N, C) and (K, C), got "
            f"{tuple(query.shape)}, {tuple(key.shape)} and {tuple(queue.shape)}"
        )
    # float32 at least: bfloat16 logits near 14 would be quantized to 0.0625.
    dtype = torch.promote_types(query.dtype, torch.float32)
    with torch.autocast(query.device.type, enabled=False):
        query, key = query.to(dtype), key.detach().to(dtype)
        if loss in (Loss.chunked, Loss.fused):
            value, rank, _ = _one_pass(query, key, queue, 1 / temperature, loss is Loss.fused)
            return value, rank
        positive = (query * key).sum(dim=1) / temperature  # (N,)
        negatives = query @ queue.to(dtype).T / temperature  # (N, K)
        logits = torch.cat([positive[:, None], negatives], dim=1)  # (N, 1 + K)
        value = (torch.logsumexp(logits, dim=1) - positive).mean()
    return value, (negatives.detach() > positive.detach()[:, None]).sum(dim=1)


@torch.no_grad()
def mean_similarity(query: Tensor, negatives: Tensor) -> Tensor:
    """Mean ``q.k`` over all pairs of queries ``(N, C)`` and negatives ``(K, C)``; no gradient."""
    return (query.mean(dim=0) * negatives.to(query.dtype).mean(dim=0)).sum()


def resolve_loss(loss: Loss, device: torch.device, dim: int) -> Loss:
    """Resolve ``auto`` for a device, and check that ``fused`` works there.

    ``fused`` is first compared with ``chunked`` on random vectors: a kernel that this GPU or this
    Triton version does not run, or runs incorrectly, is not used.

    Args:
        loss: Requested form.
        device: Device that computes the loss.
        dim: C.

    Raises:
        ValueError: If ``fused`` is requested and does not work.
    """
    if loss is Loss.auto and device.type != "cuda":
        return Loss.chunked
    if loss not in (Loss.auto, Loss.fused):
        return loss
    reason = "it needs a GPU" if device.type != "cuda" else _fault_of_fused(device, dim)
    if not reason:
        return Loss.fused
    if loss is Loss.fused:
        raise ValueError(f"moco.loss=fused cannot be used here: {reason}; set moco.loss=auto")
    warnings.warn(f"moco.loss=auto uses chunked, fused cannot be used: {reason}", stacklevel=2)
    return Loss.chunked


def _fault_of_fused(device: torch.device, dim: int) -> str:
    """The reason why the kernel cannot be used; "" if it agrees with its plain twin."""
    generator = torch.Generator().manual_seed(0)
    query, key, queue = (
        torch.nn.functional.normalize(torch.randn(rows, dim, generator=generator)).to(device)
        for rows in (96, 96, 1000)
    )
    queue = queue.half()
    try:
        fused = _one_pass(query, key, queue, 5.0, True)
    except Exception as error:  # whatever a compiler, a driver or a missing package raises
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    plain = _one_pass(query, key, queue, 5.0, False)
    close = (torch.allclose(fused[i], plain[i], atol=5e-3, rtol=5e-3) for i in (0, 2))
    return "" if all(close) else "its result differs from that of chunked"


@torch.library.custom_op("fastmoco::info_nce", mutates_args=())
def _one_pass(
    query: Tensor, key: Tensor, queue: Tensor, scale: float, fused: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss, rank, and the loss's gradient with respect to the query."""
    positive = (query * key).sum(dim=1) * scale
    sums: Callable[..., Sums] = partial_sums
    if fused:
        from fastmoco.moco.kernels.info_nce import partial_sums as sums
    parts = FUSED_PARTS if fused else max(1, -(-len(queue) // CHUNK_KEYS))
    maximum, total, weighted, above = sums(query, queue, positive, scale, parts)
    largest = torch.maximum(maximum.amax(dim=0), positive)  # (N,)
    corrections = torch.exp(maximum - largest)  # (parts, N)
    own = torch.exp(positive - largest)  # (N,)
    normalizer = (corrections * total).sum(dim=0) + own  # (N,)
    mean_key = (corrections[:, :, None] * weighted).sum(dim=0) + own[:, None] * key  # (N, C)
    value = (largest + normalizer.log() - positive).mean()  # ()
    gradient = (mean_key / normalizer[:, None] - key) * (scale / len(query))  # (N, C)
    return value, above.sum(dim=0, dtype=torch.int64), gradient


@_one_pass.register_fake
def _(query: Tensor, *_: object) -> tuple[Tensor, Tensor, Tensor]:
    return (
        query.new_empty(()),
        query.new_empty(len(query), dtype=torch.int64),
        torch.empty_like(query, memory_format=torch.contiguous_format),
    )


def _keep_gradient(ctx: Any, inputs: Any, output: tuple[Tensor, ...]) -> None:  # noqa: ARG001
    ctx.save_for_backward(output[2])
    ctx.set_materialize_grads(False)


def _scale_gradient(
    ctx: Any, grad_value: Tensor | None, *_: Tensor | None
) -> tuple[Tensor | None, None, None, None, None]:
    (gradient,) = ctx.saved_tensors
    return (None if grad_value is None else grad_value * gradient), None, None, None, None


_one_pass.register_autograd(_scale_gradient, setup_context=_keep_gradient)


def partial_sums(query: Tensor, queue: Tensor, positive: Tensor, scale: float, parts: int) -> Sums:
    """Compute the online softmax's sums over parts of the queue; the kernel's plain twin.

    Args:
        query: ``(N, C)``.
        queue: ``(K, C)``.
        positive: Logits of the positives, ``(N,)``.
        scale: 1 / temperature.
        parts: Number of parts that the queue is cut into.

    Returns:
        For each part: the largest logit, ``(parts, N)``; ``sum exp(logit - largest)``,
        ``(parts, N)``; ``sum exp(logit - largest) key``, ``(parts, N, C)``; and the number of
        logits above the positive, ``(parts, N)`` int64.
    """
    sums = []
    for chunk in queue.tensor_split(parts):
        keys = chunk.to(query.dtype)
        logits = (query @ keys.T).mul_(scale)
        above = (logits > positive[:, None]).sum(dim=1)
        largest = logits.amax(dim=1)
        weights = logits.sub_(largest[:, None]).exp_()
        sums.append((largest, weights.sum(dim=1), weights @ keys, above))
    maximum, total, weighted, rank = (torch.stack(column) for column in zip(*sums, strict=True))
    return maximum, total, weighted, rank
