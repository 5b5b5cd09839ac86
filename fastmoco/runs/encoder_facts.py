"""What a checkpoint says of its encoder, checked: an encoder file may come from anybody."""

import math
from typing import Any, NamedTuple, TypeVar

from fastmoco.configuration import config_from_dict
from fastmoco.errors import UsageError
from fastmoco.runs.checkpoint import Checkpoint
from fastmoco.runs.checkpoint_files import CheckpointError

T = TypeVar("T")


class EncoderFacts(NamedTuple):
    """Facts that an encoder is built and fed by."""

    config: dict[str, Any]
    """Values of the run's configuration."""
    mean: list[float]
    """Channel mean in 0..1."""
    std: list[float]
    """Channel standard deviation, in 0..1."""


def encoder_facts(checkpoint: Checkpoint) -> EncoderFacts:
    """The facts of a checkpoint's encoder.

    Raises:
        CheckpointError: If one is missing or of a wrong kind.
    """
    facts = checkpoint.facts
    if not isinstance(facts.get("config"), dict):
        raise CheckpointError(f"{checkpoint.path} is damaged (it lacks its configuration)")
    for name, low in (("channel_mean", -1e-9), ("channel_std", 0)):
        values = facts.get(name)
        numbers = values if isinstance(values, list) and len(values) == 3 else [None]
        if not all(isinstance(v, int | float) and low < v < math.inf for v in numbers):
            raise CheckpointError(f"{checkpoint.path} is damaged ({name} is not three numbers)")
    return EncoderFacts(facts["config"], facts["channel_mean"], facts["channel_std"])


def saved_config(checkpoint: Checkpoint, schema: type[T]) -> T:
    """The configuration of a checkpoint's run.

    Raises:
        CheckpointError: If it is missing, or has a key or value that the schema does not know.
    """
    try:
        return config_from_dict(schema, encoder_facts(checkpoint).config)
    except UsageError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error
