"""The encoder that is handed on, with what is known of it."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastmoco.configuration import config_from_dict
from fastmoco.errors import UsageError
from fastmoco.evaluate.features import FrozenEncoder, load_encoder
from fastmoco.interop.settings import Part
from fastmoco.runs.checkpoint import load_checkpoint
from fastmoco.train.settings import TrainConfig


@dataclass(slots=True)
class Subject:
    """A frozen encoder, in evaluation mode on the CPU, and its checkpoint's facts."""

    run: Path
    """As the user gave it."""
    path: Path
    """The checkpoint's or encoder's file."""
    encoder: FrozenEncoder
    config: TrainConfig
    """Of the run; of an imported encoder, only `model`, `moco` and `pipeline` mean something."""
    facts: dict[str, Any]
    step: int

    @property
    def architecture(self) -> str:
        """In words: ``resnet18, small stem, width 16``."""
        model = self.config.model
        return f"{model.encoder}, {model.stem.value} stem, width {model.width}"

    @property
    def imported(self) -> dict[str, Any] | None:
        """Where an imported encoder came from; None for one that fastmoco trained."""
        found: dict[str, Any] | None = self.facts.get("imported")
        return found

    @property
    def has_head(self) -> bool:
        """Whether the projection head is there."""
        return bool(self.facts.get("has_head", True))

    def tensors(self, part: Part) -> dict[str, Tensor]:
        """``backbone.*`` and, for the whole encoder, ``head.*``."""
        prefixes = ("backbone.", "head.") if part is Part.encoder else ("backbone.",)
        state = self.encoder.state_dict()
        return {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}


def load_subject(run: Path) -> Subject:
    """Load the encoder of a run, a checkpoint, or an exported file.

    Raises:
        ValueError: If there is none, or it is damaged.
    """
    checkpoint = load_checkpoint(run)
    path = checkpoint.path
    assert path is not None  # it was read from there
    config = config_from_dict(TrainConfig, checkpoint.facts["config"])
    return Subject(run, path, load_encoder(path), config, checkpoint.facts, checkpoint.step)


def refuse_head(part: Part, target: str) -> None:
    """Refuse a projection head where the target has no place for one.

    Raises:
        UsageError: If one is asked for.
    """
    if part is Part.encoder:
        raise UsageError(
            f"to={target} holds a backbone alone; set part=backbone, or to=onnx or to=safetensors"
        )
