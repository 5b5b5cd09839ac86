"""Record of a request, ``request.json``, and the folder that holds it."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fastmoco.configuration import config_to_dict
from fastmoco.errors import UsageError
from fastmoco.files import atomic_write_text, json_types, read_json_object
from fastmoco.labeling.settings import RequestConfig

UNFINISHED, FINISHED, SCORES = "unfinished.json", "request.json", "scores.npz"
_FREE = ("out", "data", "device", "cache", "pipeline")
"""Options that do not change the result, or that `recipe_of` covers in another way."""


@dataclass(kw_only=True, slots=True)
class LabelRequest:
    """A finished request, as ``request.json`` stores it."""

    out: str
    count: int
    """Images requested."""
    num_candidates: int
    num_same_bytes: int
    """Candidates skipped because another image, candidate or labeled, has the same stored bytes."""
    num_alike: int
    """Candidates skipped because their features are too similar to those of such an image."""
    mode: str
    run: str
    checkpoint: str
    """File of the weights that ranked the images."""
    checkpoint_sha256: str
    step: int
    data: str
    dataset_fingerprint: str
    recipe: str
    """Hash of everything that decides the request."""
    options: dict[str, Any]
    ranking: dict[str, Any] = field(default_factory=dict)
    """Facts about the ranking as a whole, such as mean loss and mean rank."""
    cluster_sizes: list[int] = field(default_factory=list)
    """balance=clusters: candidates in each cluster."""
    seconds: float = 0.0

    def to_json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    def to_text(self) -> str:
        """For people."""
        skipped = f"{self.num_same_bytes + self.num_alike:,} duplicates skipped"
        return (
            f"{self.out}: {self.count:,} of {self.num_candidates:,} images to label, {self.mode}, "
            f"{skipped}; request.csv, label_studio.json, contact_sheet.png"
        )


def recipe_of(cfg: RequestConfig, sha256: str, fingerprint: str) -> str:
    """Hash of everything that decides a request: weights, dataset and options."""
    options = config_to_dict(cfg)
    crops = {key: value for key, value in options["pipeline"].items() if key != "num_threads"}
    kept = {key: value for key, value in options.items() if key not in _FREE}
    facts = {"checkpoint": sha256, "dataset": fingerprint, "pipeline": crops, **kept}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def read_finished(out: Path, recipe: str) -> LabelRequest | None:
    """The finished request in a folder; None if it must be started or resumed.

    Raises:
        UsageError: If the folder holds another request or other files.
        ValueError: If the request in it is damaged.
    """
    names = {path.name for path in out.iterdir()} if out.is_dir() else set()
    names.discard(f".{UNFINISHED}.partial")  # left by a process that was killed while writing it
    known = names & {FINISHED, UNFINISHED}
    if (out.exists() and not out.is_dir()) or (names and not known):
        raise UsageError(f"out={out} exists but holds no request; give a new or empty folder")
    if names <= {UNFINISHED}:
        return None
    name = FINISHED if FINISHED in known else UNFINISHED
    types = json_types(LabelRequest) if name == FINISHED else {"recipe": str}
    advice = "remove the folder and make the request again"
    saved = read_json_object(out / name, types, advice=advice)
    if saved["recipe"] != recipe:
        raise UsageError(
            f"out={out} holds a request of another checkpoint, dataset or options; give another "
            "folder, or remove this one"
        )
    return LabelRequest(**{key: saved[key] for key in types}) if name == FINISHED else None


def mark_unfinished(out: Path, recipe: str) -> None:
    """Claim a folder for the request of a recipe."""
    atomic_write_text(out / UNFINISHED, json.dumps({"recipe": recipe}) + "\n")


def mark_finished(out: Path, made: LabelRequest) -> None:
    """Write the record, then remove the files that only resuming needs."""
    atomic_write_text(out / FINISHED, json.dumps(made.to_json(), indent=1) + "\n")
    for name in (UNFINISHED, SCORES):
        (out / name).unlink(missing_ok=True)
