"""`fastmoco views`: draw what a policy makes of images."""

from fastmoco.commands.command import Command
from fastmoco.visualize.settings import ViewsConfig


def run(places: list[str], cfg: ViewsConfig) -> str:
    """Draw the first views of a run with this seed."""
    from fastmoco.visualize.views import write_views

    return str(write_views(places[0], cfg))


COMMAND = Command(
    name="views",
    arguments=("FILE.beton",),
    options="[policy=NAME] [key=value ...]",
    summary="write a picture of what a policy makes of the first images",
    config=ViewsConfig,
    run=run,
)
