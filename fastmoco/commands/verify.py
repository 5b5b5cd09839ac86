"""`fastmoco verify`: check and decode every sample."""

from fastmoco.commands.command import Command, Result


def run(places: list[str], _: None) -> Result:
    """Check every byte and decode every image of a dataset file."""
    from fastmoco.data.verify import verify

    return verify(places[0])


COMMAND = Command(
    name="verify",
    arguments=("FILE.beton",),
    options="",
    summary="check and decode every sample",
    run=run,
)
