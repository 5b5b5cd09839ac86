"""``baselines.json`` of a run folder: what its encoder must exceed; imports no torch."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from fastmoco.files import atomic_write_text, json_types, read_json_object


@dataclass(frozen=True, slots=True)
class Baselines:
    """What an encoder must exceed: kNN top-1 before the first step, by the monitor's protocol."""

    knn_top1_pixels: float
    """Percent, of raw pixels."""
    knn_top1_start: float
    """Percent, of the encoder as the run starts with it."""
    num_images: int
    """Images that are classified."""
    about: str
    """Which images, in words."""

    def to_text(self) -> str:
        """The figures in one line."""
        pixels, start = self.knn_top1_pixels, self.knn_top1_start
        figures = f"raw pixels {pixels:.1f}%, encoder at the start {start:.1f}%"
        return f"kNN top-1 on {self.num_images:,} {self.about}: {figures}"


def write_baselines(path: Path, baselines: Baselines) -> None:
    """Write the file, atomically."""
    atomic_write_text(path, json.dumps(asdict(baselines), indent=1) + "\n")


def read_baselines(path: Path) -> Baselines:
    """Read what `write_baselines` wrote.

    Raises:
        ValueError: If the file is damaged.
    """
    types, advice = json_types(Baselines), "remove it; the run continues without baselines"
    found = read_json_object(path, types, advice=advice)
    return Baselines(**{key: found[key] for key in types})
