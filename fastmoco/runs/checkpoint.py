"""Checkpoints: safetensors and JSON with a checksum, nothing pickled.

``checkpoints/step-00000020.safetensors`` holds every tensor of the state under dotted names and
``step-00000020.json`` everything else and their SHA-256. The JSON is renamed into place last: a
checkpoint exists when its JSON does, and a kill at any instant leaves the previous one intact.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fastmoco.errors import DivergedError, UsageError
from fastmoco.files import atomic_path, atomic_write_text, file_sha256
from fastmoco.runs.encoder_file import read_encoder_file
from fastmoco.runs.finite import first_not_finite

FORMAT_VERSION = 1


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or of another model."""


class NoCheckpointError(CheckpointError, UsageError):
    """No checkpoint is at the path that was given."""


@dataclass(kw_only=True, slots=True)
class Checkpoint:
    """One saved state."""

    step: int
    """Steps done."""
    tensors: dict[str, Tensor]
    """By dotted name: ``model.*``, ``optimizer.*``, ``metrics.*``."""
    facts: dict[str, Any]
    """JSON values: configuration, dataset fingerprint, normalization, loss scaler."""
    path: Path | None = None
    """The JSON file it was read from."""


def _stem(step: int) -> str:
    return f"step-{step:08d}"


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write a checkpoint, then remove all but the newest `keep`.

    Args:
        folder: The run's ``checkpoints``; made if missing.
        checkpoint: State to save; its tensors may be on any device.
        keep: Number of checkpoints to keep, at least 1.

    Returns:
        The JSON file's path.

    Raises:
        DivergedError: If a value is not finite; earlier checkpoints are unchanged.
        OSError: If it cannot be written (disk full); earlier checkpoints are unchanged.
    """
    if bad := first_not_finite(checkpoint.tensors):
        raise DivergedError(
            f"{bad} has values that are not finite after step {checkpoint.step}; it was not saved, "
            "earlier checkpoints stay; lower optimizer.learning_rate"
        )
    weights = folder / f"{_stem(checkpoint.step)}.safetensors"
    with atomic_path(weights) as temporary:
        # Clones: safetensors refuses tensors that share memory, and writes contiguous ones only.
        save_file(
            {k: v.detach().cpu().clone().contiguous() for k, v in checkpoint.tensors.items()},
            temporary,
        )
        digest = file_sha256(temporary)
    record = {
        "format_version": FORMAT_VERSION,
        "step": checkpoint.step,
        "sha256": digest,
        "facts": checkpoint.facts,
    }
    path = weights.with_suffix(".json")
    atomic_write_text(path, json.dumps(record, indent=1))
    for old in _newest_first(folder)[max(1, keep) :]:
        old.unlink()
        old.with_suffix(".safetensors").unlink(missing_ok=True)
    return path


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("step-*.json"), reverse=True)


def find_checkpoint(path: Path) -> Path:
    """Find a checkpoint's JSON file, or the file of an exported encoder, which has no JSON.

    Args:
        path: Run folder (for its newest checkpoint), or a checkpoint's JSON or safetensors file.

    Raises:
        NoCheckpointError: If no checkpoint is there.
    """
    if path.is_dir():
        folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
        found = _newest_first(folder)
        if not found:
            raise NoCheckpointError(
                f"{path} contains no checkpoint; give a run folder of fastmoco train"
            )
        return found[0]
    if path.suffix == ".safetensors" and path.exists() and not path.with_suffix(".json").exists():
        return path
    record = path.with_suffix(".json")
    if not record.exists():
        problem = "is not a checkpoint" if path.exists() else "does not exist"
        raise NoCheckpointError(
            f"{path} {problem}; give a run folder or a checkpoint of fastmoco train"
        )
    return record


def at_step(given: Path) -> Path:
    """The checkpoint file that ``RUN@STEP`` names; any other path as it is.

    Raises:
        CheckpointError: If the run has no checkpoint of this step.
    """
    run, _, step = str(given).rpartition("@")
    if given.exists() or not (run and step.isdigit()):
        return given
    folder = Path(run) / "checkpoints"
    path = folder / f"{_stem(int(step))}.json"
    if not path.exists():
        steps = [str(int(old.stem.removeprefix("step-"))) for old in _newest_first(folder)]
        raise CheckpointError(
            f"{run} has no checkpoint of step {step}; it has {', '.join(steps) or 'none'}"
        )
    return path


def weights_sha256(path: Path) -> str:
    """Hex SHA-256 of the weights file that belongs to a path from `find_checkpoint`.

    Raises:
        OSError: If it cannot be read.
    """
    return file_sha256(path.with_suffix(".safetensors"))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, or an exported encoder as a checkpoint with the encoder alone.

    Args:
        path: As for `find_checkpoint`.

    Raises:
        CheckpointError: If it is missing or damaged.
    """
    found = find_checkpoint(path)
    return _exported(found) if found.suffix == ".safetensors" else _read(found)


