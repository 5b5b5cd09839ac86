"""Each format of a run, a dataset and an export, damaged byte by byte: noticed or harmless."""

import os
import warnings
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from fastmoco.configuration import config_to_dict, load_config
from fastmoco.data import conversion
from fastmoco.data.beton import BetonFile
from fastmoco.data.convert import ConvertConfig, Encoding, convert
from fastmoco.data.verify import verify
from fastmoco.runs.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from fastmoco.runs.encoder_file import read_encoder_file, write_encoder_file
from fastmoco.runs.metrics_file import MetricsFile, read_metrics
from fastmoco.train.settings import TrainConfig
from tests.faults.damage import byte_map
from tests.faults.ledger import Ledger, Part, observe
from tests.faults.test_beton_faults import regions
from tests.pictures import write_class_folders

SEED = 19
QUICK = 12
HOW = (
    "a flipped bit, a cut, 1 to 64 bytes zeroed, deleted or swapped with others, each at one "
    f"position in each of %s equal ranges of the file (seed {SEED})"
)
FACTS = {
    "config": config_to_dict(load_config(TrainConfig, [])),
    "dataset_fingerprint": "ab" * 32,
    "channel_mean": [0.5, 0.45, 0.4],
    "channel_std": [0.25, 0.25, 0.25],
    "metrics_count": 3,
    "knn_top1": 81.25,
}


def tensors() -> dict[str, torch.Tensor]:
    return {
        "backbone.weight": torch.randn(16, 12),
        "backbone.count": torch.arange(5),
        "head.bias": torch.randn(7).half(),
    }


def map_bytes(
    part: Part,
    path: Path,
    count: int,
    read: Callable[[], Any],
    quick: int = QUICK,
    places: Sequence[int] | None = None,
    cut: str = "",
) -> None:
    """Damage a file at each position, read it, and restore it.

    `cut` names what is promised of a file of rows that ends early: the rows before its end.
    """
    data, expected = path.read_bytes(), read()
    seed = [SEED, part.number]
    for kind, at, changed in byte_map(data, quick if part.quick else count, seed, places):
        path.write_bytes(changed)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            seen = observe(read)
        outcome = seen.outcome
        if outcome == "done":
            outcome = "harmless" if seen.result == expected else "silent"
            if cut and outcome == "silent" and seen.result == expected[: len(seen.result)]:
                outcome = cut
        part.add(outcome, seen.seconds, place=kind, example=f"byte {at}: {seen.result!s:.60}")
    path.write_bytes(data)


def plain(values: dict[str, torch.Tensor]) -> list[tuple[str, str, list[Any]]]:
    return [(name, str(t.dtype), t.tolist()) for name, t in sorted(values.items())]


def read_checkpoint(path: Path) -> Any:
    found = load_checkpoint(path)
    return found.step, found.facts, plain(found.tensors)


def read_encoder(path: Path) -> Any:
    found, step, facts = read_encoder_file(path)
    return plain(found), step, facts


@pytest.mark.parametrize(
    ("suffix", "name"), [(".json", "the record"), (".safetensors", "the weights")]
)
def test_checkpoint(ledger: Ledger, tmp_path: Path, suffix: str, name: str) -> None:
    checkpoint = Checkpoint(step=20, tensors=tensors(), facts=FACTS)
    path = save_checkpoint(tmp_path, checkpoint, keep=1)
    campaign = ledger.campaign(
        f"bytes_checkpoint_{suffix[1:]}",
        promise=f"Damage of {name} of a checkpoint is noticed when it is read.",
        how=HOW % "2,000",
    )
    for part in campaign.parts(1):
        map_bytes(part, path.with_suffix(suffix), 2000, lambda: read_checkpoint(path))
    campaign.check()


def test_encoder_file(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "encoder.safetensors"
    write_encoder_file(path, tensors(), step=20, facts=FACTS)
    campaign = ledger.campaign(
        "bytes_encoder_file",
        promise="Damage of an exported encoder's file is noticed when it is read.",
        how=HOW % "2,000",
    )
    for part in campaign.parts(1):
        map_bytes(part, path, 2000, lambda: read_encoder(path))
    campaign.check()


@pytest.mark.parametrize("encoding", list(Encoding))
def test_dataset_file(ledger: Ledger, tmp_path: Path, encoding: Encoding) -> None:
    write_class_folders(tmp_path / "src")
    path = tmp_path / "x.beton"
    convert(str(tmp_path / "src"), path, ConvertConfig(encoding=encoding, page_bytes=1 << 21))

    def read() -> Any:
        verify(path)
        with BetonFile.open(path) as beton:
            found = range(len(beton))
            return [(beton.name(i), beton.labels[i], beton.decode(i).tobytes()) for i in found]

    found = [range(*span) for name, span in regions(path.read_bytes()).items() if name != "padding"]
    places = [at for span in found for at in span]
    campaign = ledger.campaign(
        f"bytes_dataset_{encoding.value}",
        promise=f"Damage of a dataset file ({encoding.value}) is noticed by `verify`.",
        how=f"{HOW % '400'}; not between its parts, where zeros fill pages",
    )
    for part in campaign.parts(1):
        map_bytes(part, path, 400, read, quick=4, places=places)
    campaign.check()


def test_conversion_journal(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The journal only saves work: with a damaged one, the file becomes the same."""
    write_class_folders(tmp_path / "src", classes=4, per_class=20)
    target, options = tmp_path / "x.beton", ConvertConfig(workers=1, page_bytes=1 << 21)
    monkeypatch.setattr(conversion, "RECORD_SECONDS", 0.0)
    convert(str(tmp_path / "src"), target, options)
    expected = target.read_bytes()
    os.unlink(target)

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(conversion.BetonWriter, "finish", stop)
        with pytest.raises(KeyboardInterrupt):
            convert(str(tmp_path / "src"), target, options)
    journal, partial = target.with_name("x.beton.journal"), target.with_name("x.beton.partial")
    kept = partial.read_bytes()
    assert len(journal.read_bytes().splitlines()) > 2

    def read() -> bytes:
        target.unlink(missing_ok=True)
        partial.write_bytes(kept)
        convert(str(tmp_path / "src"), target, options)
        return target.read_bytes()

    campaign = ledger.campaign(
        "bytes_journal",
        promise="With a damaged journal, a resumed conversion ends with the same file.",
        how=HOW % "100",
    )
    for part in campaign.parts(1):
        with monkeypatch.context() as patch:
            # A journal of another recipe is said to be one.
            patch.setattr(conversion.warnings, "warn", lambda *_, **__: None)
            map_bytes(part, journal, 100, lambda: read() == expected, quick=3)
    campaign.check()


def test_metrics(ledger: Ledger, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    rows = [{"step": i, "loss": 7 / (i + 1), "knn_top1": None, "epoch": i / 8} for i in range(40)]
    with closing(MetricsFile(path, resume_step=0)) as file:
        for row in rows:
            file.write(row)
    campaign = ledger.campaign(
        "bytes_metrics",
        promise="A damaged row of `metrics.jsonl` is noticed when the file is read; of a file that "
        "ends early, as after a power cut, the rows before its end are read.",
        how=HOW % "1,000",
    )
    for part in campaign.parts(1):
        map_bytes(part, path, 1000, lambda: read_metrics(path), cut="read to its end")
    campaign.check()
