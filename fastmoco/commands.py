"""The table of commands, and what each makes of its arguments.

Heavy modules are imported by the command that needs them: `fastmoco --help` answers at once.
"""

import importlib
import json
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from fastmoco.ranks import environment_ranks


class Command(NamedTuple):
    """One command of the command line."""

    run: Callable[[list[str]], None]
    usage: str
    summary: str
    schema: str | None = None


class CommandError(ValueError):
    """Wrong usage, found before any module is loaded."""


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
    config = importlib.import_module("fastmoco.configuration")
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
    from fastmoco.visualize.views import write_views

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
        _about("RUN", "evaluate.linear.classifier.linear", "LinearConfig"),
        "fastmoco linear RUN data.train=FILE.beton data.test=FILE.beton [protocol=NAME] "
        "[key=value ...] [--json]",
        "evaluate a run by a linear classifier on the frozen encoder",
        "LinearConfig",
    ),
    "finetune": Command(
        _about("RUN", "evaluate.finetune.classifier.finetune", "FinetuneConfig"),
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
        _about("RUN", "visualize.neighbors.write_neighbors", "NeighborsConfig"),
        "fastmoco neighbors RUN data.test=FILE.beton [queries=ID,ID] [key=value ...] [--json]",
        "write a picture of images and those that are nearest to them",
        "NeighborsConfig",
    ),
    "request": Command(
        _about("RUN", "labeling.label_request.request", "RequestConfig"),
        "fastmoco request RUN data.train=FILE.beton count=N [out=FOLDER] [key=value ...] [--json]",
        "choose the unlabeled images that are most worth a label; the same command again resumes",
        "RequestConfig",
    ),
    "merge-labels": Command(
        _about("REQUEST", "labeling.merging.merge_labels", "MergeLabelsConfig"),
        "fastmoco merge-labels REQUEST labels=FILE.csv data.train=FILE.beton out=FILE.beton "
        "[key=value ...] [--json]",
        "bring the labels that were granted on a request into a dataset file",
        "MergeLabelsConfig",
    ),
    "feature-maps": Command(
        _about("RUN", "visualize.feature_maps.write_feature_maps", "FeatureMapsConfig"),
        "fastmoco feature-maps RUN image=FILE [layer=NAME] [out=FILE.png] [key=value ...] [--json]",
        "write a picture of the maps after a layer, of one image",
        "FeatureMapsConfig",
    ),
    "export": Command(
        _about("RUN", "interop.export.export", "ExportConfig"),
        "fastmoco export RUN to=TARGET out=PATH [key=value ...] [--json]",
        "hand the encoder to torchvision, timm, Hugging Face, detectron2 or ONNX",
        "ExportConfig",
    ),
    "import": Command(
        _about("FILE", "interop.import_weights.import_weights", "ImportConfig"),
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
