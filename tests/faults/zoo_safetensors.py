"""Hostile and damaged safetensors files, made by code: weights and our own encoders."""

import json
import struct
from collections.abc import Iterator
from typing import Any

Case = tuple[str, bytes, str]
"""Name, the file's bytes, and a word of the reason; "" if its tensors are read."""

VALUES = bytes(24)
TENSOR: dict[str, Any] = {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}
DAMAGED = "damaged or is not a safetensors file"


def packed(header: Any, values: bytes = VALUES, *, size: int | None = None) -> bytes:
    """A file with this header, whose length is claimed to be `size`."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if size is None else size) + text + values


def cases() -> Iterator[Case]:
    """More than 20 files."""
    yield "sound", packed({"a": TENSOR}), ""
    yield "names with escapes", packed({"a\n\x1b[2J": TENSOR}), ""
    for name, changes in (
        ("tensor of an exabyte", {"shape": [1 << 58], "data_offsets": [0, 1 << 60]}),
        ("shape that overflows", {"shape": [1 << 40, 1 << 40]}),
        ("shape larger than its values", {"shape": [200, 300]}),
        ("negative shape", {"shape": [-2, -3]}),
        ("shape of fractions", {"shape": [2.0, 3.0]}),
        ("offsets backwards", {"data_offsets": [24, 0]}),
        ("offsets beyond the end", {"data_offsets": [1000, 1024]}),
        ("negative offsets", {"data_offsets": [-24, 0]}),
        ("unknown dtype", {"dtype": "F31"}),
        ("no dtype", {"dtype": None}),
    ):
        yield name, packed({"a": TENSOR | changes}), DAMAGED
    yield "tensors that overlap", packed({"a": TENSOR, "b": TENSOR}), DAMAGED
    gap = {"a": TENSOR | {"shape": [2, 2], "data_offsets": [0, 16]}}
    yield "gap at the end", packed(gap), DAMAGED
    yield "metadata of numbers", packed({"__metadata__": {"step": 3}, "a": TENSOR}), DAMAGED
    yield "header of an exabyte", packed({"a": TENSOR}, size=1 << 60), DAMAGED
    yield "header of 2^64 - 1", packed({"a": TENSOR}, size=(1 << 64) - 1), DAMAGED
    yield "header of nothing", packed(b"", b""), DAMAGED
    yield "header cut", packed({"a": TENSOR})[:30], DAMAGED
    yield "header nested 100,000 deep", packed(b"[" * 100_000), DAMAGED
    yield "header of a list", packed([1]), DAMAGED
    yield "header not UTF-8", packed(b'{"\xff": 1}'), DAMAGED
    yield "no bytes", b"", DAMAGED
    yield "a pickle", b"\x80\x02cos\nsystem\nX\x05\x00\x00\x00touch\x85R.", DAMAGED
    yield "zeros", bytes(300), DAMAGED


def encoder_changes() -> Iterator[tuple[str, dict[str, Any], str]]:
    """Changed facts of an exported encoder with right checksums: who makes it can compute them."""
    config, model = {"config": {}}, "model"
    yield "no configuration", {"config": None}, "lacks its configuration"
    yield "configuration of text", {"config": "x"}, "lacks its configuration"
    yield "unknown option", {"config": {model: {"evil": 1}}}, "evil"
    yield "unknown encoder", {"config": {model: {"encoder": "resnet99"}}}, "resnet99"
    yield "width of a million", {"config": {model: {"width": 1_000_000}}}, "another model"
    yield "dim of a billion", {"config": {"moco": {"dim": 10**9}}}, "another model"
    yield "width of text", {"config": {model: {"width": "wide"}}}, "wide"
    yield "other encoder", {"config": {model: {"encoder": "resnet152"}}}, "another model"
    yield "no mean", config | {"channel_mean": None}, "channel_mean is not three numbers"
    yield "mean of text", {"channel_mean": ["a", "b", "c"]}, "channel_mean is not three numbers"
    yield "infinite mean", {"channel_mean": [1e999, 0, 0]}, "channel_mean is not three numbers"
    yield "deviation 0", {"channel_std": [0, 0, 0]}, "channel_std is not three numbers"
