"""The encoder to export, with the facts of its checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from fastmoco.evaluate.frozen_encoder import FrozenEncoder, encoder_of
from fastmoco.interop.settings import Part
from fastmoco.runs.checkpoint import load_checkpoint
from fastmoco.runs.encoder_facts import saved_config
from fastmoco.train.settings import TrainConfig
from fastmoco.weights.architecture import describe_architecture


@dataclass(slots=True)
class LoadedEncoder:
    """A frozen encoder, in evaluation mode on the CPU, and its checkpoint's facts."""

    run: Path
    """RUN as the user gave it."""
    path: Path
    """File of the checkpoint or of the exported encoder."""
    encoder: FrozenEncoder
    config: TrainConfig
    """Configuration of the run; an imported encoder sets only `model`, `moco` and `pipeline`."""
    facts: dict[str, Any]
    step: int

    @property
    def architecture(self) -> str:
        """Description such as ``resnet18, small stem, width 16``."""
        return describe_architecture(self.config.model)

    @property
    def imported(self) -> dict[str, Any] | None:
        """Origin of an imported encoder; None for one that fastmoco trained."""
        found: dict[str, Any] | None = self.facts.get("imported")
        return found

    @property
    def has_head(self) -> bool:
        """Whether the encoder has its projection head."""
        return bool(self.facts.get("has_head", True))

    def tensors(self, part: Part) -> dict[str, Tensor]:
        """Tensors named ``backbone.*`` and, for `Part.encoder`, ``head.*``."""
        prefixes = ("backbone.", "head.") if part is Part.encoder else ("backbone.",)
        state = self.encoder.state_dict()
        return {name: tensor for name, tensor in state.items() if name.startswith(prefixes)}


def load_for_export(run: Path) -> LoadedEncoder:
    """Load the encoder of a run, a checkpoint or an exported file.

    Raises:
        CheckpointError: If there is none, or it is damaged.
    """
    checkpoint = load_checkpoint(run)
    path = checkpoint.path
    assert path is not None  # it was read from there
    config = saved_config(checkpoint, TrainConfig)
    encoder = encoder_of(checkpoint)
    return LoadedEncoder(run, path, encoder, config, checkpoint.facts, checkpoint.step)
