"""A folder for the Hugging Face Hub: timm's ``config.json`` and weights, and a model card.

timm loads it from disk (``local-dir:``) and from the Hub (``hf-hub:``), transformers through its
timm wrapper. A folder for transformers' own ResNet would work only with transformers.
"""

import json
from pathlib import Path
from typing import Any

from safetensors.torch import save

from fastmoco.errors import UsageError
from fastmoco.files import atomic_folder
from fastmoco.interop.loaded_encoder import LoadedEncoder
from fastmoco.interop.model_card import model_card
from fastmoco.interop.settings import ExportConfig
from fastmoco.interop.state_dicts import backbone_state, library_model, timm_options


def write_huggingface(out: Path, loaded: LoadedEncoder, cfg: ExportConfig) -> str:
    """Write the folder atomically.

    Returns:
        Python code that loads it.

    Raises:
        UsageError: If timm has no such model, or the folder exists and is not empty.
    """
    name = library_model(loaded, cfg)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"out={out} exists; give a new or an empty folder")
    with atomic_folder(out) as temporary:
        content = save(backbone_state(loaded), {"format": "pt"})
        (temporary / "model.safetensors").write_bytes(content)
        config = json.dumps(timm_config(loaded, name), indent=2)
        (temporary / "config.json").write_text(f"{config}\n", encoding="utf-8")
        card = model_card(loaded, name, cfg.license)
        (temporary / "README.md").write_text(card, encoding="utf-8")
    return f'model = timm.create_model("local-dir:{out}", pretrained=True)'


def timm_config(loaded: LoadedEncoder, name: str) -> dict[str, Any]:
    """Content of ``config.json``: the architecture and the preprocessing of images."""
    encoder = loaded.encoder
    size = encoder.eval_size
    return {
        "architecture": name,
        "num_classes": 0,
        "num_features": encoder.backbone.feature_dim,
        "model_args": timm_options(loaded),
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
