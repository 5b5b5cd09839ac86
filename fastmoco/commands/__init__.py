"""The commands of the command line, one module each, and their list."""

from typing import Any

from fastmoco.commands import (
    completion,
    convert,
    demo,
    detect,
    doctor,
    embed,
    evaluate,
    export,
    feature_maps,
    finetune,
    import_,
    info,
    knn,
    linear,
    merge_labels,
    neighbors,
    noise_table,
    replay,
    report,
    request,
    runs,
    sweep,
    table,
    train,
    verify,
    views,
)
from fastmoco.commands.command import Command

COMMANDS: dict[str, Command[Any]] = {
    module.COMMAND.name: module.COMMAND
    for module in (
        convert,
        info,
        verify,
        views,
        train,
        report,
        runs,
        replay,
        knn,
        linear,
        finetune,
        evaluate,
        noise_table,
        embed,
        neighbors,
        request,
        merge_labels,
        feature_maps,
        export,
        import_,
        detect,
        sweep,
        table,
        demo,
        doctor,
        completion,
    )
}
"""Commands by name, in the order of `fastmoco --help`."""
