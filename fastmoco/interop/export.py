"""`fastmoco export`: write a run's encoder in the format of another library."""

import importlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastmoco.errors import UsageError
from fastmoco.interop.loaded_encoder import load_for_export
from fastmoco.interop.settings import ExportConfig, Part, Target
from fastmoco.runs.encoder_file import is_encoder_file
from fastmoco.runs.run_folder import CHECKPOINTS

# Imported when used: ``write(out, loaded, cfg)`` writes the file and returns code that loads it.
WRITERS = {
    Target.torchvision: ("fastmoco.interop.state_dicts", "write_state_dict"),
    Target.timm: ("fastmoco.interop.state_dicts", "write_state_dict"),
    Target.huggingface: ("fastmoco.interop.huggingface_folder", "write_huggingface"),
    Target.detectron2: ("fastmoco.interop.detectron2_weights", "write_detectron2"),
    Target.onnx: ("fastmoco.interop.onnx_graph", "write_onnx"),
    Target.safetensors: ("fastmoco.interop.own_file", "write_own"),
}


@dataclass(slots=True)
class ExportSummary:
    """The exported encoder, and how to load it."""

    out: str
    to: str
    part: str
    encoder: str
    step: int
    feature_dim: int
    image_size: int
    """Side of evaluation crops, pixels."""
    channel_mean: list[float]
    channel_std: list[float]
    loading: str
    """Python code that loads it, or settings of the other library."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    def to_text(self) -> str:
        """For people."""
        mean, std = (
            " ".join(f"{value:.4g}" for value in values)
            for values in (self.channel_mean, self.channel_std)
        )
        return (
            f"{self.out}: {self.part} of {self.encoder}, after {self.step} steps; "
            f"images of {self.image_size} pixels, mean {mean}, std {std}\n{self.loading}"
        )


def export(run: Path, cfg: ExportConfig) -> ExportSummary:
    """Write an encoder for another library, atomically.

    Args:
        run: A run folder, a checkpoint, an imported folder, or an exported safetensors file.
        cfg: From `load_config`.

    Raises:
        UsageError: If the target cannot hold this encoder, or an option is missing or invalid.
        CheckpointError: If there is no checkpoint, or it is damaged.
        OSError: If the file cannot be written.
    """
    if cfg.out is None:
        raise UsageError("out is not set; add out=FILE (a folder for to=huggingface)")
    _check_out(cfg.out, cfg)
    loaded = load_for_export(run)
    if cfg.out.resolve() == loaded.path.resolve():
        raise UsageError(f"out={cfg.out} is the file that is exported; give another path")
    if cfg.part is Part.encoder and not loaded.has_head:
        raise UsageError(f"{loaded.run} has no projection head; set part=backbone")
    module, function = WRITERS[cfg.to]
    loading = getattr(importlib.import_module(module), function)(cfg.out, loaded, cfg)
    return ExportSummary(
        out=str(cfg.out),
        to=cfg.to.value,
        part=cfg.part.value,
        encoder=loaded.architecture,
        step=loaded.step,
        feature_dim=loaded.encoder.backbone.feature_dim,
        image_size=loaded.encoder.eval_size,
        channel_mean=loaded.encoder.mean.tolist(),
        channel_std=loaded.encoder.std.tolist(),
        loading=loading,
    )


def _check_out(out: Path, cfg: ExportConfig) -> None:
    """Refuse to replace what may be needed.

    Files of other libraries' formats have no sign of who wrote them, so they count as foreign.

    Raises:
        UsageError: If `out` is a folder, among a run's checkpoints, or a foreign file.
    """
    if cfg.to is Target.huggingface:
        return  # its writer takes new and empty folders only
    if out.is_dir():
        raise UsageError(f"out={out} is a folder; give a file for to={cfg.to.value}")
    if out.resolve().parent.name == CHECKPOINTS:
        raise UsageError(f"out={out} is in a run's folder of checkpoints; give another path")
    if out.exists() and not cfg.overwrite and not is_encoder_file(out):
        raise UsageError(f"out={out} exists; set overwrite=true to replace it")
