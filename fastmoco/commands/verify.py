"""`fastmoco verify`: check and decode every sample."""

from fastmoco.commands.command import Command, Result


def _run(arguments: list[str], _: None) -> Result:
    from fastmoco.data.verify import verify

    return verify(arguments[0])


COMMAND = Command(
    name="verify",
    arguments=("FILE.beton",),
    options="",
    summary="check every byte and decode every image of a dataset file",
    examples=("fastmoco verify train.beton",),
    run=_run,
)
