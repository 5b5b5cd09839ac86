"""`fastmoco COMMAND [ARGS] [key=value ...]`: parse, load the configuration, call one function.

Exit codes: 0 done, 1 failed, 2 wrong usage, 130/143 interrupted after saving.
"""

import difflib
import importlib
import io
import json
import os
import re
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any, NamedTuple, TextIO

from fastmoco.ranks import environment_ranks, local_ranks

# Heavy modules are imported by the command that needs them: `fastmoco --help` answers at once.


class Command(NamedTuple):
    """One command of the command line."""

    run: Callable[[list[str]], None]
    usage: str
    summary: str
    schema: str | None = None


class CommandError(ValueError):
    """Wrong usage, found before any module is loaded."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="surrogateescape")  # paths are printed as they are
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        _print_overview()
        return 0 if arguments else 2
    if arguments[0] == "--version":
        from fastmoco import __version__

        print(f"fastmoco {__version__}")  # noqa: T201
        return 0
    name, *rest = arguments
    if name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        return _fail(
            2,
            f"unknown command {name}"
            + (f"; did you mean {near[0]}?" if near else "; see fastmoco --help"),
        )
    if "-h" in rest or "--help" in rest:
        _print_help(name)
        return 0
    return _guarded(lambda: COMMANDS[name].run(rest))


def _guarded(action: Callable[[], None]) -> int:
    """Run a command; what a user can mend becomes one line, a bug keeps its traceback."""
    warnings.showwarning = _show_warning
    received = [signal.SIGINT]
    try:
        with _terminated_like_interrupted(received):
            action()
    except CommandError as error:
        return _fail(2, str(error))
    except KeyboardInterrupt as error:
        return _fail(128 + received[-1], str(error) or "interrupted")
    except (ValueError, OSError) as error:
        from fastmoco.schema import UsageError

        return _fail(2 if isinstance(error, UsageError | FileNotFoundError) else 1, _message(error))
    except RuntimeError as error:
        from fastmoco.train.loop import Interrupted

        if not isinstance(error, Interrupted):
            raise
        return _fail(128 + error.signal_number, str(error))
    return 0


@contextmanager
def _terminated_like_interrupted(received: list[signal.Signals]) -> Iterator[None]:
    """Within the block, SIGTERM raises KeyboardInterrupt, as SIGINT does, and is noted.

    A command that goes on for a while after a signal (`train`) has its own handlers meanwhile.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(signal.Signals(number))
        raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():  # others may set no handlers
        yield
        return
    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Our own warnings are one line for people, once a machine; others keep Python's form."""
    if not local_ranks().is_first:
        return
    if category is UserWarning and not file:
        print(f"fastmoco: {_one_line(str(message))}", file=sys.stderr)  # noqa: T201
    else:
        text = warnings.formatwarning(message, category, filename, lineno, line)
        print(text, file=file or sys.stderr, end="")


