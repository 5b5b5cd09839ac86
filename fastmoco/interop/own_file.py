"""`to=safetensors`: fastmoco's own file, which holds any encoder with all it needs."""

from pathlib import Path
from typing import Any

from fastmoco.errors import UsageError
from fastmoco.interop.loaded_encoder import Subject
from fastmoco.interop.settings import ExportConfig, Part
from fastmoco.runs.encoder_file import write_encoder_file

# Of a checkpoint's facts; what only resuming needs stays out.
_FACTS = (
    "config",
    "channel_mean",
    "channel_std",
    "dataset_fingerprint",
    "batch_norm",
    "torch_version",
    "imported",
)


def write_own(out: Path, subject: Subject, cfg: ExportConfig) -> str:
    """Write a file that every command takes as RUN, and `load_encoder` as path.

    Folders of this machine are left out: of datasets, only the file's name is kept.

    Returns:
        The line of Python that loads it.

    Raises:
        UsageError: If the file's ending is another.
    """
    if out.suffix != ".safetensors":
        raise UsageError(f"out={out} must end in .safetensors")
    facts: dict[str, Any] = {key: subject.facts[key] for key in _FACTS if key in subject.facts}
    config = {**facts["config"], "run_dir": None}
    config["data"] = {
        key: Path(value).name if value else None for key, value in config["data"].items()
    }
    facts |= {"config": config, "has_head": cfg.part is Part.encoder}
    write_encoder_file(out, subject.tensors(cfg.part), step=subject.step, facts=facts)
    return f"encoder = fastmoco.load_encoder({str(out)!r})"
