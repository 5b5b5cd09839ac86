"""Shards of a dataset, read like one file."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fastmoco.data.beton import BetonFile
from fastmoco.data.beton_format import BetonError
from fastmoco.data.facts import merged_facts
from fastmoco.data.shards import find_shards, set_fingerprint
from fastmoco.draws.streams import INT64
from fastmoco.files import allow_open_files

OTHER_FILES = 512
"""Files beside the shards that a process may want open."""


class BetonSet:
    """Checked, open .beton files, concatenated; a `Dataset`, like `BetonFile`.

    Any number of threads may read from it at once. It has the attributes of `Dataset`, and these:

    Attributes:
        files: The files, in order.
        shard_ends: End of each file's sample ids, ``(S,)`` int64.
        has_checksums: False if FFCV wrote one of them.
        fingerprint: Hex SHA-256 of the files' fingerprints.
        facts: `merged_facts` of the files; ``{}`` if no file has any.
    """

    def __init__(self, path: Path, files: Sequence[BetonFile]) -> None:
        """Combine open files; use `BetonSet.open`.

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
        self.shard_ends: INT64 = np.cumsum([len(file) for file in files], dtype=np.int64)

    @classmethod
    def open(cls, pattern: Path) -> Self:
        """Open the shards that match a pattern such as ``train-*.beton``.

        Raises:
            BetonError: As `BetonFile.open`, or if the shards do not belong together.
            ValueError: If shards are missing.
            OSError: If no file matches, or one cannot be read.
        """
        shards = find_shards(pattern)
        allow_open_files(len(shards) + OTHER_FILES)
        with ExitStack() as opened:
            files = [opened.enter_context(BetonFile.open(shard)) for shard in shards]
            dataset = cls(pattern, files)
            opened.pop_all()
        return dataset

    def __len__(self) -> int:
        return len(self.labels)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the files; later reads raise BetonError."""
        for file in self.files:
            file.close()

    def name(self, sample_id: int) -> str:
        """See `BetonFile.name`."""
        file, position = self._find(sample_id)
        return file.name(position)

    def blob(self, sample_id: int) -> memoryview:
        """See `BetonFile.blob`."""
        file, position = self._find(sample_id)
        return file.blob(position)

    def checksum(self, sample_id: int) -> int:
        """See `BetonFile.checksum`."""
        file, position = self._find(sample_id)
        return file.checksum(position)

    def decode(self, sample_id: int) -> NDArray[np.uint8]:
        """See `BetonFile.decode`."""
        file, position = self._find(sample_id)
        return file.decode(position)

    def _find(self, sample_id: int) -> tuple[BetonFile, int]:
        """The file of a sample, and the sample's id in that file."""
        if not 0 <= sample_id < len(self):
            raise IndexError(f"{self.path}: no sample {sample_id}; ids are 0 to {len(self) - 1}")
        number = int(np.searchsorted(self.shard_ends, sample_id, side="right"))
        file = self.files[number]
        return file, int(sample_id) - int(self.shard_ends[number]) + len(file)
