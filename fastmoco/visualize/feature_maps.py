"""`fastmoco feature-maps`: the output of one layer of the encoder for one image."""

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from torch import Tensor, nn

from fastmoco.data.dataset import open_dataset
from fastmoco.data.images import load_image
from fastmoco.data.jpeg_markers import ImageError
from fastmoco.errors import UsageError, nearest_name
from fastmoco.evaluate.frozen_encoder import FrozenEncoder, open_encoder
from fastmoco.evaluate.settings import FeaturesConfig
from fastmoco.files import atomic_path, regular_file
from fastmoco.pipelines.augment import normalized
from fastmoco.pipelines.beton_loader import crop_and_resize
from fastmoco.pipelines.crops import central_boxes
from fastmoco.visualize.pictures import save_figure, show
from fastmoco.visualize.settings import FeatureMapsConfig

MAX_SIDE = 1 << 12
"""Longest side that an image file is decoded at, pixels."""


@dataclass(slots=True)
class FeatureMaps:
    """Description of the file written."""

    out: str
    layer: str
    """Name of the layer in the backbone."""
    shape: list[int]
    """Channels, height and width of the layer's output."""
    shown: int
    """Number of maps in the file."""

    def to_json(self) -> dict[str, Any]:
        """The description as a JSON object."""
        return asdict(self)

    def to_text(self) -> str:
        """The description in one line."""
        count, height, width = self.shape
        return f"{self.out}: {self.shown} of {count} maps of {height} x {width} after {self.layer}"


def write_feature_maps(run: Path, cfg: FeatureMapsConfig) -> FeatureMaps:
    """Write the maps that one layer gives for the evaluation crop of an image.

    Args:
        run: A run folder, a checkpoint, an imported folder or an exported file.
        cfg: Options, from `load_config`.

    Raises:
        UsageError: If an option is out of range, or the layer is unknown or gives no maps.
        ValueError: If the checkpoint or the image is damaged.
        OSError: If a file cannot be read or written.
    """
    if cfg.image is None:
        raise UsageError("image is not set; add image=FILE.jpg, or image=FILE.beton sample=N")
    if cfg.out.suffix not in (".png", ".npy"):
        raise UsageError(f"out={cfg.out} must end in .png or .npy")
    encoder = open_encoder(run, FeaturesConfig(pipeline=cfg.pipeline, device=cfg.device))
    layer, module = find_layer(encoder.backbone, cfg.layer)
    crop = _central_crop(_pixels(cfg.image, cfg.sample), encoder)
    maps = layer_output(encoder, module, crop, layer).cpu().numpy()
    shown = maps if cfg.out.suffix == ".npy" else maps[: cfg.channels]
    if shown is maps:
        with atomic_path(cfg.out) as temporary, temporary.open("wb") as file:
            np.save(file, maps)
    else:
        _draw(cfg.out, crop, shown, layer)
    return FeatureMaps(str(cfg.out), layer, list(maps.shape), len(shown))


def find_layer(backbone: nn.Module, name: str) -> tuple[str, nn.Module]:
    """Find a layer by its name; an empty name is that of the first convolution.

    Raises:
        UsageError: If the name is unknown; the message lists the nearest names.
    """
    layers = {key: module for key, module in backbone.named_modules() if key}
    if not name:
        found = [key for key, module in layers.items() if isinstance(module, nn.Conv2d)]
        if not found:
            raise UsageError("this encoder has no convolution; choose a layer, layer=NAME")
        name = found[0]
    if name not in layers:
        raise UsageError(f"layer={name} is unknown{_near_layers(name, list(layers))}")
    return name, layers[name]


def _near_layers(name: str, known: list[str]) -> str:
    """The layers below the longest known part of the name, or else the nearest name."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        parent = ".".join(parts[:end])
        if parent in known:
            below = [key for key in known if key.rpartition(".")[0] == parent]
            return f"; {parent} has {', '.join(below[:12])}"
    return nearest_name(name, [key for key in known if "." not in key])


def _pixels(path: Path, sample: int) -> NDArray[np.uint8]:
    """Read an image file or a sample of a dataset, ``(H, W, 3)`` RGB, upright."""
    if path.suffix == ".beton":
        with open_dataset(path) as dataset:
            if not 0 <= sample < len(dataset):
                last = len(dataset) - 1
                raise UsageError(f"sample must be an id of {path}, 0 to {last}, got {sample}")
            return dataset.decode(sample)
    try:
        return load_image(regular_file(path).read_bytes(), MAX_SIDE)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def _central_crop(pixels: NDArray[np.uint8], encoder: FrozenEncoder) -> NDArray[np.uint8]:
    """Crop an image as evaluation does, ``(1, S, S, 3)``."""
    height, width = (np.array([side]) for side in pixels.shape[:2])
    crop = np.empty((1, encoder.eval_size, encoder.eval_size, 3), np.uint8)
    crop_and_resize(pixels, central_boxes(height, width, encoder.center_crop)[0], crop)
    return crop


@torch.no_grad()
def layer_output(
    encoder: FrozenEncoder, module: nn.Module, crop: NDArray[np.uint8], name: str
) -> Tensor:
    """Compute the output of a layer for a crop, ``(C, H, W)`` float32.

    Args:
        encoder: The encoder, in evaluation mode.
        module: The layer, a module of the encoder's backbone.
        crop: ``(1, S, S, 3)`` uint8, RGB.
        name: Name of the layer, for messages.

    Raises:
        UsageError: If the encoder does not use the layer, or its output is not a set of maps.
    """
    outputs: list[Any] = []

    def keep(_: nn.Module, __: Any, output: Any) -> None:
        # The next layer may work in place, so keep a copy of this layer's output.
        outputs.append(output.clone() if isinstance(output, Tensor) else output)

    images = torch.from_numpy(crop)[:, None].to(encoder.mean.device)
    with module.register_forward_hook(keep):
        encoder.encode(normalized(images, encoder.mean, encoder.std, torch.float32), "backbone")
    if not outputs:
        raise UsageError(f"layer={name} is not used by this encoder; choose another layer")
    output = outputs[0]  # a layer may be used several times, as one ReLU may be
    if not isinstance(output, Tensor) or output.ndim != 4:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UsageError(
            f"layer={name} must give maps, (1, channels, height, width), got {shape}; "
            "choose another layer"
        )
    return output[0].float()


def _draw(path: Path, crop: NDArray[np.uint8], maps: NDArray[np.float32], layer: str) -> None:
    """Draw the crop, then the maps row by row, each from its least to its greatest value."""
    columns = math.ceil(math.sqrt(len(maps) + 1))
    rows = math.ceil((len(maps) + 1) / columns)
    figure = Figure(figsize=(1.2 * columns, 1.2 * rows + 0.4), layout="constrained")
    figure.suptitle(f"the image and {len(maps)} maps after {layer}", fontsize=9)
    cells = figure.subplots(rows, columns, squeeze=False).ravel()
    for cell in cells:
        cell.set_axis_off()
    show(cells[0], crop[0])
    for cell, one in zip(cells[1:], maps, strict=False):
        show(cell, one, cmap="viridis")
    save_figure(figure, path)
