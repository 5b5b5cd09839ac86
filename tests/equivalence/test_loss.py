"""InfoNCE in one pass against the plain form: loss, gradient and rank."""

import os
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fastmoco.moco import loss as loss_module
from fastmoco.moco import loss_choice
from fastmoco.moco.loss import chunked_pass, info_nce
from fastmoco.moco.loss_choice import exact_vectors, fault_of_fused, resolve_loss
from fastmoco.moco.settings import Loss
from tests.compiling import require_compiler
from tests.limits import HANG_SECONDS

CPU = torch.device("cpu")
PACKAGES = ("triton", "numpy")

Given = tuple[Tensor, Tensor, Tensor]
OnePass = tuple[Tensor, Tensor, Tensor]


def vectors(
    count: int, queue_size: int, dim: int = 32, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor, Tensor]:
    """Unit vectors; keys lie near their queries, so that ranks are of all kinds."""
    generator = torch.Generator().manual_seed(count + queue_size)

    def draw(rows: int) -> Tensor:
        return F.normalize(torch.randn(rows, dim, generator=generator, dtype=torch.float64))

    query = draw(count)
    key = F.normalize(query + 3 * draw(count))
    return query.to(dtype), key.to(dtype), draw(queue_size).to(dtype)


def with_gradient(
    query: Tensor, key: Tensor, queue: Tensor, temperature: float, loss: Loss
) -> tuple[Tensor, Tensor, Tensor]:
    query = query.clone().requires_grad_()
    value, rank = info_nce(query, key, queue, temperature, loss)
    (2.5 * value).backward()  # an outer factor, as of a loss scaler, must go through
    assert query.grad is not None
    return value.detach(), query.grad, rank


@pytest.mark.parametrize("chunk", [1, 7, 64, 4096])
@pytest.mark.parametrize(("count", "queue_size"), [(1, 1), (5, 64), (16, 1000)])
@pytest.mark.parametrize("temperature", [0.05, 1.0])
def test_chunks_give_the_plain_loss(
    monkeypatch: pytest.MonkeyPatch, chunk: int, count: int, queue_size: int, temperature: float
) -> None:
    monkeypatch.setattr(loss_module, "CHUNK_KEYS", chunk)
    given = vectors(count, queue_size)
    value, gradient, rank = with_gradient(*given, temperature, Loss.chunked)
    expected = with_gradient(*given, temperature, Loss.plain)
    torch.testing.assert_close(value, expected[0], atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(gradient, expected[1], atol=1e-12, rtol=1e-12)
    assert torch.equal(rank, expected[2])
    assert count == 1 or rank.unique().numel() > 1


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_extreme_temperatures_stay_finite(scale: float) -> None:
    given = vectors(8, 100, dtype=torch.float32)
    value, gradient, _ = with_gradient(*given, 1 / scale, Loss.chunked)
    expected = with_gradient(*given, 1 / scale, Loss.plain)
    assert torch.isfinite(gradient).all()
    torch.testing.assert_close(value, expected[0])
    torch.testing.assert_close(gradient, expected[1], atol=1e-3 * scale, rtol=1e-3)


def test_a_queue_of_half_precision_and_autocast() -> None:
    query, key, queue = vectors(8, 300, dtype=torch.float32)
    given = query, key, queue.half()
    expected = with_gradient(*given, 0.2, Loss.plain)
    with torch.autocast("cpu", torch.bfloat16):
        found = with_gradient(*given, 0.2, Loss.chunked)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-5)


def test_memory_does_not_grow_with_the_queue() -> None:
    """N x K would be 64 MB; a chunk of the queue with its logits is 3 MB."""
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            result = function(*args, **(kwargs or {}))
            for tensor in torch.utils._pytree.tree_leaves(result):
                if isinstance(tensor, Tensor):
                    largest = max(largest, tensor.numel())
            return result

    query, key, queue = vectors(64, 65536 * 4, dim=16, dtype=torch.float32)
    with Watch():
        loss_module.one_pass._init_fn(query, key, queue, 5.0, False)
    assert largest <= max(64 * loss_module.CHUNK_KEYS, queue.numel())
    assert largest < 64 * len(queue)


