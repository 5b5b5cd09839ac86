"""Weights that an encoder starts from: RUN, FILE, ``torchvision:NAME`` or ``timm:NAME``."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from safetensors import SafetensorError, safe_open
from torch import Tensor

from fastmoco.errors import UsageError
from fastmoco.files import regular_file
from fastmoco.moco.encoder import Encoder
from fastmoco.moco.resnet_designs import RESNETS
from fastmoco.moco.settings import EncoderConfig, ModelConfig
from fastmoco.pipelines.settings import IMAGENET_MEAN, IMAGENET_STD
from fastmoco.runs.checkpoint import at_step, load_checkpoint, under_prefix, with_prefix
from fastmoco.runs.encoder_facts import encoder_facts, saved_config
from fastmoco.runs.encoder_file import METADATA_KEY, tensors_digest
from fastmoco.runs.weights_file import read_weights
from fastmoco.weights.architecture import (
    describe_architecture,
    differences,
    find_architecture,
    shapes_of,
)
from fastmoco.weights.layouts import CLASSIFIERS, take_apart, unwrapped
from fastmoco.weights.library import LibraryWeights, timm_weights, torchvision_weights

TIMM_PREFIX, TIMM_MODULE = "timm:", "network."
"""Prefixes of `model.encoder`, and of the backbone's tensors, for a model of timm."""


@dataclass(slots=True)
class StartWeights:
    """Weights that fit an encoder, and their origin."""

    source: str
    """The run's, the file's or the library's name, without the folders of this machine."""
    state: dict[str, Tensor]
    """Complete state of the encoder; a head that does not fit is the encoder's own."""
    head: str
    """``taken``, or ``new`` and the reason."""
    mean: list[float]
    """Channel mean in 0..1 that the weights were trained with."""
    std: list[float]
    """Channel standard deviation in 0..1."""
    sha256: str
    """Of the tensors that are taken (`tensors_digest`)."""


@dataclass(slots=True)
class _Found:
    """What a source holds, under our names."""

    model: ModelConfig
    backbone: Mapping[str, Tensor]
    head: Mapping[str, Tensor]
    mean: list[float]
    std: list[float]
    container: str = ""
    """Of several in the file, such as ``teacher``."""


def read_start(
    source: Path, encoder: Encoder, cfg: EncoderConfig, *, settable: bool
) -> StartWeights:
    """Read weights for an encoder, which stays as it is.

    Args:
        source: ``torchvision:NAME``, ``timm:NAME``, a run folder, ``RUN@STEP``, a checkpoint,
            imported folder or exported file, or a weights file of another project (read as by
            `fastmoco import`).
        encoder: Encoder to start.
        cfg: The configuration that it was built from.
        settable: Whether the user can set ``model.*``; otherwise the encoder is that of RUN.

    Raises:
        UsageError: If the weights are of another architecture; the message names the options to
            set. Also if the file is damaged or would run code.
        CheckpointError: If the run's checkpoint is missing or damaged.
        FileNotFoundError: If the source does not exist.
        OSError: If a download fails.
    """
    found = _found(source, encoder, cfg, settable=settable)
    _check_architecture(source, found.model, cfg.model, settable=settable)
    wrong = differences(shapes_of(encoder.backbone.state_dict()), shapes_of(found.backbone))
    if wrong:
        raise UsageError(
            f"weights={source} does not fit {cfg.model.encoder} for views of "
            f"{cfg.pipeline.view_size} pixels: {wrong[0]}; give weights for this size"
        )
    head = "taken"
    if not found.head:
        head = "new (the weights have none)"
    elif shapes_of(found.head) != shapes_of(encoder.head.state_dict()):
        head = "new (theirs has another form)"
    taken = with_prefix("backbone", found.backbone)
    taken |= with_prefix("head", found.head) if head == "taken" else {}
    return StartWeights(
        source=source.absolute().name + (f" ({found.container})" if found.container else ""),
        state={**encoder.state_dict(), **taken},
        head=head,
        mean=found.mean,
        std=found.std,
        sha256=tensors_digest(taken),
    )


