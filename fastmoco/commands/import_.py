"""`fastmoco import`: import weights."""

from pathlib import Path

from fastmoco.commands.command import Command, Result
from fastmoco.interop.settings import ImportConfig


def run(places: list[str], cfg: ImportConfig) -> Result:
    """Do it for FILE."""
    from fastmoco.interop.import_weights import import_weights

    return import_weights(Path(places[0]), cfg)


COMMAND = Command(
    name="import",
    arguments=("FILE",),
    options="out=FOLDER [key=value ...]",
    summary="import weights of MoCo, solo-learn, lightly, torchvision or timm, to use as RUN",
    config=ImportConfig,
    run=run,
)
