"""Random draws on the device, in torch, bit-equal to those of `host`.

Torch has no shifts of uint64 on the CPU, so words are int64 with masked shifts here.
"""

import torch
from torch import Tensor

from fastmoco.draws.streams import GOLDEN, MIX_1, MIX_2, Draw


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64; torch's own shift would copy the sign bit."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _unit_interval(word: Tensor) -> Tensor:
    return _shift_right(word, 40).to(torch.float32) * 2.0**-24


def _absorb_tensor(state: Tensor, word: int) -> Tensor:
    return _mix_tensor(state + _signed(GOLDEN * (word + 1) & (2**64 - 1)))


def _mix_tensor(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _signed(MIX_1)
    z = (z ^ _shift_right(z, 27)) * _signed(MIX_2)
    return z ^ _shift_right(z, 31)


def uniform(draw_key: Tensor, what: Draw, view: int) -> Tensor:
    """Uniform draws in [0, 1) on the device, bit-equal to the host's.

    Args:
        draw_key: ``(N,)`` int64, any device; ``(N, V)`` if the views are of different images.
        what: Purpose of the draw.
        view: 0 for the query's view, 1 for the key's.

    Returns:
        ``(N,)`` float32, multiples of 2^-24.
    """
    return _unit_interval(fork(draw_key, what, view))


def fork(draw_key: Tensor, what: Draw, view: int) -> Tensor:
    """Key of a separate stream, for a purpose that needs several draws; see `stream_uniforms`.

    Args:
        draw_key: ``(N,)`` or ``(N, V)`` int64, as in `uniform`.
        what: Purpose of the stream.
        view: 0 for the query's view, 1 for the key's.

    Returns:
        ``(N,)`` int64.
    """
    key = draw_key if draw_key.ndim == 1 else draw_key[:, view]
    return _absorb_tensor(key, (int(what) << 32) | (view << 16))


def stream_uniforms(stream: Tensor, part: int, count: int) -> Tensor:
    """First ``count`` draws of one part of a stream; a smaller count gives a prefix.

    Args:
        stream: ``(N,)`` int64, from `fork`.
        part: 0 or more; parts are independent.
        count: Draws per stream.

    Returns:
        ``(N, count)`` float32 in [0, 1), multiples of 2^-24.
    """
    return _unit_interval(_stream(stream, part, count))


def stream_integers(stream: Tensor, part: int, count: int, below: int) -> Tensor:
    """First ``count`` draws of one part of a stream as integers.

    Args:
        stream: ``(N,)`` int64, from `fork`.
        part: 0 or more; parts are independent.
        count: Draws per stream.
        below: 1 or more; the remainder of 63 bits favors no value by more than ``below / 2^63``.

    Returns:
        ``(N, count)`` int64 in [0, below).
    """
    return _shift_right(_stream(stream, part, count), 1) % below


def _stream(stream: Tensor, part: int, count: int) -> Tensor:
    counter = _counter(count, stream.device)
    return _mix_tensor(_absorb_tensor(stream, part)[:, None] + counter)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _counter(count: int, device: torch.device) -> Tensor:
    """Multiples of the hash's increment, ``(count,)`` int64: a constant where it is compiled.

    An arange in the graph draws a wrong tail or writes outside its memory on CPUs without AVX-512
    (inductor of torch 2.15; counts of 12 and 100, for example).
    """
    return torch.arange(1, count + 1, device=device) * _signed(GOLDEN)


def permutation(draw_key: Tensor) -> Tensor:
    """Order in which the key encoder sees its batch under shuffled batch norm.

    Several ranks know the order of their global batch on the host (`host.shuffled_order`).

    Returns:
        ``(N,)`` int64, on the device.
    """
    return torch.argsort(uniform(draw_key, Draw.SHUFFLE, 1), stable=True)