def _exported(path: Path) -> Checkpoint:
    try:
        tensors, step, facts = read_encoder_file(path)
    except ValueError as error:
        raise CheckpointError(str(error)) from error
    return Checkpoint(
        step=step, tensors=with_prefix("model.query_encoder", tensors), facts=facts, path=path
    )


def _read(path: Path) -> Checkpoint:
    weights = path.with_suffix(".safetensors")
    advice = f"remove {path} and {weights.name}; the run then resumes from the checkpoint before it"
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        step, digest, facts = record["step"], record["sha256"], record["facts"]
        version = record["format_version"]
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged or is not a checkpoint; {advice}") from error
    if version != FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {version}, not {FORMAT_VERSION}; "
            "use the fastmoco that wrote it"
        )
    if not weights.exists() or file_sha256(weights) != digest:
        raise CheckpointError(f"{weights} is missing or damaged (wrong checksum); {advice}")
    tensors = load_file(weights)
    if bad := first_not_finite(tensors):
        raise CheckpointError(f"{weights}: {bad} has values that are not finite; {advice}")
    return Checkpoint(step=step, tensors=tensors, facts=facts, path=path)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of a run, None if there is none yet.

    Raises:
        CheckpointError: If the newest is damaged: resuming from an older one would hide that.
    """
    found = _newest_first(folder)
    return _read(found[0]) if found else None


def checkpoint_before(folder: Path, step: int) -> Checkpoint | None:
    """The newest checkpoint with fewer steps, None if there is none.

    Raises:
        CheckpointError: If it is damaged.
    """
    found = [path for path in _newest_first(folder) if int(path.stem.removeprefix("step-")) < step]
    return _read(found[0]) if found else None


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The optimizer's state tensors as ``INDEX.NAME``, without its parameter groups."""
    state: Mapping[int, Mapping[str, Any]] = optimizer.state_dict()["state"]
    return {
        f"{index}.{name}": value
        for index, values in state.items()
        for name, value in values.items()
        if isinstance(value, Tensor)
    }


def restore_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Restore what `flatten_optimizer` returned, each tensor in the memory format of its parameter.

    A file holds row-major tensors, but fused optimizers need equal strides of parameter and state.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, name = key.split(".", 1)
        parameter = parameters[int(index)]
        if value.shape == parameter.shape:
            value = torch.empty_like(parameter, requires_grad=False).copy_(value)
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )


def with_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Put `prefix` and a dot before every name."""
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def under_prefix(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under `prefix`, without it."""
    return {
        name.removeprefix(f"{prefix}."): t
        for name, t in tensors.items()
        if name.startswith(f"{prefix}.")
    }


def restore_module(module: nn.Module, tensors: dict[str, Tensor], checkpoint: Checkpoint) -> None:
    """Load a state into a module, in place.

    Raises:
        CheckpointError: If a name or shape differs, naming the first.
    """
    expected = module.state_dict()
    for name in [*expected, *tensors]:
        shapes = [
            tuple(state[name].shape) if name in state else None for state in (tensors, expected)
        ]
        if shapes[0] != shapes[1]:
            raise CheckpointError(
                f"{checkpoint.path} is of another model: {name} is {shapes[0] or 'absent'} there, "
                f"{shapes[1] or 'absent'} in the configuration; set model.* and moco.* as in that "
                "run, or set another run_dir"
            )
    module.load_state_dict(tensors)
