"""`to=safetensors`: fastmoco's own file, which holds any encoder and everything it needs."""

from pathlib import Path
from typing import Any

from fastmoco.errors import UsageError
from fastmoco.interop.loaded_encoder import LoadedEncoder
from fastmoco.interop.settings import ExportConfig, Part
from fastmoco.runs.encoder_file import write_encoder_file

# Facts of a checkpoint that are kept; those needed only for resuming are left out.
_FACTS = (
    "config",
    "channel_mean",
    "channel_std",
    "dataset_fingerprint",
    "batch_norm",
    "torch_version",
    "imported",
    "origins",
)


def write_own(out: Path, loaded: LoadedEncoder, cfg: ExportConfig) -> str:
    """Write a file that every command takes as RUN, and that `load_encoder` reads.

    Paths of this machine are left out: only the names of dataset files are kept.

    Returns:
        Python code that loads it.

    Raises:
        UsageError: If the file's ending is another.
    """
    if out.suffix != ".safetensors":
        raise UsageError(f"out={out} must end in .safetensors")
    facts: dict[str, Any] = {key: loaded.facts[key] for key in _FACTS if key in loaded.facts}
    config = {**facts["config"], "run_dir": None}
    config["data"] = {key: _name(value) for key, value in config["data"].items()}
    config["weights"] = _name(config.get("weights"))
    config["train"] = {**config["train"], "from_run": _name(config["train"].get("from_run"))}
    facts |= {"config": config, "has_head": cfg.part is Part.encoder}
    write_encoder_file(out, loaded.tensors(cfg.part), step=loaded.step, facts=facts)
    return f"encoder = fastmoco.load_encoder({str(out)!r})"


def _name(path: str | None) -> str | None:
    return Path(path).name if path else None
