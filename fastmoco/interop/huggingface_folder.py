"""A folder for the Hugging Face Hub: timm's ``config.json`` and weights, and a model card.

timm loads it from disk (``local-dir:``) and from the Hub (``hf-hub:``), transformers by its timm
wrapper; a folder of transformers' own ResNet would serve transformers alone.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save

from fastmoco.errors import UsageError
from fastmoco.files import atomic_folder
from fastmoco.interop.loaded_encoder import Subject, refuse_head
from fastmoco.interop.model_card import model_card
from fastmoco.interop.settings import ExportConfig
from fastmoco.interop.state_dicts import timm_model, timm_options, timm_state


def write_huggingface(out: Path, subject: Subject, cfg: ExportConfig) -> str:
    """Write the folder, whole or not at all.

    Returns:
        The line of Python that loads it.

    Raises:
        UsageError: If timm has no such model, or the folder is there already.
    """
    refuse_head(cfg.part, "huggingface")
    name = timm_model(subject, "huggingface")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"out={out} exists; give a new or an empty folder")
    with atomic_folder(out) as temporary:
        content = save(timm_state(subject), {"format": "pt"})
        (temporary / "model.safetensors").write_bytes(content)
        config = json.dumps(timm_config(subject, name), indent=2)
        (temporary / "config.json").write_text(f"{config}\n", encoding="utf-8")
        card = model_card(subject, name, cfg.license)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return f'model = timm.create_model("local-dir:{out}", pretrained=True)'


def timm_config(subject: Subject, name: str) -> dict[str, Any]:
    """What timm reads: architecture, and how images are prepared."""
    encoder = subject.encoder
    size = encoder.eval_size
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": encoder.backbone.feature_dim,
        "model_args": timm_options(subject),
        "pretrained_cfg": {
            "tag": "fastmoco",
            "custom_load": False,
            "num_classes": 0,
            "input_size": [3, size, size],
            "fixed_input_size": False,
            "interpolation": "bilinear",
            "crop_pct": encoder.center_crop,
            "crop_mode": "center",
            "mean": [round(value, 6) for value in encoder.mean.tolist()],
            "std": [round(value, 6) for value in encoder.std.tolist()],
        },
    }
