"""What was asked for on the command line."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Settings:
    """The options of `conftest`.

    Attributes:
        scale: ``small`` or ``full``.
        cifar: A folder of CIFAR-10's JPEGs in class folders, if there is one.
        images: A folder of one's own JPEGs that take the place of the made photographs.
        results: Where results are written.
        plots: Whether plots are written beside them.
    """

    scale: str
    cifar: Path | None
    images: Path | None
    results: Path
    plots: bool

    def pick(self, small: int, full: int) -> int:
        """The one that belongs to the scale."""
        return full if self.scale == "full" else small
