"""`fastmoco import`: import weights."""

from pathlib import Path

from fastmoco.commands.command import Command, Result
from fastmoco.interop.settings import ImportConfig


def _run(arguments: list[str], cfg: ImportConfig) -> Result:
    from fastmoco.interop.import_weights import import_weights

    return import_weights(Path(arguments[0]), cfg)


COMMAND = Command(
    name="import",
    arguments=("FILE",),
    options="out=FOLDER [key=value ...]",
    summary="import weights of MoCo, solo-learn, lightly, torchvision or timm",
    examples=("fastmoco import moco_v2_200ep_pretrain.pth.tar out=runs/official",),
    config=ImportConfig,
    run=_run,
)
