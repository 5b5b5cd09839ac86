"""`fastmoco export`: export an encoder."""

from pathlib import Path

from fastmoco.commands.command import Command, Result
from fastmoco.interop.settings import ExportConfig


def _run(arguments: list[str], cfg: ExportConfig) -> Result:
    from fastmoco.interop.export import export

    return export(Path(arguments[0]), cfg)


COMMAND = Command(
    name="export",
    arguments=("RUN",),
    options="to=TARGET out=PATH [key=value ...]",
    summary="export the encoder for torchvision, timm, Hugging Face, detectron2 or ONNX",
    examples=("fastmoco export runs/first to=torchvision out=encoder.pth",),
    config=ExportConfig,
    run=_run,
)
