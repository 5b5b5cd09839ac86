"""`fastmoco feature-maps`: draw the maps of a layer."""

from pathlib import Path

from fastmoco.commands.command import Command, Result
from fastmoco.visualize.settings import FeatureMapsConfig


def _run(arguments: list[str], cfg: FeatureMapsConfig) -> Result:
    from fastmoco.visualize.feature_maps import write_feature_maps

    return write_feature_maps(Path(arguments[0]), cfg)


COMMAND = Command(
    name="feature-maps",
    arguments=("RUN",),
    options="image=FILE [layer=NAME] [out=FILE.png] [key=value ...]",
    summary="draw the output of a layer for one image",
    examples=("fastmoco feature-maps runs/first image=cat.jpg layer=layer1 out=maps.png",),
    config=FeatureMapsConfig,
    run=_run,
)
