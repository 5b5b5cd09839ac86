"""`fastmoco embed`: write the features of a dataset to a file, batch by batch.

Rows are never all in memory: it holds one row group of a Parquet file (64 MiB) or one batch of an
npy file.
"""

import csv
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from torch import Tensor

from fastmoco.data.beton_format import printable
from fastmoco.data.dataset import Dataset, open_dataset
from fastmoco.errors import UsageError
from fastmoco.evaluate.features import feature_rows, features_folder, request_of
from fastmoco.evaluate.frozen_encoder import FrozenEncoder, open_encoder
from fastmoco.evaluate.settings import EmbedConfig, Features
from fastmoco.files import atomic_path
from fastmoco.parsing import spreadsheet_cell

ROW_GROUP_BYTES = 1 << 26


@dataclass(slots=True)
class EmbedSummary:
    """Description of the files written."""

    out: str
    ids: str | None
    """The CSV file of ids, paths and labels beside an npy file; None beside Parquet."""
    num_rows: int
    dim: int
    features: str
    num_bytes: int

    def to_json(self) -> dict[str, Any]:
        """The summary as a JSON object."""
        return asdict(self)

    def to_text(self) -> str:
        """The summary in one line."""
        beside = f"; ids, paths and labels in {self.ids}" if self.ids else ""
        return (
            f"{self.out}: {self.num_rows:,} rows of {self.dim}, {self.features} features, "
            f"{self.num_bytes / 1e6:,.1f} MB{beside}"
        )


def embed(run: Path, cfg: EmbedConfig) -> EmbedSummary:
    """Write the features of every image of ``data.test``, in file order.

    Parquet has the columns ``sample_id`` (int64), ``path`` (string), ``label`` (int64, -1 where
    unlabeled) and ``vector`` (float32, fixed length); an npy file has the vectors, ``(n, D)``
    float32, and a CSV file beside it the other columns.

    Args:
        run: A run folder, a checkpoint, an imported folder or an exported file.
        cfg: Options, from `load_config`.

    Raises:
        UsageError: If an option is missing or out of range.
        ValueError: If the checkpoint or the dataset is damaged.
        OSError: If a file cannot be read or written; an older file stays as it was.
    """
    out = _checked(cfg)
    assert cfg.data.test is not None
    encoder = open_encoder(run, cfg)
    dim = _output_length(encoder, cfg.features)
    with open_dataset(cfg.data.test) as dataset:
        folder = features_folder(run) if cfg.cache else None
        rows = feature_rows(encoder, dataset, request_of(cfg), folder)
        ids = out.with_suffix(".csv") if out.suffix == ".npy" else None
        if ids:
            _write_ids(ids, dataset)
            _write_npy(out, rows, (len(dataset), dim))
        else:
            facts = {"run": run.name, "features": cfg.features.value, "data": str(dataset.path)}
            write_parquet(out, rows, dataset, dim, facts)
        return EmbedSummary(
            out=str(out),
            ids=str(ids) if ids else None,
            num_rows=len(dataset),
            dim=dim,
            features=cfg.features.value,
            num_bytes=out.stat().st_size,
        )


def _checked(cfg: EmbedConfig) -> Path:
    if cfg.data.test is None:
        raise UsageError("data.test is not set; add data.test=FILE.beton")
    if cfg.out is None:
        raise UsageError("out is not set; add out=FILE.parquet or out=FILE.npy")
    if cfg.out.suffix not in (".parquet", ".npy"):
        raise UsageError(f"out={cfg.out} must end in .parquet or .npy")
    if cfg.out.is_dir():
        raise UsageError(f"out={cfg.out} is a folder; give a file")
    return cfg.out


def _output_length(encoder: FrozenEncoder, features: Features) -> int:
    if features is Features.backbone:
        return encoder.backbone.feature_dim
    # The last layer of both heads is linear.
    weights = [tensor for tensor in encoder.head.parameters() if tensor.ndim == 2]
    if not weights:
        raise UsageError("this encoder has no projection head; set features=backbone")
    return len(weights[-1])


def write_parquet(
    path: Path, rows: Iterator[Tensor], dataset: Dataset, dim: int, facts: dict[str, str]
) -> None:
    """Write a Parquet file atomically, one row group at a time.

    Args:
        path: The file.
        rows: ``(N, D)`` float32 on the host, all samples in order.
        dataset: An open dataset, for names and labels.
        dim: D.
        facts: Facts for the schema's metadata, stored as JSON under ``fastmoco``.
    """
    schema = pa.schema(
        [
            pa.field("sample_id", pa.int64(), nullable=False),
            pa.field("path", pa.string(), nullable=False),
            pa.field("label", pa.int64(), nullable=False),
            pa.field("vector", pa.list_(pa.float32(), dim), nullable=False),
        ],
        metadata={"fastmoco": json.dumps(facts)},
    )
    # Float features do not compress, and no two are equal.
    packed = {"sample_id": "zstd", "path": "zstd", "label": "zstd"}
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression=packed, use_dictionary=["label"]) as file,
    ):
        done = 0
        for group in _groups(rows, dim):
            file.write_table(_table(schema, group, done, dataset), row_group_size=len(group))
            done += len(group)
        assert done == len(dataset), (done, len(dataset))


def _groups(rows: Iterator[Tensor], dim: int) -> Iterator[NDArray[np.float32]]:
    """Yield the rows in groups of `ROW_GROUP_BYTES`; each is valid until the next one."""
    group = np.empty((max(1, ROW_GROUP_BYTES // (4 * dim)), dim), np.float32)
    used = 0
    for batch in rows:
        vectors = batch.numpy()
        while len(vectors):
            part = vectors[: len(group) - used]
            group[used : used + len(part)] = part
            used, vectors = used + len(part), vectors[len(part) :]
            if used == len(group):
                yield group
                used = 0
    if used:
        yield group[:used]


def _table(
    schema: pa.Schema, vectors: NDArray[np.float32], start: int, dataset: Dataset
) -> pa.Table:
    ids = np.arange(start, start + len(vectors))
    flat = pa.array(vectors.reshape(-1))  # a view: no copy
    columns = [
        pa.array(ids),
        pa.array([printable(dataset.name(sample)) for sample in ids.tolist()], pa.string()),
        pa.array(np.asarray(dataset.labels[ids], np.int64)),
        pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def _write_npy(path: Path, rows: Iterator[Tensor], shape: tuple[int, int]) -> None:
    """Write an npy file atomically, one batch at a time."""
    done = 0
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        for batch in rows:
            file.write(np.ascontiguousarray(batch.numpy()).data)
            done += len(batch)
        assert done == shape[0], (done, shape)


def _write_ids(path: Path, dataset: Dataset) -> None:
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8") as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["sample_id", "path", "label"])
        for sample, label in enumerate(dataset.labels.tolist()):
            writer.writerow([sample, spreadsheet_cell(printable(dataset.name(sample))), label])