def test_it_compiles_into_one_graph() -> None:
    require_compiler()
    given = vectors(16, 500, dtype=torch.float32)
    torch._dynamo.reset()
    compiled = torch.compile(
        lambda q, k, queue: info_nce(q, k, queue, 0.2, Loss.chunked), fullgraph=True
    )
    query = given[0].clone().requires_grad_()
    value, rank = compiled(query, *given[1:])
    value.backward()
    expected = with_gradient(*given, 0.2, Loss.plain)
    torch.testing.assert_close(value.detach(), expected[0])
    torch.testing.assert_close(2.5 * query.grad, expected[1], atol=1e-6, rtol=1e-5)
    assert torch.equal(rank, expected[2])


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")  # torch's own
def test_the_operator_is_registered_as_torch_wants_it() -> None:
    query, key, queue = vectors(4, 9)
    torch.library.opcheck(loss_module.one_pass, (query.requires_grad_(), key, queue, 5.0, False))


def test_auto_takes_what_fits() -> None:
    assert resolve_loss(Loss.auto, CPU, 128) is Loss.chunked
    assert resolve_loss(Loss.plain, CPU, 128) is Loss.plain
    with pytest.raises(ValueError, match=r"moco\.loss=fused cannot be used here: it needs a GPU"):
        resolve_loss(Loss.fused, CPU, 128)


def test_a_kernel_that_fails_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda = torch.device("cuda")
    monkeypatch.setattr(loss_choice, "fault_of_fused", lambda *_: "RuntimeError: no driver")
    with pytest.warns(UserWarning, match="uses chunked, fused cannot be used: RuntimeError"):
        assert resolve_loss(Loss.auto, cuda, 128) is Loss.chunked
    monkeypatch.setattr(loss_choice, "fault_of_fused", lambda *_: "")
    assert resolve_loss(Loss.auto, cuda, 128) is Loss.fused
    monkeypatch.setattr(loss_choice, "on_any_rank", lambda *_: True)
    with pytest.warns(UserWarning, match="it fails on another device of the run"):
        assert resolve_loss(Loss.auto, cuda, 128) is Loss.chunked


MUTANTS: dict[str, Callable[[OnePass, Given], OnePass]] = {
    "gradient x 0.8": lambda r, _: (r[0], r[1], r[2] * 0.8),
    "gradient x 1.25": lambda r, _: (r[0], r[1], r[2] * 1.25),
    "gradient 0": lambda r, _: (r[0], r[1], r[2] * 0),
    "gradient nan": lambda r, _: (r[0], r[1], r[2] * torch.nan),
    "gradients of other queries": lambda r, _: (r[0], r[1], r[2].roll(1, 0)),
    "loss nan": lambda r, _: (r[0] * torch.nan, r[1], r[2]),
    "loss + 0.01": lambda r, _: (r[0] + 0.01, r[1], r[2]),
    "rank 0": lambda r, _: (r[0], r[1] * 0, r[2]),
    "rank + 1": lambda r, _: (r[0], r[1] + 1, r[2]),
    "last block dropped": lambda _, g: chunked_pass(g[0], g[1], g[2][:-64], loss_choice.SCALE),
    "ties counted": lambda r, g: (r[0], ties(g) + r[1], r[2]),
}


def ties(given: Given) -> Tensor:
    query, key, queue = (one.double() for one in given)
    return (query @ queue.T == (query * key).sum(dim=1)[:, None]).sum(dim=1)


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_wrong_kernel_is_refused(monkeypatch: pytest.MonkeyPatch, mutant: str) -> None:
    def wrong(*given: Any) -> OnePass:
        right = chunked_pass(*given[:4])
        return MUTANTS[mutant](right, given[:3]) if given[4] else right

    monkeypatch.setattr(loss_choice, "one_pass", wrong)
    assert "differs from that of chunked" in fault_of_fused(CPU, 128)


@pytest.mark.parametrize("dim", [64, 128, 512])
def test_rounded_queries_and_weights_pass_the_check(
    monkeypatch: pytest.MonkeyPatch, dim: int
) -> None:
    def rounded(query: Tensor, key: Tensor, queue: Tensor, scale: float, fused: bool) -> OnePass:
        right = chunked_pass(query, key, queue, scale)
        if not fused:
            return right
        _, rank, gradient = chunked_pass(query.half().float(), key, queue, scale)
        return right[0] + 1e-4, rank, gradient * (1 + 2**-9)

    monkeypatch.setattr(loss_choice, "one_pass", rounded)
    assert fault_of_fused(CPU, dim) == ""