def _message(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        named = error.filename is not None
        return f"{error.filename}: {error.strerror.lower()}" if named else error.strerror
    return str(error)


def _fail(code: int, message: str) -> int:
    """Say why; what all ranks find alike (usage, a signal), the first one of a machine says."""
    if code == 1 and environment_ranks().several:
        message = f"rank {environment_ranks().rank}: {message}"
    if code == 1 or local_ranks().is_first:
        print(f"fastmoco: {_one_line(message)}", file=sys.stderr)  # noqa: T201
    return code


def _one_line(message: str) -> str:
    """With escapes for what is not printable: file names may hold line breaks, or worse."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in message)


def _split(arguments: list[str], positional: Sequence[str]) -> tuple[list[str], list[str], bool]:
    """Positional arguments, ``key=value`` overrides, and whether ``--json`` was given."""
    flags = [a for a in arguments if a.startswith("--")]
    if unknown := [flag for flag in flags if flag != "--json"]:
        raise CommandError(f"unknown flag {unknown[0]}; options are given as key=value")
    places = [a for a in arguments if not a.startswith("--")][: len(positional)]
    if len(places) < len(positional):
        raise CommandError(f"{positional[len(places)]} is missing; see --help")
    rest = [a for a in arguments if not a.startswith("--")][len(positional) :]
    if stray := [a for a in rest if "=" not in a]:
        raise CommandError(f"unexpected argument {stray[0]}; options are given as key=value")
    return places, rest, bool(flags)


def _file_alone(arguments: list[str]) -> tuple[str, bool]:
    """The file of a command that has no options but ``--json``."""
    (path,), overrides, as_json = _split(arguments, ("FILE.beton",))
    if overrides:
        raise CommandError(f"unexpected argument {overrides[0]}; the file is all that is needed")
    return path, as_json


def _load(schema_name: str, overrides: list[str]) -> Any:
    config = importlib.import_module("fastmoco.config")
    schema = getattr(config, schema_name)
    return config.load_config(schema, config.quote_paths(schema, overrides))


def _convert(arguments: list[str]) -> None:
    (source, target), overrides, as_json = _split(arguments, ("SRC", "DST.beton"))
    from pathlib import Path

    from fastmoco.data.convert import convert

    summary = convert(source, Path(target), _load("ConvertConfig", overrides))
    print(json.dumps(summary.to_json()) if as_json else summary.to_text())  # noqa: T201


def _info(arguments: list[str]) -> None:
    path, as_json = _file_alone(arguments)
    from fastmoco.data.verify import describe, description_text

    facts = describe(path)
    print(json.dumps(facts) if as_json else description_text(facts))  # noqa: T201


def _verify(arguments: list[str]) -> None:
    path, as_json = _file_alone(arguments)
    from fastmoco.data.verify import verify

    report = verify(path)
    print(json.dumps(report.to_json()) if as_json else report.to_text())  # noqa: T201


def _train(arguments: list[str]) -> None:
    from fastmoco.train.application import run_application

    run_application(arguments)


def _views(arguments: list[str]) -> None:
    (path,), overrides, _ = _split(arguments, ("FILE.beton",))
    from fastmoco.inspection.views import write_views

    print(write_views(path, _load("ViewsConfig", overrides)))  # noqa: T201


def _about(path: str, function: str, schema: str) -> Callable[[list[str]], None]:
    """A command about one path: ``module.function(Path, config)`` gives a result to print."""

    def run(arguments: list[str]) -> None:
        (place,), overrides, as_json = _split(arguments, (path,))
        from pathlib import Path

        # A list of numbers needs no brackets here: to Hydra it would be a sweep.
        overrides = [re.sub(r"^(queries)=(\d+(,\d+)*)$", r"\1=[\2]", item) for item in overrides]
        module, _, name = function.rpartition(".")
        call = getattr(importlib.import_module(f"fastmoco.{module}"), name)
        result = call(Path(place), _load(schema, overrides))
        if environment_ranks().is_first:
            print(json.dumps(result.to_json()) if as_json else result.to_text())  # noqa: T201

    return run


def _sweep(arguments: list[str]) -> None:
    (name,), overrides, _ = _split(arguments, ("NAME",))
    from fastmoco.reproduce.sweep import sweep

    sweep(name, overrides)


def _table(arguments: list[str]) -> None:
    (name,), overrides, _ = _split(arguments, ("NAME",))
    from fastmoco.reproduce.table import write_table

    print(write_table(name, _load("SweepTableConfig", overrides)))  # noqa: T201


def _demo(arguments: list[str]) -> None:
    _, overrides, _ = _split(arguments, ())
    from fastmoco.demo import demo

    demo(overrides)


COMMANDS = {
    "convert": Command(
        _convert,
        "fastmoco convert SRC DST.beton [key=value ...] [--json]",
        "make a dataset file of a folder, manifest, tar shards, arrays, torchvision:NAME",
        "ConvertConfig",
    ),
    "info": Command(_info, "fastmoco info FILE.beton [--json]", "say what a dataset file holds"),
    "verify": Command(
        _verify, "fastmoco verify FILE.beton [--json]", "check and decode every sample"
    ),
    "views": Command(
        _views,
        "fastmoco views FILE.beton [policy=NAME] [key=value ...]",
        "write a picture of what a policy makes of the first images",
        "ViewsConfig",
    ),
    "train": Command(
        _train,
        "fastmoco train [experiment=NAME] data.train=FILE.beton [key=value ...]",
        "pretrain an encoder; the same command again resumes",
        "TrainConfig",
    ),
    "knn": Command(
        _about("RUN", "evaluate.knn.knn", "KnnConfig"),
        "fastmoco knn RUN data.train=FILE.beton data.test=FILE.beton [key=value ...] [--json]",
        "evaluate a run by k-nearest neighbors",
        "KnnConfig",
    ),
    "linear": Command(
        _about("RUN", "evaluate.linear.linear", "LinearConfig"),
        "fastmoco linear RUN data.train=FILE.beton data.test=FILE.beton [protocol=NAME] "
        "[key=value ...] [--json]",
        "evaluate a run by a linear classifier on the frozen encoder",
        "LinearConfig",
    ),
    "finetune": Command(
        _about("RUN", "evaluate.finetune.finetune", "FinetuneConfig"),
        "fastmoco finetune RUN data.train=FILE.beton data.test=FILE.beton [key=value ...] [--json]",
        "train a run's encoder, or a part of it, with few or all labels",
        "FinetuneConfig",
    ),
    "evaluate": Command(
        _about("RUN", "evaluate.tables.evaluate", "EvaluateConfig"),
        "fastmoco evaluate RUN data.train=FILE.beton data.test=FILE.beton [key=value ...] [--json]",
        "knn, linear and finetune of a run with their baselines, as one table",
        "EvaluateConfig",
    ),
    "noise-table": Command(
        _about("RUN", "evaluate.tables.noise_table", "NoiseTableConfig"),
        "fastmoco noise-table RUN data.train=FILE.beton data.test=FILE.beton [key=value ...] "
        "[--json]",
        "accuracy against wrong labels, pretrained, untrained and supervised",
        "NoiseTableConfig",
    ),
    "embed": Command(
        _about("RUN", "evaluate.embed.embed", "EmbedConfig"),
        "fastmoco embed RUN data.test=FILE.beton out=FILE.parquet [key=value ...] [--json]",
        "write the features of a dataset as Parquet or npy",
        "EmbedConfig",
    ),
    "neighbors": Command(
        _about("RUN", "inspection.neighbors.write_neighbors", "NeighborsConfig"),
        "fastmoco neighbors RUN data.test=FILE.beton [queries=ID,ID] [key=value ...] [--json]",
        "write a picture of images and those that are nearest to them",
        "NeighborsConfig",
    ),
    "request": Command(
        _about("RUN", "inspection.label_request.request", "RequestConfig"),
        "fastmoco request RUN data.train=FILE.beton count=N [out=FOLDER] [key=value ...] [--json]",
        "choose the unlabeled images that are most worth a label; the same command again resumes",
        "RequestConfig",
    ),
    "merge-labels": Command(
        _about("REQUEST", "data.relabel.merge_labels", "MergeLabelsConfig"),
        "fastmoco merge-labels REQUEST labels=FILE.csv data.train=FILE.beton out=FILE.beton "
        "[key=value ...] [--json]",
        "bring the labels that were granted on a request into a dataset file",
        "MergeLabelsConfig",
    ),
    "feature-maps": Command(
        _about("RUN", "inspection.feature_maps.write_feature_maps", "FeatureMapsConfig"),
        "fastmoco feature-maps RUN image=FILE [layer=NAME] [out=FILE.png] [key=value ...] [--json]",
        "write a picture of the maps after a layer, of one image",
        "FeatureMapsConfig",
    ),
    "export": Command(
        _about("RUN", "handover.export.export", "ExportConfig"),
        "fastmoco export RUN to=TARGET out=PATH [key=value ...] [--json]",
        "hand the encoder to torchvision, timm, Hugging Face, detectron2 or ONNX",
        "ExportConfig",
    ),
    "import": Command(
        _about("FILE", "handover.take_in.import_weights", "ImportConfig"),
        "fastmoco import FILE out=FOLDER [key=value ...] [--json]",
        "take in weights of MoCo, solo-learn, lightly, torchvision or timm, to use as RUN",
        "ImportConfig",
    ),
    "detect": Command(
        _about("RUN", "detection.detect.detect", "DetectConfig"),
        "fastmoco detect RUN data.train=VOCdevkit [recipe=NAME] [key=value ...] [--json]",
        "fine-tune a detector on a run's encoder and measure it; the same command again resumes",
        "DetectConfig",
    ),
    "sweep": Command(
        _sweep,
        "fastmoco sweep NAME [scale=small|full] [data.train=FILE.beton data.test=FILE.beton] "
        "[seeds=[0,1,2]] [key=value of fastmoco train ...]",
        "do the runs of a published table; the same command again goes on",
        "SweepConfig",
    ),
    "table": Command(
        _table,
        "fastmoco table NAME [scale=small|full] [key=value ...]",
        "make a sweep's table and plots from its run folders; voc: of fastmoco detect",
        "SweepTableConfig",
    ),
    "demo": Command(
        _demo,
        "fastmoco demo [key=value ...]",
        "the whole way on the built-in images, in minutes",
        "TrainConfig",
    ),
}


def _print_overview() -> None:
    lines = [
        "fastmoco COMMAND [ARGS] [key=value ...]",
        "",
        "Pretrain image encoders without labels by Momentum Contrast.",
        "",
    ]
    lines += [f"  {name:<14}{command.summary}" for name, command in COMMANDS.items()]
    lines += ["", "fastmoco COMMAND --help lists a command's options."]
    _print_lines(lines)


def _print_help(name: str) -> None:
    command = COMMANDS[name]
    lines = [command.usage, "", command.summary]
    if command.schema:
        config = importlib.import_module("fastmoco.config")
        lines += ["", *config.help_lines(getattr(config, command.schema))]
    if name in ("sweep", "table"):
        from fastmoco.reproduce.definition import sweep_names

        lines += ["", f"NAME: {', '.join(sweep_names())}; or FILE.yaml, of your own"]
    if name == "sweep":
        lines.append("and every option of fastmoco train")
    _print_lines(lines)


def _print_lines(lines: list[str]) -> None:
    try:
        print("\n".join(lines), flush=True)  # noqa: T201
    except BrokenPipeError:  # `| head` has seen enough; what Python flushes at exit goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    sys.exit(main())
