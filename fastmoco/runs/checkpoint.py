"""Checkpoints: safetensors and JSON with checksums, nothing pickled.

``checkpoints/step-00000020.safetensors`` holds every tensor of the state under dotted names and
``step-00000020.json`` everything else and one checksum over both (`record.py`). The JSON is renamed
into place last: a checkpoint exists when its JSON does, and a kill at any instant leaves the one
before intact.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fastmoco.errors import DivergedError, UsageError
from fastmoco.files import atomic_path, atomic_write_text, file_sha256
from fastmoco.runs.checkpoint_files import (
    FORMAT_VERSION,
    CheckpointError,
    advice,
    best_checkpoint,
    newest_first,
    read_record,
    retire,
    stem_of,
    step_of,
)
from fastmoco.runs.encoder_file import read_encoder_file
from fastmoco.runs.finite import first_not_finite
from fastmoco.runs.record import record_text, sealed
from fastmoco.runs.tensor_file import read_tensors, write_tensors

BEST = "best"
"""What ``RUN@best`` means: the saved step with the highest kNN accuracy."""


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
    sha256: str = ""
    """Of the weights file, where there is a JSON file."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint, *, keep: int) -> Path:
    """Write a checkpoint, then remove all but the newest `keep` and the best by kNN.

    Nothing is removed before the new one is complete and on the disk.

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
    tensors = {name: t.detach().cpu().contiguous() for name, t in checkpoint.tensors.items()}
    check_finite(tensors, checkpoint.step)
    return write_checkpoint(folder, checkpoint.step, tensors, checkpoint.facts, keep=keep)


def check_finite(tensors: Mapping[str, Tensor], step: int) -> None:
    """Refuse to save a state with values that are not finite.

    Raises:
        DivergedError: If there is one, naming its tensor.
    """
    if bad := first_not_finite(tensors):
        raise DivergedError(
            f"{bad} has values that are not finite after step {step}; it was not saved, "
            "earlier checkpoints stay; lower optimizer.learning_rate"
        )


def write_checkpoint(
    folder: Path, step: int, tensors: Mapping[str, Tensor], facts: Mapping[str, Any], *, keep: int
) -> Path:
    """As `save_checkpoint`, of tensors that are finite, contiguous and on the CPU."""
    path = folder / f"{stem_of(step)}.json"
    weights = path.with_suffix(".safetensors")
    with atomic_path(weights) as temporary, temporary.open("wb") as file:
        digest = write_tensors(file, tensors, {"step": str(step)})
    record = {"format_version": FORMAT_VERSION, "step": step, "sha256": digest, "facts": facts}
    atomic_write_text(path, record_text(sealed(record)))
    retire(folder, step, digest, keep=keep)
    return path


def find_checkpoint(path: Path) -> Path:
    """Find a checkpoint's JSON file, or the file of an exported encoder, which has no JSON.

    Args:
        path: Run folder (for its newest checkpoint), or a checkpoint's JSON or safetensors file.

    Raises:
        NoCheckpointError: If no checkpoint is there.
    """
    if path.is_dir():
        found = newest_first(path / "checkpoints" if _is_run(path) else path)
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


def _is_run(path: Path) -> bool:
    return (path / "checkpoints").is_dir()


def at_step(given: Path) -> Path:
    """The checkpoint file that ``RUN@STEP`` or ``RUN@best`` names; any other path as it is.

    Raises:
        CheckpointError: If the run has no checkpoint of this step, or measured none.
    """
    run, _, step = str(given).rpartition("@")
    if given.exists() or not (run and (step.isdigit() or step == BEST)):
        return given
    found = newest_first(Path(run) / "checkpoints")
    if step == BEST:
        path = best_checkpoint(found)
        if path is None:
            raise CheckpointError(f"no checkpoint of {run} has a kNN accuracy; give {run}@STEP")
        return path
    path = Path(run) / "checkpoints" / f"{stem_of(int(step))}.json"
    if not path.exists():
        steps = ", ".join(str(step_of(one)) for one in found)
        raise CheckpointError(f"{run} has no checkpoint of step {step}; it has {steps or 'none'}")
    return path


def weights_sha256(checkpoint: Checkpoint) -> str:
    """Hex SHA-256 of the weights file that a checkpoint was read from.

    Raises:
        OSError: If an exported encoder's file cannot be read.
    """
    assert checkpoint.path is not None  # it was read from there
    return checkpoint.sha256 or file_sha256(checkpoint.path.with_suffix(".safetensors"))


def load_checkpoint(path: Path) -> Checkpoint:
    """Read a checkpoint, or an exported encoder as a checkpoint with the encoder alone.

    Args:
        path: As for `find_checkpoint`.

    Raises:
        CheckpointError: If it is missing or damaged.
    """
    if path.is_dir():
        newest = newest_checkpoint(path / "checkpoints" if _is_run(path) else path)
        if newest:
            return newest
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
    record, weights = read_record(path), path.with_suffix(".safetensors")
    if not weights.exists() or file_sha256(weights) != record["sha256"]:
        if not path.exists():
            raise NoCheckpointError(
                f"{path} was removed while it was read, because the run has newer ones "
                "(checkpoint.keep); give the run folder for the newest"
            )
        raise CheckpointError(f"{weights} is missing or damaged (wrong checksum); {advice(path)}")
    try:
        tensors, metadata = read_tensors(weights)
    except ValueError as error:
        raise CheckpointError(f"{error}; {advice(path)}") from error
    if int(metadata.get("step", record["step"])) != record["step"]:
        raise CheckpointError(f"{weights} is of step {metadata['step']}; {advice(path)}")
    if bad := first_not_finite(tensors):
        raise CheckpointError(f"{weights}: {bad} has values that are not finite; {advice(path)}")
    return Checkpoint(
        step=record["step"],
        tensors=tensors,
        facts=record["facts"],
        path=path,
        sha256=record["sha256"],
    )


def newest_checkpoint(folder: Path, *, refuse_damaged: bool = False) -> Checkpoint | None:
    """The newest checkpoint of a run, None if there is none yet.

    A damaged one is passed over with a warning, where there is a good one before it.

    Args:
        folder: The run's ``checkpoints``.
        refuse_damaged: Raise an error instead.

    Raises:
        CheckpointError: If none is good.
    """
    damaged: dict[Path, Exception] = {}
    while left := [path for path in newest_first(folder) if path not in damaged]:
        try:
            found = _read(left[0])
        except (CheckpointError, FileNotFoundError) as error:
            if left[0].exists():  # else the run that writes here has removed it
                if refuse_damaged:
                    raise
                damaged[left[0]] = error
            continue
        if damaged:
            reason = str(next(iter(damaged.values()))).partition(";")[0]
            warnings.warn(
                f"{reason}; the checkpoint before it, of step {found.step}, is used", stacklevel=2
            )
        return found
    if damaged:
        raise next(iter(damaged.values()))
    return None


def checkpoint_before(folder: Path, step: int) -> Checkpoint | None:
    """The newest checkpoint with fewer steps, None if there is none.

    Raises:
        CheckpointError: If it is damaged.
    """
    found = [path for path in newest_first(folder) if step_of(path) < step]
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
    """Load a state into a module, in place; buffers that are younger than it keep their values.

    Raises:
        CheckpointError: If `check_module` refuses it.
    """
    tensors = {**_younger_buffers(module), **tensors}
    check_module(module, tensors, checkpoint)
    module.load_state_dict(tensors)


def _younger_buffers(module: nn.Module) -> dict[str, Tensor]:
    """The buffers that states of older versions lack: a module names its own in ``YOUNGER``."""
    return {
        f"{prefix}.{name}" if prefix else name: part.get_buffer(name)
        for prefix, part in module.named_modules()
        for name in getattr(part, "YOUNGER", ())
    }


def check_module(module: nn.Module, tensors: dict[str, Tensor], checkpoint: Checkpoint) -> None:
    """Compare a state with that of a module, which may be on the device ``meta``.

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
