"""Weights of torchvision for one of our encoders: the parameter names are the same."""

from pathlib import Path

from torch import nn

from fastmoco.errors import UsageError
from fastmoco.runs.weights_file import read_weights


def load_torchvision_weights(backbone: nn.Module, path: Path) -> None:
    """Load a state dict into an encoder, in place, without its classifier (``fc.*``).

    Raises:
        UsageError: If the file is damaged, would run code, holds no state dict, or is of another
            architecture; the message names the first tensor that differs.
        FileNotFoundError: If there is no such file.
    """
    tensors = {k: v for k, v in read_weights(path).items() if not k.startswith("fc.")}
    expected = backbone.state_dict()
    for name in [*expected, *tensors]:
        shapes = [
            tuple(state[name].shape) if name in state else None for state in (tensors, expected)
        ]
        if shapes[0] != shapes[1]:
            raise UsageError(
                f"weights={path} is of another architecture: {name} is {shapes[0] or 'absent'} "
                f"there, {shapes[1] or 'absent'} in the run's encoder; give weights that fit it"
            )
    backbone.load_state_dict(tensors)
