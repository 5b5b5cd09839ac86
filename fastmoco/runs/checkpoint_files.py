"""The files of a checkpoint: their names, the checked record, and which of them stay."""

import re
import warnings
from pathlib import Path
from typing import Any

from fastmoco.files import file_sha256
from fastmoco.runs.record import parse_record

FORMAT_VERSION = 2
"""Version 1 had no checksum of the record and no step beside the tensors; it is still read."""
TYPES = {"format_version": int, "step": int, "sha256": str, "facts": dict}
FACT_TYPES: dict[str, type | tuple[type, ...]] = {
    "config": dict,
    "dataset_fingerprint": str,
    "channel_mean": list,
    "channel_std": list,
    "metrics_count": int,
    "scaler": dict,
    "batch_norm": str,
    "origins": list,
    "loader": str,
}
"""Facts of a run, where they are present."""
NAME = re.compile(r"step-(\d{8,})\.json")


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged or of another model."""


def retire(folder: Path, newest: int, digest: str, *, keep: int) -> None:
    """Remove older checkpoints than the newest `keep` and the best; put later ones aside.

    Later ones are those of a run that was resumed from an older checkpoint, because they were
    damaged.
    """
    found = newest_first(folder)
    for path in found:
        if step_of(path) > newest:
            _put_aside(path)
    found = [path for path in found if step_of(path) <= newest]
    best = best_checkpoint(found)
    old = [path for path in found[max(1, keep) :] if path != best]
    if old and len(found) - len(old) == 1:
        # The new one will be the only one: read again what is on the disk.
        weights = folder / f"{stem_of(newest)}.safetensors"
        if file_sha256(weights) != digest:
            warnings.warn(
                f"{weights} was written and reads otherwise; older ones stay", stacklevel=3
            )
            return
    unwanted = [(path, path.with_suffix(".safetensors")) for path in old]
    unwanted += [(path, path) for path in folder.glob(".step-*.partial")]  # of a killed process
    for record, weights in unwanted:
        try:
            record.unlink(missing_ok=True)
            weights.unlink(missing_ok=True)
        except OSError as error:
            warnings.warn(f"an old checkpoint cannot be removed: {error}", stacklevel=3)


def _put_aside(path: Path) -> None:
    for one in (path, path.with_suffix(".safetensors")):
        if one.exists():
            one.rename(one.with_name(f"{one.name}.damaged"))


def stem_of(step: int) -> str:
    """Name of both files, without the suffix."""
    return f"step-{step:08d}"


def step_of(path: Path) -> int:
    """The step in a file's name."""
    return int(path.stem.removeprefix("step-"))


def newest_first(folder: Path) -> list[Path]:
    """The JSON files of all checkpoints in a folder."""
    found = [path for path in folder.glob("step-*.json") if NAME.fullmatch(path.name)]
    return sorted(found, key=step_of, reverse=True)


def best_checkpoint(found: list[Path]) -> Path | None:
    """The checkpoint with the highest kNN accuracy, the latest of equal ones; None without any.

    Damaged ones are passed over.
    """
    best, highest = None, -1.0
    for path in sorted(found, key=step_of):
        try:
            top1 = read_record(path)["facts"].get("knn_top1")
        except (CheckpointError, OSError):
            continue
        if top1 is not None and top1 >= highest:
            best, highest = path, top1
    return best


def read_record(path: Path) -> dict[str, Any]:
    """The checked JSON of a checkpoint.

    Raises:
        CheckpointError: If it is damaged.
        OSError: If it cannot be read.
    """
    try:
        record = parse_record(path.read_text(encoding="utf-8"), TYPES, first_sealed=2)
        for key, kind in FACT_TYPES.items():
            if key in record["facts"] and not isinstance(record["facts"][key], kind):
                raise ValueError(f"its {key} is of a wrong kind")
    except ValueError as error:
        raise CheckpointError(
            f"{path} is damaged or is not a checkpoint ({error}); {advice(path)}"
        ) from error
    if record["format_version"] > FORMAT_VERSION:
        raise CheckpointError(
            f"{path} has format version {record['format_version']}, not {FORMAT_VERSION}; "
            "use the fastmoco that wrote it"
        )
    return record


def advice(path: Path) -> str:
    """What to do about a damaged checkpoint."""
    weights = path.with_suffix(".safetensors").name
    return f"remove {path} and {weights}; the run then resumes from the checkpoint before it"
