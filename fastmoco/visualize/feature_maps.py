"""`fastmoco feature-maps`: what a layer of the encoder makes of one image."""

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
from fastmoco.device import resolve_device
from fastmoco.errors import UsageError, nearest_name
from fastmoco.evaluate.features import FrozenEncoder, load_encoder
from fastmoco.files import atomic_path
from fastmoco.pipelines.augment import normalized
from fastmoco.pipelines.beton_loader import crop_and_resize
from fastmoco.pipelines.contract import LoaderSpec
from fastmoco.pipelines.crops import central_boxes
from fastmoco.visualize.pictures import save_figure, show
from fastmoco.visualize.settings import FeatureMapsConfig

MAX_SIDE = 1 << 12
"""Longest side that an image file is decoded at, pixels."""


@dataclass(slots=True)
class FeatureMaps:
    """What was written."""

    out: str
    layer: str
    """Its name in the backbone."""
    shape: list[int]
    """Channels, height, width."""
    shown: int
    """Maps in the file."""

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    def to_text(self) -> str:
        """For people."""
        channels, height, width = self.shape
        return (
            f"{self.out}: {self.shown} of {channels} maps of {height} x {width} after {self.layer}"
        )


def write_feature_maps(run: Path, cfg: FeatureMapsConfig) -> FeatureMaps:
    """Write the maps of one layer, of the crop that evaluation sees of an image.

    Args:
        run: A run folder, a checkpoint, an imported folder or an exported file.
        cfg: From `load_config`.

    Raises:
        UsageError: If there is no such layer, or it gives no maps.
        ValueError: If the checkpoint or the image is damaged, or there is no such crop.
        OSError: If a file cannot be read or written.
    """
    if cfg.image is None:
        raise UsageError("image is not set; add image=FILE.jpg, or image=FILE.beton sample=N")
    if cfg.out.suffix not in (".png", ".npy"):
        raise UsageError(f"out={cfg.out} must end in .png or .npy")
    if cfg.channels < 1:
        raise UsageError(f"channels={cfg.channels} shows nothing; set it to 1 or more")
    encoder = load_encoder(run).to(resolve_device(cfg.device))
    encoder.eval_size = cfg.pipeline.eval_size or encoder.eval_size
    if cfg.pipeline.center_crop is not None:
        encoder.center_crop = cfg.pipeline.center_crop
    # Refuses what is no crop.
    LoaderSpec(view_size=encoder.eval_size, policy=None, center_crop=encoder.center_crop)
    layer, module = find_layer(encoder.backbone, cfg.layer)
    crop = _central_crop(_pixels(cfg.image, cfg.sample), encoder)
    maps = layer_output(encoder, module, crop, layer).cpu().numpy()
    shown = len(maps) if cfg.out.suffix == ".npy" else min(cfg.channels, len(maps))
    if cfg.out.suffix == ".npy":
        with atomic_path(cfg.out) as temporary, temporary.open("wb") as file:
            np.save(file, maps)
    else:
        _draw(cfg.out, crop, maps[:shown], layer)
    return FeatureMaps(str(cfg.out), layer, list(maps.shape), shown)


def find_layer(backbone: nn.Module, name: str) -> tuple[str, nn.Module]:
    """A layer by its name, or the first convolution for an empty one.

    Raises:
        UsageError: If there is none of this name, naming those nearest to it.
    """
    layers = {key: module for key, module in backbone.named_modules() if key}
    if not name:
        found = [key for key, module in layers.items() if isinstance(module, nn.Conv2d)]
        if not found:
            raise UsageError("this encoder has no convolution; name a layer, layer=NAME")
        name = found[0]
    if name not in layers:
        raise UsageError(f"layer={name} is unknown{_near_layers(name, list(layers))}")
    return name, layers[name]


def _near_layers(name: str, known: list[str]) -> str:
    """Layers below the longest part of the name that is right, or the nearest name."""
    parts = name.split(".")
    for end in range(len(parts) - 1, 0, -1):
        parent = ".".join(parts[:end])
        if parent in known:
            below = [key for key in known if key.rpartition(".")[0] == parent]
            return f"; {parent} has {', '.join(below[:12])}"
    return nearest_name(name, [key for key in known if "." not in key])


def _pixels(path: Path, sample: int) -> NDArray[np.uint8]:
    """An image file's or a sample's, ``(H, W, 3)`` RGB, upright."""
    if path.suffix == ".beton":
        with open_dataset(path) as dataset:
            if not 0 <= sample < len(dataset):
                raise UsageError(f"sample={sample}: {path} has the ids 0 to {len(dataset) - 1}")
            return dataset.decode(sample)
    try:
        return load_image(path.read_bytes(), MAX_SIDE)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def _central_crop(pixels: NDArray[np.uint8], encoder: FrozenEncoder) -> NDArray[np.uint8]:
    """As evaluation cuts it: ``(1, S, S, 3)``."""
    height, width = (np.array([side]) for side in pixels.shape[:2])
    crop = np.empty((1, encoder.eval_size, encoder.eval_size, 3), np.uint8)
    crop_and_resize(pixels, central_boxes(height, width, encoder.center_crop)[0], crop)
    return crop


@torch.no_grad()
def layer_output(
    encoder: FrozenEncoder, module: nn.Module, crop: NDArray[np.uint8], name: str
) -> Tensor:
    """What a layer gives for a crop, ``(C, H, W)`` float32.

    Args:
        encoder: In evaluation mode.
        module: The layer, of its backbone.
        crop: ``(1, S, S, 3)``.
        name: Of the layer, for messages.

    Raises:
        UsageError: If the layer is not used, or gives something else than maps.
    """
    outputs: list[Any] = []

    def keep(*given: Any) -> None:
        output = given[2]
        # The layer behind may work in place: what is seen is what this one gave.
        outputs.append(output.clone() if isinstance(output, Tensor) else output)

    images = torch.from_numpy(crop)[:, None].to(encoder.mean.device)
    with module.register_forward_hook(keep):
        encoder.encode(normalized(images, encoder.mean, encoder.std, torch.float32), "backbone")
    if not outputs:
        raise UsageError(f"layer={name} is not used by this encoder; choose another")
    output = outputs[0]  # of a layer that is used several times, as one ReLU may be, the first
    if not isinstance(output, Tensor) or output.ndim != 4:
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise UsageError(f"layer={name} gives {shape}, which is no set of maps; choose another")
    return output[0].float()


def _draw(path: Path, crop: NDArray[np.uint8], maps: NDArray[np.float32], layer: str) -> None:
    """The crop, then the maps row by row, each from its own least to its greatest value."""
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