def _found(source: Path, encoder: Encoder, cfg: EncoderConfig, *, settable: bool) -> _Found:
    kind, _, name = str(source).partition(":")
    if kind == "torchvision":
        return _foreign(source, encoder, cfg, torchvision_weights(name))
    if kind == "timm":
        _check_timm_name(source, name, cfg, settable=settable)
        return _foreign(source, encoder, cfg, timm_weights(name, cfg.pipeline.view_size))
    path = at_step(source)
    if not path.exists():
        raise FileNotFoundError(
            f"weights={source} does not exist; give a run folder, a file of weights, "
            "torchvision:NAME, timm:NAME or random"
        )
    if _is_own(path):
        return _own(path)
    tensors, container = read_weights(path)
    plain = LibraryWeights(tensors, list(IMAGENET_MEAN), list(IMAGENET_STD))
    return replace(_foreign(source, encoder, cfg, plain), container=container)


def _is_own(path: Path) -> bool:
    """Whether fastmoco wrote a run folder, checkpoint or encoder file."""
    if path.is_dir() or path.suffix == ".json":
        return True
    if path.suffix == ".safetensors" and path.with_suffix(".json").exists():
        return True  # of a checkpoint
    try:
        with safe_open(regular_file(path), framework="pt") as file:
            return METADATA_KEY in (file.metadata() or {})
    except SafetensorError:
        return False


def _own(path: Path) -> _Found:
    checkpoint = load_checkpoint(path)
    tensors, (_, mean, std) = checkpoint.tensors, encoder_facts(checkpoint)
    return _Found(
        saved_config(checkpoint, EncoderConfig).model,
        under_prefix("model.query_encoder.backbone", tensors),
        under_prefix("model.query_encoder.head", tensors),
        mean,
        std,
    )


def _foreign(source: Path, encoder: Encoder, cfg: EncoderConfig, given: LibraryWeights) -> _Found:
    """Give tensors of another project our names; strides that leave no trace are the encoder's."""
    expected = encoder.backbone.state_dict()
    try:
        if cfg.model.encoder.startswith(TIMM_PREFIX):
            backbone = _timm_names(given.tensors, expected)
            if shapes_of(backbone) == shapes_of(expected):
                return _Found(cfg.model, backbone, {}, given.mean, given.std)
        parts = take_apart(given.tensors)
        model = cfg.model
        if shapes_of(parts.backbone) != shapes_of(expected):
            first = [state.get("conv1.weight") for state in (parts.backbone, expected)]
            kernels = {tensor.shape[2:] for tensor in first if tensor is not None}
            model = find_architecture(parts, stem=cfg.model.stem if len(kernels) == 1 else None)
    except UsageError as error:
        raise UsageError(f"weights={source}: {error}") from error
    return _Found(model, parts.backbone, parts.head, given.mean, given.std)


def _timm_names(tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The backbone of a model of timm, without its classifier."""
    plain = with_prefix(TIMM_MODULE.removesuffix("."), unwrapped(tensors))
    return {
        name: tensor
        for name, tensor in plain.items()
        if name in expected or name.split(".")[1] not in CLASSIFIERS
    }


def _check_timm_name(source: Path, name: str, cfg: EncoderConfig, *, settable: bool) -> None:
    """Refuse another model before it is downloaded."""
    base, wanted = name.split(".")[0], cfg.model.encoder
    same = wanted.split(".")[0] == f"{TIMM_PREFIX}{base}"
    if not same and (wanted.startswith(TIMM_PREFIX) or base not in RESNETS):
        found = ModelConfig(encoder=f"{TIMM_PREFIX}{base}")
        _check_architecture(source, found, cfg.model, settable=settable)


def _check_architecture(
    source: Path, found: ModelConfig, wanted: ModelConfig, *, settable: bool
) -> None:
    """Refuse weights whose encoder, stem or width is not that of the encoder to start."""
    differing = [
        f"model.{name}={getattr(found, name)}"
        for name in ("encoder", "stem", "width")
        if getattr(found, name) != getattr(wanted, name)
    ]
    if not differing:
        return
    owner = "this run" if settable else "RUN"
    advice = "give weights of the architecture of RUN, or a RUN of theirs"
    raise UsageError(
        f"weights={source} has another architecture ({describe_architecture(found)}) than {owner} "
        f"({describe_architecture(wanted)}); "
        + (f"set {' '.join(differing)}" if settable else advice)
    )
