"""The hostile files made by code, counted: each is refused in a line that says why, or harmless.

Every run of the tests reads them one by one (`tests/unit`: parsing, tar members, unpickle, hostile
annotations and weights); here they are counted for docs/faults.md.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import pytest

from fastmoco.data.encode import encode_batch
from fastmoco.data.images import ImageError
from fastmoco.data.settings import ConvertConfig
from fastmoco.data.sources import SourceOptions, open_source
from fastmoco.errors import one_line
from fastmoco.parsing import read_yaml
from fastmoco.runs.weights_file import read_weights
from tests.faults import zoo_annotations, zoo_safetensors, zoo_tars, zoo_yaml
from tests.faults.crafted_images import CRAFTED
from tests.faults.ledger import Ledger, Seen, observe
from tests.limits import HANG_SECONDS
from tests.unit.test_hostile_annotations import read as read_annotations

pytestmark = pytest.mark.full
HOW = "files made by code (`tests/faults/%s.py`), each with the reason that must be named"


def judged(seen: Seen, word: str) -> str:
    """The outcome; a hostile file that is read, or refused for another reason, is silent."""
    if seen.outcome == "refused":
        return "refused" if word and re.search(word, str(seen.result)) else "silent"
    if seen.outcome == "done":
        return "silent" if word else "harmless"
    return seen.outcome


def count(
    ledger: Ledger,
    zoo: str,
    what: str,
    cases: Iterable[tuple[str, bytes, str]],
    read: Callable[[str, bytes], object],
) -> None:
    """Read every file of a zoo by `read(name, data)`."""
    module = "crafted_images" if zoo == "images" else f"zoo_{zoo}"
    promise = f"A hostile {what} is refused in one line, without the memory that it claims."
    campaign = ledger.campaign(f"zoo_{zoo}", promise=promise, how=HOW % module, unit="inputs")
    for part in campaign.parts(1):
        for name, data, word in cases:
            seen = observe(lambda name=name, data=data: read(name, data))
            shown = one_line(f"{name}: {seen.result}")
            part.add(judged(seen, word), seen.seconds, place="files", example=shown)
    campaign.check()


def test_yaml(ledger: Ledger, tmp_path: Path) -> None:
    def read(_: str, data: bytes) -> None:
        path = tmp_path / "mine.yaml"
        path.write_bytes(data)
        values = read_yaml(path)
        if not isinstance(values, dict):
            raise ValueError("must hold `key: value` lines or is no configuration")

    cases = ((name, data, re.escape(word)) for name, data, word in zoo_yaml.cases())
    count(ledger, "yaml", "YAML file", cases, read)


def test_tars(ledger: Ledger, tmp_path: Path) -> None:
    def read(_: str, data: bytes) -> None:
        path = tmp_path / "t.tar"
        path.write_bytes(data)
        samples = open_source(str(path), SourceOptions())
        for key in samples.keys:
            with suppress(ImageError):
                samples.load(key)

    count(ledger, "tars", "tar shard", zoo_tars.cases(), read)


def test_safetensors(ledger: Ledger, tmp_path: Path) -> None:
    def read(_: str, data: bytes) -> None:
        path = tmp_path / "weights.safetensors"
        path.write_bytes(data)
        read_weights(path)

    count(ledger, "safetensors", "safetensors file", zoo_safetensors.cases(), read)


def test_annotations(ledger: Ledger, tmp_path: Path) -> None:
    zoo_annotations.write_image(tmp_path)

    def read(name: str, data: bytes) -> None:
        read_annotations(tmp_path, name, data)

    count(ledger, "annotations", "annotation file", zoo_annotations.cases(), read)


def test_images(ledger: Ledger) -> None:
    def read(name: str, data: bytes) -> None:
        (found,) = encode_batch(lambda _: data, [name], [False], ConvertConfig()).images
        if isinstance(found, str):
            raise ImageError(found)

    reasons = {
        name: "" if re.match("copied|encoded", fate) else re.escape(fate)
        for name, (_, fate) in CRAFTED.items()
    }
    # An empty file is refused where it is read, in the folder's source.
    cases = [(name, blob, reasons[name]) for name, (blob, _) in CRAFTED.items() if blob]
    count(ledger, "images", "or odd image", cases, read)


def test_pickles(ledger: Ledger) -> None:
    """Each is read by the guarded child, which prints what came of it."""
    campaign = ledger.campaign(
        "zoo_pickles",
        promise="A hostile pickle is refused by the guarded child, and runs nothing.",
        how=HOW % "zoo_pickles",
        unit="inputs",
    )
    for part in campaign.parts(1):
        command = [sys.executable, "-m", "tests.faults.zoo_pickles"]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=HANG_SECONDS, check=True
        )
        for line in done.stdout.splitlines():
            name, word, code, said, files, seconds = ast.literal_eval(line)
            reason = said.splitlines()[-1] if said else ""
            outcome = {0: "done", 3: "refused"}.get(code, "crashed")
            if outcome == "refused" and files:
                outcome = "silent"
            seen = Seen(outcome, reason, seconds)
            part.add(judged(seen, word), seconds, place="files", example=f"{name}: {reason}")
    campaign.check()
