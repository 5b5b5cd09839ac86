"""A file of torchvision's weights for one of our encoders: parameter names are the same."""

from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fastmoco.schema import UsageError


def load_torchvision_weights(backbone: nn.Module, path: Path) -> None:
    """Load a state dict into an encoder, in place, without its classifier (``fc.*``).

    Raises:
        UsageError: If the file holds no state dict, or one of another architecture, naming the
            first tensor that differs.
        FileNotFoundError: If there is no such file.
    """
    tensors = {k: v for k, v in _read(path).items() if not k.startswith("fc.")}
    expected = backbone.state_dict()
    for name in [*expected, *tensors]:
        shapes = [
            tuple(state[name].shape) if name in state else None for state in (tensors, expected)
        ]
        if shapes[0] != shapes[1]:
            raise UsageError(
                f"weights={path} is of another architecture: {name} is {shapes[0] or 'absent'} "
                f"there, {shapes[1] or 'absent'} in the run's encoder; give weights of that one"
            )
    backbone.load_state_dict(tensors)


def _read(path: Path) -> dict[str, Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"weights={path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # of safetensors, zip and pickle, which share no other class
        raise UsageError(_refusal(path)) from error
    if not isinstance(loaded, dict) or not all(isinstance(v, Tensor) for v in loaded.values()):
        raise UsageError(_refusal(path))
    return loaded


def _refusal(path: Path) -> str:
    return f"weights={path} is no state dict of tensors; save one by torch.save(model.state_dict())"
