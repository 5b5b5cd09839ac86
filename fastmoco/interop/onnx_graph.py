"""The encoder as an ONNX graph with a dynamic batch, checked against onnxruntime.

The graph's metadata (``metadata_props``) describe its input: image size, crop, mean and standard
deviation.
"""

import importlib
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fastmoco.errors import UsageError
from fastmoco.interop.loaded_encoder import LoadedEncoder
from fastmoco.interop.settings import ExportConfig, Normalize, Part
from fastmoco.interop.state_dicts import write_bytes
from fastmoco.version import __version__

if TYPE_CHECKING:
    from fastmoco.evaluate.frozen_encoder import FrozenEncoder

TOLERANCE = 1e-4
"""Largest difference from PyTorch that rounding explains, as a fraction of the largest feature."""


class _Graph(nn.Module):
    """Exported module, from images to vectors."""

    def __init__(self, encoder: "FrozenEncoder", part: Part, normalize: Normalize) -> None:
        super().__init__()
        self.inside = normalize is Normalize.inside
        # A FrozenEncoder normalizes its input, its backbone does not.
        self.body: nn.Module = encoder if self.inside else encoder.backbone
        self.head = encoder.head if part is Part.encoder else nn.Identity()
        self.eval()

    def forward(self, images: Tensor) -> Tensor:
        vectors: Tensor = self.head(self.body(images))
        return vectors


def write_onnx(out: Path, loaded: LoadedEncoder, cfg: ExportConfig) -> str:
    """Write the graph, after comparing it with PyTorch on random images.

    Its input ``images`` is ``(batch, 3, S, S)`` float32, RGB, in 0..1 or normalized by the caller.
    Its output ``features`` is ``(batch, D)`` float32.

    Returns:
        Python code that loads it, and the difference from PyTorch.

    Raises:
        UsageError: If the file's ending is another, or ONNX's packages are missing.
        ValueError: If the features of onnxruntime differ by more than `TOLERANCE`.
    """
    if out.suffix != ".onnx":
        raise UsageError(f"out={out} must end in .onnx")
    graph = _Graph(loaded.encoder, cfg.part, cfg.normalize)
    size = loaded.encoder.eval_size
    content = _serialized(graph, size, _description(loaded, cfg))
    difference = _difference(content, graph, size)
    if not difference <= TOLERANCE:
        raise ValueError(
            f"onnxruntime differs from PyTorch by {difference:.2g} of the largest feature, but "
            f"rounding explains at most {TOLERANCE:g}; nothing was written"
        )
    write_bytes(out, content)
    takes = "RGB in 0..1" if graph.inside else "RGB, normalized"
    return (
        f"session = onnxruntime.InferenceSession({str(out)!r}); "
        f'session.run(None, {{"images": x}})  # x (N, 3, {size}, {size}) float32, {takes}\n'
        f"differs from PyTorch by {difference:.1g} of the largest feature"
    )


def _package(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise UsageError(
            f"to=onnx needs {error.name}; install it: pip install onnx onnxruntime onnxscript"
        ) from error


def _serialized(graph: nn.Module, size: int, description: dict[str, str]) -> bytes:
    onnx, _ = _package("onnx"), _package("onnxscript")  # the exporter needs the second one
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter warns about its own internals
        program = torch.onnx.export(
            graph,
            (torch.rand(2, 3, size, size),),
            dynamo=True,
            dynamic_shapes={"images": {0: torch.export.Dim("batch")}},
            input_names=["images"],
            output_names=["features"],
            verbose=False,
        )
    assert program is not None
    proto = program.model_proto
    onnx.helper.set_model_props(proto, description)
    content: bytes = proto.SerializeToString()
    return content


def _description(loaded: LoadedEncoder, cfg: ExportConfig) -> dict[str, str]:
    encoder = loaded.encoder
    return {
        "made_by": f"fastmoco {__version__}",
        "encoder": loaded.architecture,
        "part": cfg.part.value,
        "normalization": cfg.normalize.value,
        "channel_mean": json.dumps([round(value, 6) for value in encoder.mean.tolist()]),
        "channel_std": json.dumps([round(value, 6) for value in encoder.std.tolist()]),
        "image_size": str(encoder.eval_size),
        "center_crop": str(encoder.center_crop),
    }


@torch.no_grad()
def _difference(content: bytes, graph: nn.Module, size: int) -> float:
    """Largest difference over batches of 1 and 3 images, as a fraction of the largest feature."""
    runtime = _package("onnxruntime")
    session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
    generator = torch.Generator().manual_seed(0)
    worst = 0.0
    for count in (1, 3):
        images = torch.rand(count, 3, size, size, generator=generator)
        expected = graph(images)
        (found,) = session.run(None, {"images": images.numpy()})
        scale = expected.abs().max().clamp(min=1e-12)
        worst = max(worst, ((torch.from_numpy(found) - expected).abs().max() / scale).item())
    return worst
