"""What other programs call an option or a value, for the hint in a refusal."""

from collections.abc import Sequence
from typing import Any

from fastmoco.errors import nearest_name

OTHER_NAMES = {
    "accum": "train.accumulate",
    "amp": "precision",
    "arch": "model.encoder",
    "aug": "policy",
    "augmentation": "policy",
    "backbone": "model.encoder",
    "batch": "global_batch_size",
    "batch_size": "global_batch_size",
    "blr": "optimizer.learning_rate",
    "bs": "global_batch_size",
    "config": "experiment recipe protocol",
    "cuda": "device",
    "data": "data.train",
    "data_dir": "data.train",
    "dataset": "data.train",
    "encoder": "model.encoder encoder",
    "exp": "experiment",
    "feature_dim": "moco.dim",
    "fp16": "precision",
    "gpu": "device",
    "gpus": "device",
    "half": "precision",
    "image_size": "pipeline.view_size view_size",
    "img_size": "pipeline.view_size view_size",
    "input": "data.train image",
    "iterations": "train.max_steps train.steps",
    "j": "pipeline.num_threads workers",
    "k": "moco.queue_size",
    "layers": "trainable",
    "lr": "optimizer.learning_rate",
    "m": "moco.momentum",
    "model": "model.encoder",
    "n_epochs": "train.epochs epochs",
    "neighbors": "k",
    "num_epochs": "train.epochs epochs",
    "num_workers": "pipeline.num_threads workers",
    "opt": "optimizer.name",
    "optim": "optimizer.name",
    "optimizer": "optimizer.name",
    "output": "out run_dir",
    "output_dir": "run_dir out",
    "pipeline": "pipeline.name",
    "preset": "experiment recipe protocol",
    "queue": "moco.queue_size",
    "random_seed": "seed",
    "resolution": "pipeline.view_size view_size",
    "resume": "run_dir",
    "save_dir": "run_dir out",
    "scheduler": "optimizer.schedule",
    "size": "pipeline.view_size view_size max_size",
    "steps": "train.max_steps train.steps",
    "t": "moco.temperature temperature",
    "tau": "moco.temperature temperature",
    "temp": "moco.temperature temperature",
    "test": "data.test",
    "threads": "pipeline.num_threads workers",
    "train": "data.train",
    "transform": "policy",
    "val": "data.test",
    "warmup": "optimizer.warmup_epochs optimizer.warmup_steps",
    "wd": "optimizer.weight_decay",
    "workers": "pipeline.num_threads",
}
"""Options by the names that other programs give them; of several, the first that a command has."""

OTHER_VALUES = {
    "32": "float32",
    "fp32": "float32",
    "float": "float32",
    "full": "float32",
    "16": "fp16",
    "amp": "fp16",
    "float16": "fp16",
    "half": "fp16",
    "mixed": "fp16",
    "bfloat16": "bf16",
    "true": "always",
    "on": "always",
    "yes": "always",
    "false": "never",
    "off": "never",
    "no": "never",
    "step": "multistep",
    "none": "constant",
    "simclr": "end_to_end",
    "infonce": "plain",
    "sync": "synchronized",
    "syncbn": "synchronized",
}
"""Values of options by the names that other programs give them."""


def other_name(name: str, known: Sequence[str]) -> str | None:
    """The option that another program calls `name`, or None."""
    plain = name.lower().rsplit(".", 1)[-1].lstrip("-").replace("-", "_")
    names = OTHER_NAMES.get(plain, "").split()
    return next((own for own in names if own in known), None)


def nearest_option(name: str, known: Sequence[str]) -> str:
    """As `errors.nearest_name`, for an option; the names of other programs come first.

    Few options are listed, or none: a long list hides the message.
    """
    if own := other_name(name, known):
        return f"; did you mean {own}?"
    hint = nearest_name(name, list(known))
    return hint if "did you mean" in hint or len(known) <= 12 else "; --help lists all options"


def nearest_value(value: str, allowed: Sequence[str]) -> str:
    """``; did you mean NAME?`` for a value that another program takes or a misspelled one."""
    own = OTHER_VALUES.get(value.lower())
    if own in allowed:
        return f"; did you mean {own}?"
    hint = nearest_name(value, list(allowed))
    return hint if "did you mean" in hint else ""


def as_option(key: str, value: Any) -> str:
    """``key=value`` for a value in Python: lists in brackets, None as null."""
    return f"{key}={_spelled(value)}"


def _spelled(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(_spelled(item) for item in value)}]"
    if isinstance(value, bool):  # 1 is equal to True
        return str(value).lower()
    return "null" if value is None else str(value)
