"""Choice of InfoNCE's form on a device; the kernel is used only where it is right."""

import warnings
from pathlib import Path

import torch
from torch import Tensor

from fastmoco.files import file_sha256
from fastmoco.kept_checks import checked
from fastmoco.moco.collectives import on_any_rank
from fastmoco.moco.loss import one_pass
from fastmoco.moco.settings import Loss
from fastmoco.ranks import ALONE, Ranks

COUNT, NUM_KEYS = 100, 20_011
"""Queries and keys of the check: several blocks of both, the last ones not full."""
SCALE = 4.0
"""1 / temperature of the check; a power of two keeps exact numbers exact."""
LARGEST_ERROR = 0.01
"""Largest error of the gradient, as a fraction of its largest entry, and of the loss in nats times
ten: float16 rounds the query and the weights, each by 2**-11."""


def resolve_loss(loss: Loss, device: torch.device, dim: int, ranks: Ranks = ALONE) -> Loss:
    """Resolve ``auto`` for a device, and check that ``fused`` works there.

    ``fused`` is first compared with ``chunked``: a kernel that this GPU or this Triton version does
    not run, or runs incorrectly, is not used.

    Args:
        loss: Requested form.
        device: Device that computes the loss.
        dim: C.
        ranks: Ranks that take part: where the kernel fails on one, none uses it.

    Raises:
        ValueError: If ``fused`` is requested and does not work.
    """
    if loss is Loss.auto and device.type != "cuda":
        return Loss.chunked
    if loss not in (Loss.auto, Loss.fused):
        return loss
    reason = "it needs a GPU" if device.type != "cuda" else known_fault(device, dim)
    if on_any_rank(bool(reason), device, ranks):
        reason = reason or "it fails on another device of the run"
    if not reason:
        return Loss.fused
    if loss is Loss.fused:
        raise ValueError(f"moco.loss=fused cannot be used here: {reason}; set moco.loss=auto")
    warnings.warn(f"moco.loss=auto uses chunked, fused cannot be used: {reason}", stacklevel=2)
    return Loss.chunked


def known_fault(device: torch.device, dim: int) -> str:
    """`fault_of_fused`, or what it found before on such a GPU with this kernel."""
    return checked(check_name(dim), device, lambda: fault_of_fused(device, dim))


def check_name(dim: int) -> str:
    """Name under which the result of `fault_of_fused` is kept, with a digest of the kernel."""
    kernel = file_sha256(Path(__file__).with_name("kernels") / "info_nce.py")[:8]
    return f"fused loss, C = {dim}, kernel {kernel}"


def fault_of_fused(device: torch.device, dim: int) -> str:
    """The reason why the kernel cannot be used; "" if it agrees with its plain twin."""
    try:
        for name, given in (("random", random_vectors(dim)), ("exact", exact_vectors(dim))):
            query, key, queue = (one.to(device) for one in given)
            queue = queue.half()
            found = one_pass(query, key, queue, SCALE, True)
            expected = one_pass(query, key, queue, SCALE, False)
            if device.type == "cuda":
                torch.cuda.synchronize(device)  # errors of a kernel come late
            if fault := _difference(found, expected, exact=name == "exact"):
                return f"{fault} of {name} vectors differs from that of chunked"
    except Exception as error:  # whatever a compiler, a driver or a missing package raises
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return ""


def random_vectors(dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unit-norm queries and keys, ``(N, C)``, near each other, and negatives, ``(K, C)``."""
    generator = torch.Generator().manual_seed(0)

    def draw(rows: int) -> Tensor:
        vectors = torch.randn(rows, dim, generator=generator)
        return torch.nn.functional.normalize(vectors)

    query = draw(COUNT)
    return query, torch.nn.functional.normalize(query + 2 * draw(COUNT)), draw(NUM_KEYS)


def exact_vectors(dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """Vectors whose products are exact in every number format, with many ties.

    Queries are rows of the identity; entries of keys and negatives are multiples of 1/8 up to 1.
    """
    generator = torch.Generator().manual_seed(1)
    query = torch.eye(dim)[torch.arange(COUNT) % dim]
    key, queue = (
        torch.randint(-8, 9, (rows, dim), generator=generator) / 8 for rows in (COUNT, NUM_KEYS)
    )
    return query, key, queue


def _difference(found: tuple[Tensor, ...], expected: tuple[Tensor, ...], *, exact: bool) -> str:
    """What differs: the loss, the gradient or the rank; "" if nothing does."""
    (value, rank, gradient), (its_value, its_rank, its_gradient) = found, expected
    if not (value - its_value).abs() <= LARGEST_ERROR / 10:
        return "the loss"
    largest = its_gradient.abs().max()
    if not (gradient - its_gradient).abs().max() <= LARGEST_ERROR * largest:
        return "the gradient"
    # Rounded logits may change places with the positive: of random vectors few do.
    allowed = 0 if exact else LARGEST_ERROR / 10 * NUM_KEYS
    return "the rank" if (rank - its_rank).abs().max() > allowed else ""
