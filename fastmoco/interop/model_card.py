"""The README of an exported folder, filled in from the checkpoint's facts."""

from pathlib import Path
from typing import Any

from fastmoco.interop.loaded_encoder import LoadedEncoder
from fastmoco.moco.settings import MocoConfig
from fastmoco.runs.metrics_file import read_metrics
from fastmoco.train.beginning import describe_origins
from fastmoco.version import __version__

_CARD = """\
---
library_name: timm
pipeline_tag: image-feature-extraction
license: {license_tag}
tags:
- image-feature-extraction
- timm
- self-supervised
- moco
---

# {title}

{architecture}, {dim} features, {origin}

```python
import timm

model = timm.create_model("hf-hub:USER/NAME", pretrained=True).eval()  # or "local-dir:FOLDER"
features = model(images)  # (N, 3, {size}, {size}), normalized -> (N, {dim})
```

## Input

RGB, resized, center crop of {size} x {size} pixels (crop fraction {crop:g}), scaled to 0..1, then
normalized: mean {mean}, standard deviation {std}.

## Training

{training}

## Evaluation

{evaluation}

## License

{license_text}
"""


def model_card(loaded: LoadedEncoder, timm_name: str, license_name: str) -> str:
    """The card as Markdown, with the Hub's front matter.

    Args:
        loaded: The encoder and its facts.
        timm_name: Name of the model in timm.
        license_name: License of the weights; empty leaves a line to fill in.
    """
    encoder = loaded.encoder
    imported = loaded.imported
    mean, std = (
        ", ".join(f"{value:.4g}" for value in buffer.tolist())
        for buffer in (encoder.mean, encoder.std)
    )
    return _CARD.format(
        license_tag=license_name or "other",
        title=loaded.run.stem if imported else loaded.config.name,
        architecture=timm_name,
        dim=encoder.backbone.feature_dim,
        origin=_origin(imported),
        size=encoder.eval_size,
        crop=encoder.center_crop,
        mean=mean,
        std=std,
        training=_imported_text(imported) if imported else _training_table(loaded),
        evaluation=_evaluation(loaded),
        license_text=f"{license_name}." if license_name else _LICENSE_PLACE,
    )


_LICENSE_PLACE = (
    "TODO: state under which license these weights are published, and what the license of the "
    "training images requires."
)


def _origin(imported: dict[str, Any] | None) -> str:
    if imported:
        return f"imported from `{imported['file']}` by fastmoco {__version__}."
    return (
        "pretrained without labels by Momentum Contrast "
        f"([MoCo](https://arxiv.org/abs/1911.05722)) with fastmoco {__version__}."
    )


def _imported_text(imported: dict[str, Any]) -> str:
    return (
        f"Not by fastmoco: weights of `{imported['file']}` (SHA-256 `{imported['sha256']}`, tensor "
        f"names of {imported['layout']}). TODO: describe how they were trained."
    )


def _training_table(loaded: LoadedEncoder) -> str:
    cfg, facts = loaded.config, loaded.facts
    moco, optimizer = cfg.moco, cfg.optimizer
    data = cfg.data.train.name if cfg.data.train else "unknown"
    rows = {
        "images": f"`{data}`, fingerprint `{facts['dataset_fingerprint'][:16]}`",
        "length": f"{loaded.step:,} steps of {cfg.global_batch_size} images "
        f"(of {cfg.train.epochs} epochs)",
        "start": describe_origins(facts.get("origins", [])) or "from nothing",
        "views": f"{cfg.pipeline.view_size} pixels; {_policy_text(loaded)}",
        "MoCo": f"K = {moco.queue_size}, m = {moco.momentum:g}{_final_momentum(moco)}, "
        f"T = {moco.temperature:g}, {moco.head.value} head of {moco.dim}, "
        f"{'' if moco.symmetric else 'a'}symmetric loss",
        "batch norm": facts.get("batch_norm", moco.batch_norm.value),
        "optimizer": f"{optimizer.name}, learning rate {optimizer.learning_rate:g} "
        f"({optimizer.schedule}), weight decay {optimizer.weight_decay:g}",
        "numbers": f"{cfg.precision.value}, torch {facts.get('torch_version', 'unknown')}, "
        f"seed {cfg.seed}",
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {key} | {text} |" for key, text in rows.items())])


def _final_momentum(moco: MocoConfig) -> str:
    return "" if moco.final_momentum is None else f" to {moco.final_momentum:g}"


def _policy_text(loaded: LoadedEncoder) -> str:
    policy = loaded.config.policy
    low, high = policy.crop_scale
    words = [f"crops of {low:g} to {high:g} of the area"]
    for word, name in (
        ("flip", "flip_probability"),
        ("jitter", "jitter_probability"),
        ("gray", "grayscale_probability"),
        ("blur", "blur_probability"),
        ("solarize", "solarize_probability"),
    ):
        first, second = (policy.of_view(name, view) for view in (0, 1))
        unlike = f" (second view: {second:g})" if second != first else ""
        words += [f"{word} {first:g}{unlike}"] if first or second else []
    words += [f"{policy.pool_draws} of {len(policy.pool)} operations"] if policy.pool else []
    return ", ".join(words)


def _evaluation(loaded: LoadedEncoder) -> str:
    """The last measurement of the kNN monitor with its protocol, or which commands to run."""
    run: Path = loaded.path.parent.parent
    metrics = run / "metrics.jsonl"
    rows = read_metrics(metrics) if metrics.exists() and not loaded.imported else []
    measured = [r for r in rows if r.get("knn_top1") is not None and r["step"] <= loaded.step]
    if not measured:
        return (
            "TODO: not measured yet. Run `fastmoco knn` and `fastmoco linear`; state k, "
            "temperature, features and the data with each number."
        )
    monitor = loaded.config.monitor
    test = loaded.config.data.test
    images = f"`{test.name}`" if test else "training images, each by the others,"
    return (
        f"Weighted kNN (k = {monitor.k}, T = {monitor.temperature:g}, {monitor.features.value} "
        f"features) on {images} after {measured[-1]['step']:,} steps: "
        f"{measured[-1]['knn_top1']:.2f}% top-1."
    )
