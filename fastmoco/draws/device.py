"""Draws on the device, in torch: bit-equal to those of `host`.

Torch has no shifts of uint64 on the CPU, so words are int64 with masked shifts here.
"""

import torch
from torch import Tensor

from fastmoco.draws.streams import GOLDEN, MIX_1, MIX_2, Draw


def _signed(word: int) -> int:
    return word - (1 << 64) if word >= 1 << 63 else word


def _shift_right(z: Tensor, bits: int) -> Tensor:
    """Logical shift of an int64 tensor: torch's own would drag the sign in."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _absorb_tensor(state: Tensor, word: int) -> Tensor:
    return _mix_tensor(state + _signed(GOLDEN * (word + 1) & (2**64 - 1)))


def _mix_tensor(z: Tensor) -> Tensor:
    z = (z ^ _shift_right(z, 30)) * _signed(MIX_1)
    z = (z ^ _shift_right(z, 27)) * _signed(MIX_2)
    return z ^ _shift_right(z, 31)


def _of_view(draw_key: Tensor, view: int) -> Tensor:
    return draw_key if draw_key.ndim == 1 else draw_key[:, view]


def uniform(draw_key: Tensor, what: Draw, view: int) -> Tensor:
    """Uniform draws in [0, 1) on the device, bit-equal to the host's.

    Args:
        draw_key: ``(N,)`` int64, any device; ``(N, V)`` where each view is of an image of its own.
        what: What the draw is for.
        view: 0 for the query's view, 1 for the key's.

    Returns:
        ``(N,)`` float32, multiples of 2^-24.
    """
    bits = _shift_right(fork(draw_key, what, view), 40)
    return bits.to(torch.float32) * 2.0**-24


def fork(draw_key: Tensor, what: Draw, view: int) -> Tensor:
    """The key of a stream of its own, for what needs more than one draw: see `stream_uniforms`.

    Args:
        draw_key: As of `uniform`; likewise the others.
        what: What the stream is for.
        view: Of which view.

    Returns:
        ``(N,)`` int64.
    """
    return _absorb_tensor(_of_view(draw_key, view), (int(what) << 32) | (view << 16))


def stream_uniforms(stream: Tensor, part: int, count: int) -> Tensor:
    """The first draws of one part of a stream: asking for fewer gives a prefix.

    Args:
        stream: ``(N,)`` int64, from `fork`.
        part: 0 or more; parts are independent.
        count: Draws of each.

    Returns:
        ``(N, count)`` float32 in [0, 1), multiples of 2^-24.
    """
    return _shift_right(_stream(stream, part, count), 40).to(torch.float32) * 2.0**-24


def stream_integers(stream: Tensor, part: int, count: int, below: int) -> Tensor:
    """As `stream_uniforms`, integers.

    Args:
        stream: ``(N,)`` int64, from `fork`.
        part: 0 or more; parts are independent.
        count: Draws of each.
        below: 1 or more; the remainder of 63 bits favors none by more than ``below / 2^63``.

    Returns:
        ``(N, count)`` int64 in [0, below).
    """
    return _shift_right(_stream(stream, part, count), 1) % below


def _stream(stream: Tensor, part: int, count: int) -> Tensor:
    place = torch.arange(1, count + 1, device=stream.device) * _signed(GOLDEN)
    return _mix_tensor(_absorb_tensor(stream, part)[:, None] + place)


def permutation(draw_key: Tensor) -> Tensor:
    """The order in which the key encoder sees its batch under shuffled batch norm.

    Returns:
        ``(N,)`` int64, on the device.
    """
    return torch.argsort(uniform(draw_key, Draw.SHUFFLE, 1), stable=True)
