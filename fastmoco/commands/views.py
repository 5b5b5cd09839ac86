"""`fastmoco views`: draw the augmented views of images."""

from fastmoco.commands.command import Command
from fastmoco.visualize.settings import ViewsConfig


def _run(arguments: list[str], cfg: ViewsConfig) -> str:
    from fastmoco.visualize.views import write_views

    return str(write_views(arguments[0], cfg))


COMMAND = Command(
    name="views",
    arguments=("FILE.beton",),
    options="[policy=NAME] [key=value ...]",
    summary="draw the first images and their augmented views",
    examples=("fastmoco views train.beton policy=simclr out=views.png",),
    config=ViewsConfig,
    run=_run,
)
