"""`fastmoco doctor`: say what this machine has for training, what is missing, and how to get it."""

from fastmoco.commands.command import Command, SlowResult


def _run(_arguments: list[str], _: None) -> SlowResult:
    from fastmoco.doctor.examine import examine

    return examine()


COMMAND = Command(
    name="doctor",
    options="",
    summary="check what this machine has, and say how to get what is missing",
    examples=("fastmoco doctor", "fastmoco doctor --json"),
    run=_run,
)
