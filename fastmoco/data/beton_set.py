"""The shards of a dataset, read as if they were one file."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.beton import BetonFile
from fastmoco.data.beton_format import BetonError
from fastmoco.data.facts import merged_facts
from fastmoco.data.shards import find_shards, set_fingerprint


class BetonSet:
    """Checked, open .beton files, one behind the other; what `BetonFile` offers to readers.

    Any number of threads may read from it at once.

    Attributes:
        path: The pattern that matched the files.
        files: The files, in order.
        labels: Class of each sample, ``(n,)`` int64; -1 where unlabeled.
        widths: Width of each image in pixels, ``(n,)`` int32.
        heights: Height of each image in pixels, ``(n,)`` int32.
        modes: How each image is stored, ``(n,)`` uint8.
        sizes: Length of each stored image in bytes, ``(n,)`` int64.
        has_checksums: False if one of them is a file that FFCV wrote.
        fingerprint: Hex SHA-256 of the files' fingerprints.
        classes: Class names, ``[]`` if unknown.
        facts: As of `merged_facts`; ``{}`` if no file has any.
    """

    def __init__(self, path: Path, files: Sequence[BetonFile]) -> None:
        """Takes open files; use `BetonSet.open`.

        Raises:
            BetonError: If their classes differ.
        """
        self.path = path
        self.files = tuple(files)
        self.classes = files[0].classes
        for file in files:
            if file.classes != self.classes:
                raise BetonError(
                    f"{file.path}: its classes differ from those of {files[0].path}; convert all "
                    "shards from one source"
                )
        self.labels = np.concatenate([file.labels for file in files])
        self.widths = np.concatenate([file.widths for file in files])
        self.heights = np.concatenate([file.heights for file in files])
        self.modes = np.concatenate([file.modes for file in files])
        self.sizes = np.concatenate([file.sizes for file in files])
        self.has_checksums = all(file.has_checksums for file in files)
        self.fingerprint = set_fingerprint([file.fingerprint for file in files])
        self.facts: dict[str, Any] = merged_facts([file.facts for file in files])
        self._ends = np.cumsum([len(file) for file in files])

    @classmethod
    def open(cls, pattern: Path) -> Self:
        """Opens the shards that a pattern such as ``train-*.beton`` matches.

        Raises:
            BetonError: As `BetonFile.open`, or if the shards do not belong together.
            ValueError: If shards are missing.
            OSError: If there is no such file, or it may not be read.
        """
        with ExitStack() as opened:
            files = [opened.enter_context(BetonFile.open(shard)) for shard in find_shards(pattern)]
            dataset = cls(pattern, files)
            opened.pop_all()
        return dataset

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.labels)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the files; later reads raise BetonError."""
        for file in self.files:
            file.close()

    def name(self, sample_id: int) -> str:
        """As `BetonFile.name`."""
        file, place = self._find(sample_id)
        return file.name(place)

    def blob(self, sample_id: int) -> memoryview:
        """As `BetonFile.blob`."""
        file, place = self._find(sample_id)
        return file.blob(place)

    def decode(self, sample_id: int) -> NDArray[np.uint8]:
        """As `BetonFile.decode`."""
        file, place = self._find(sample_id)
        return file.decode(place)

    def _find(self, sample_id: int) -> tuple[BetonFile, int]:
        """The file of a sample, and its id in there."""
        if not 0 <= sample_id < len(self):
            raise IndexError(f"{self.path}: there is no sample {sample_id} among {len(self)}")
        number = int(np.searchsorted(self._ends, sample_id, side="right"))
        file = self.files[number]
        return file, int(sample_id) - int(self._ends[number]) + len(file)