@pytest.mark.parametrize("loss", [Loss.plain, Loss.chunked])
def test_a_tie_is_not_above_the_positive(loss: Loss) -> None:
    query, key, queue = exact_vectors(16)
    _, rank = info_nce(query, key, queue, 0.25, loss)
    products = query @ queue.T
    above = products > (query * key).sum(dim=1)[:, None]
    assert torch.equal(rank, above.sum(dim=1))
    assert ties((query, key, queue)).min() > 0


@pytest.mark.parametrize("loss", [Loss.plain, Loss.chunked])
def test_no_gradient_flows_to_the_key(loss: Loss) -> None:
    query, key, queue = exact_vectors(16)
    info_nce(query.requires_grad_(), key.requires_grad_(), queue, 0.25, loss)[0].backward()
    assert query.grad is not None
    assert key.grad is None


@pytest.mark.parametrize("loss", [Loss.plain, Loss.chunked])
def test_logits_of_half_precision_are_float32(loss: Loss) -> None:
    """In bfloat16 a logit near 14 is a multiple of 0.0625."""
    query, key, queue = vectors(8, 100, dtype=torch.bfloat16)
    value, _ = info_nce(query, key, queue, 0.07, loss)
    expected, _ = info_nce(query.float(), key.float(), queue.float(), 0.07, loss)
    assert torch.equal(value, expected)


INTERPRETED = """
import torch
from fastmoco.moco import loss
from fastmoco.moco.kernels import info_nce as kernel
from tests.equivalence.test_loss import exact_vectors, vectors
ranks = set()
for count, queue_size, dim, parts, dtype, close in [
    (5, 130, 32, 2, torch.float32, 1e-5),
    (70, 64, 24, 1, torch.float32, 1e-5),
    (3, 200, 128, 8, torch.float32, 1e-5),
    (2, 500, 20, 19, torch.float32, 1e-5),
    (64, 333, 128, 3, torch.float16, 3e-3),
    (3, 100, 512, 2, torch.float16, 3e-3),
]:
    query, key, queue = vectors(count, queue_size, dim, torch.float32)
    queue = queue.to(dtype)
    found = kernel.fused_pass(query, key, queue, 5.0, parts)
    expected = loss.chunked_pass(query, key, queue, 5.0)
    torch.testing.assert_close(found[0], expected[0], atol=close, rtol=close)
    torch.testing.assert_close(found[2], expected[2], atol=close / count, rtol=close)
    assert (found[1] - expected[1]).abs().max() <= (0 if dtype is torch.float32 else 3)
    ranks.update(expected[1].tolist())
assert len(ranks) > 5
query, key, queue = exact_vectors(16)
found = kernel.fused_pass(query, key, queue[:150].half(), 4.0, 2)
assert torch.equal(found[1], loss.chunked_pass(query, key, queue[:150], 4.0)[1])
print("agrees")
"""


def interpreter_is_broken() -> bool:
    """Triton 3.6, that of torch 2.11, takes int() of an array in its interpreter alone."""
    triton, numpy = ([int(part) for part in version(name).split(".")[:2]] for name in PACKAGES)
    return triton <= [3, 6] and numpy >= [2, 4]


@pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")
def test_the_kernel_agrees_with_its_twin_in_tritons_interpreter() -> None:
    if interpreter_is_broken():
        pytest.skip("the interpreter of Triton 3.6 fails with NumPy 2.4; NumPy 2.3 works")
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run(
        [sys.executable, "-c", INTERPRETED],
        env=environment,
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert done.stdout.endswith("agrees\n"), done.stderr


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize(("count", "queue_size"), [(256, 65536), (100, 4097), (1, 5)])
def test_the_kernel_agrees_on_a_gpu(dtype: torch.dtype, count: int, queue_size: int) -> None:
    query, key, queue = (one.cuda() for one in vectors(count, queue_size, 128, dtype=torch.float32))
    queue = queue.to(dtype)
    found = with_gradient(query, key, queue, 0.2, Loss.fused)
    expected = with_gradient(query, key, queue, 0.2, Loss.plain)
    torch.testing.assert_close(found[0], expected[0], atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(found[1], expected[1], atol=5e-3 / count, rtol=5e-3)
