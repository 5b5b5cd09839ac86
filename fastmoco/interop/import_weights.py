"""`fastmoco import`: convert weights of other projects to a folder that commands take as RUN."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fastmoco.configuration import config_to_dict
from fastmoco.errors import UsageError, one_line
from fastmoco.files import atomic_folder, file_sha256
from fastmoco.interop.settings import ImportConfig
from fastmoco.moco.build import build_query_encoder
from fastmoco.moco.settings import MocoConfig, Stem
from fastmoco.pipelines.settings import PipelineConfig
from fastmoco.runs.checkpoint import Checkpoint, save_checkpoint, with_prefix
from fastmoco.runs.weights_file import read_weights
from fastmoco.train.settings import TrainConfig
from fastmoco.weights.architecture import find_architecture, find_head
from fastmoco.weights.layouts import Parts, take_apart


@dataclass(slots=True)
class ImportSummary:
    """The imported encoder, and the tensors that were left out."""

    out: str
    layout: str
    origin: str
    """Keys and prefix of the tensors in the file, if there was a choice; else empty."""
    encoder: str
    stem: str
    width: int
    head: str | None
    """Kind of the projection head; None if there is none that fastmoco can build."""
    dim: int | None
    """Length of the head's output."""
    image_size: int
    center_crop: float
    channel_mean: list[float]
    channel_std: list[float]
    left_out: dict[str, int]
    """Number of tensors that were not imported, by the first part of their names."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    def to_text(self) -> str:
        """For people."""
        head = f"{self.head} head of {self.dim}" if self.head else "no projection head"
        mean, std = (
            " ".join(f"{value:.4g}" for value in values)
            for values in (self.channel_mean, self.channel_std)
        )
        left = ", ".join(
            f"{one_line(name)} ({count} tensor{'s' if count > 1 else ''})"
            for name, count in self.left_out.items()
        )
        origin = f" under {one_line(self.origin)}" if self.origin else ""
        return (
            f"{self.out}: {self.encoder}, {self.stem} stem, width {self.width}, {head}; "
            f"tensor names of {self.layout}{origin}\n"
            f"images of {self.image_size} pixels (center crop {self.center_crop:g}), "
            f"mean {mean}, std {std}\n"
            f"left out: {left or 'nothing'}"
        )


def import_weights(path: Path, cfg: ImportConfig) -> ImportSummary:
    """Make a folder with one checkpoint from a weights file of another project.

    Args:
        path: .pth, .pt, .tar, .ckpt, .bin (read by another process, under limits) or .safetensors.
        cfg: From `load_config`.

    Raises:
        UsageError: If the file is damaged, would run code or fits no encoder, or if an option is
            missing or invalid.
        FileNotFoundError: If the file does not exist.
        OSError: If the folder cannot be written.
    """
    out = _checked_out(cfg)
    tensors, container = read_weights(path)
    try:
        parts = take_apart(tensors, cfg.layout, cfg.prefix)
        if not parts.backbone:
            raise UsageError("it holds no backbone; set another layout")
        config, has_head = _configuration(parts, cfg)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    if parts.head and not has_head:
        parts.left_out["projection head (none of ours)"] = len(parts.head)
    origin = ", ".join(filter(None, (container, parts.prefix)))
    source = {"file": path.name, "sha256": file_sha256(path), "layout": parts.layout.value}
    source |= {"origin": origin}
    facts = {
        "config": config_to_dict(config),
        "channel_mean": [float(value) for value in cfg.mean],
        "channel_std": [float(value) for value in cfg.std],
        "has_head": has_head,
        "dataset_fingerprint": "",
        "imported": {**source, "left_out": parts.left_out},
        "torch_version": torch.__version__,
    }
    taken = with_prefix("model.query_encoder", _encoder_tensors(config, parts, has_head))
    with atomic_folder(out) as temporary:
        checkpoint = Checkpoint(step=0, tensors=taken, facts=facts)
        save_checkpoint(temporary / "checkpoints", checkpoint, keep=1)
    return _summary(out, parts, config, facts)


def _checked_out(cfg: ImportConfig) -> Path:
    if cfg.out is None:
        raise UsageError("out is not set; add out=FOLDER")
    if cfg.out.exists() and (not cfg.out.is_dir() or any(cfg.out.iterdir())):
        raise UsageError(f"out={cfg.out} exists; give a new or an empty folder")
    for name, values in (("mean", cfg.mean), ("std", cfg.std)):
        if len(values) != 3:
            raise UsageError(f"{name} must be three numbers in [0, 1] (R, G, B), got {values}")
    return cfg.out


def _configuration(parts: Parts, cfg: ImportConfig) -> tuple[TrainConfig, bool]:
    """A configuration that builds this encoder, and whether the file has a head that fits."""
    model = find_architecture(parts, encoder=cfg.encoder, stem=cfg.stem)
    moco = find_head(parts, model) if parts.head else None
    large = model.stem is Stem.imagenet
    pipeline = PipelineConfig(
        view_size=cfg.view_size or (224 if large else 32),
        center_crop=cfg.center_crop or (0.875 if large else 1.0),
    )
    config = TrainConfig(model=model, moco=moco or MocoConfig(), pipeline=pipeline)
    return config, moco is not None


def _encoder_tensors(config: TrainConfig, parts: Parts, has_head: bool) -> dict[str, Tensor]:
    """All tensors of our encoder, in its dtypes; counters missing in the file are 0."""
    with torch.device("meta"):
        expected = build_query_encoder(config.model, config.moco)
    given = with_prefix("backbone", parts.backbone)
    if has_head:
        given |= with_prefix("head", parts.head)
    tensors = {}
    for name, tensor in expected.state_dict().items():
        if name.startswith("head.") and not has_head:
            continue
        # Only num_batches_tracked may be missing: all other names and shapes were compared.
        tensors[name] = given.get(name, torch.zeros(())).to(tensor.dtype)
    return tensors


def _summary(out: Path, parts: Parts, config: TrainConfig, facts: dict[str, Any]) -> ImportSummary:
    has_head = facts["has_head"]
    return ImportSummary(
        out=str(out),
        layout=parts.layout.value,
        origin=facts["imported"]["origin"],
        encoder=config.model.encoder,
        stem=config.model.stem.value,
        width=config.model.width,
        head=config.moco.head.value if has_head else None,
        dim=config.moco.dim if has_head else None,
        image_size=config.pipeline.view_size,
        center_crop=config.pipeline.center_crop,
        channel_mean=facts["channel_mean"],
        channel_std=facts["channel_std"],
        left_out=parts.left_out,
    )
