"""`fastmoco export`: a run's encoder in the form of another library."""

import importlib
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fastmoco.errors import UsageError
from fastmoco.interop.loaded_encoder import Subject, load_subject
from fastmoco.interop.settings import ExportConfig, Part, Target

# Imported when chosen: ``write(out, subject, cfg) -> how to load it``.
WRITERS = {
    Target.torchvision: ("fastmoco.interop.state_dicts", "write_torchvision"),
    Target.timm: ("fastmoco.interop.state_dicts", "write_timm"),
    Target.huggingface: ("fastmoco.interop.huggingface_folder", "write_huggingface"),
    Target.detectron2: ("fastmoco.interop.detectron2_weights", "write_detectron2"),
    Target.onnx: ("fastmoco.interop.onnx_graph", "write_onnx"),
    Target.safetensors: ("fastmoco.interop.own_file", "write_own"),
}


@dataclass(slots=True)
class ExportSummary:
    """What was written."""

    out: str
    to: str
    part: str
    encoder: str
    step: int
    feature_dim: int
    image_size: int
    """Side of the crops that evaluation gave it, pixels."""
    channel_mean: list[float]
    channel_std: list[float]
    loading: str
    """How to load it."""

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
    """Write an encoder for another library, whole or not at all.

    Args:
        run: A run folder, a checkpoint, an imported folder, or an exported safetensors file.
        cfg: From `load_config`.

    Raises:
        UsageError: If the target cannot hold this encoder, or an option does not fit.
        CheckpointError: If there is no checkpoint, or it is damaged.
        OSError: If the file cannot be written.
    """
    if cfg.out is None:
        raise UsageError("out is not set; add out=FILE (a folder for to=huggingface)")
    if cfg.out.is_dir() and cfg.to is not Target.huggingface:
        raise UsageError(f"out={cfg.out} is a folder; give a file for to={cfg.to.value}")
    subject = load_subject(run)
    _check_head(subject, cfg)
    module, function = WRITERS[cfg.to]
    loading = getattr(importlib.import_module(module), function)(cfg.out, subject, cfg)
    return ExportSummary(
        out=str(cfg.out),
        to=cfg.to.value,
        part=cfg.part.value,
        encoder=subject.architecture,
        step=subject.step,
        feature_dim=subject.encoder.backbone.feature_dim,
        image_size=subject.encoder.eval_size,
        channel_mean=subject.encoder.mean.tolist(),
        channel_std=subject.encoder.std.tolist(),
        loading=loading,
    )


def _check_head(subject: Subject, cfg: ExportConfig) -> None:
    if cfg.part is Part.encoder and not subject.has_head:
        raise UsageError(f"{subject.run} has no projection head; set part=backbone")
