"""convert, info and verify as a user types them: what they print, and their exit codes."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from fastmoco import cli
from fastmoco.commands import info
from fastmoco.data import conversion, progress
from tests.end_to_end.test_bad_input import fails
from tests.pictures import encoded, picture, write_class_folders

COMMAND = [sys.executable, "-m", "fastmoco.cli"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    write_class_folders(tmp_path / "src", classes=2, per_class=20)
    (tmp_path / "src" / "class_0" / "bad.jpg").write_bytes(b"no image")
    twin = (tmp_path / "src" / "class_0" / "0.jpg").read_bytes()
    (tmp_path / "src" / "class_1" / "twin.jpg").write_bytes(twin)
    return tmp_path / "src"


def run(capsys, *arguments: object) -> str:
    capsys.readouterr()
    assert cli.main([str(argument) for argument in arguments]) == 0
    found = capsys.readouterr()
    assert found.err == ""
    return found.out


def test_tables_and_json(capsys, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.beton"
    rows = dict(
        line.split(maxsplit=1) for line in run(capsys, "convert", source, target).split("\n")[:-1]
    )
    assert rows["images"] == "41"
    assert rows["duplicates"] == "1 with the same bytes as another"
    assert rows["skipped"] == f"1 bad images, listed in {tmp_path / 'x.quarantine.csv'}"
    made = json.loads(run(capsys, "convert", source, target, "--json"))
    assert (made["num_samples"], made["num_quarantined"], made["num_duplicates"]) == (41, 1, 1)
    facts = json.loads(run(capsys, "info", target, "--json"))
    assert facts["class_counts"] == {"class_0": 20, "class_1": 21}
    assert facts["outlook"].startswith("41 images: too few to learn from nothing")
    assert facts["fingerprint"] == made["fingerprint"]
    assert "class_0 20, class_1 21" in run(capsys, "info", target)
    report = json.loads(run(capsys, "verify", target, "--json"))
    assert (report["num_samples"], report["has_checksums"]) == (41, True)
    assert "sound; checked checksums and pixels of 41 images" in run(capsys, "verify", target)


def test_shards_are_listed_together(capsys, source: Path, tmp_path: Path) -> None:
    (source / "class_1" / "bad.jpg").write_bytes(b"no image")
    made = json.loads(run(capsys, "convert", source, tmp_path / "x.beton", "shards=2", "--json"))
    lists = sorted(str(path) for path in tmp_path.glob("*.csv"))
    expected = str(tmp_path / "x-*.quarantine.csv") if len(lists) == 2 else lists[0]
    assert made["quarantine_path"] == expected
    facts = json.loads(run(capsys, "info", tmp_path / "x-*.beton", "--json"))
    assert (facts["num_files"], facts["num_samples"], facts["num_quarantined"]) == (2, 41, 2)


def test_wrong_words_exit_2(capsys, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "x.beton"
    (tmp_path / "list.csv").write_text("path,split\na.png,train\n")
    for arguments, words in (
        ([source, tmp_path / "x.bin"], "does not end in .beton; name a file"),
        ([source, target, "quality=0"], "quality must be in [1, 100], got 0"),
        ([source, target, "page_bytes=3"], "page_bytes=3 is not a power of two"),
        ([source, target, "check=all"], "check must be one of decode, header, got all"),
        ([source, target, "shards=100"], "shards=100 is more than the 42 images"),
        ([source, target, "shard=4/4"], "shard=4/4 is not I/N with I < N, such as 0/4"),
        ([source, target, "root=data"], "takes no root=data"),
        ([source, target, "download=true"], "takes no download=true"),
        (["torchvision:cifar10", target], "did you mean CIFAR10?"),
        (["torchvision:CIFAR10", target, "split=val"], "its splits are train, test"),
        (["torchvision:CIFAR10", target, f"root={tmp_path}"], "cifar-10-python.tar.gz"),
        (["builtin:texture", target], "use builtin:textures"),
        ([tmp_path / "list.csv", target, "split=val"], "its splits are train"),
        ([tmp_path / "none*.tar", target], "no such shard"),
    ):
        fails(capsys, ["convert", *arguments], 2, words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["list.csv", "src"]


def test_where_nothing_can_be_written(capsys, source: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "x.beton"
    fails(capsys, ["convert", source, target], 2, tmp_path / "file", "is not a folder")
    (tmp_path / "x.beton.partial").mkdir()
    target = tmp_path / "x.beton"
    fails(capsys, ["convert", source, target], 2, f"{target}: cannot be written (Is a directory)")


@pytest.mark.usefixtures("interruptible")
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_interrupted_conversion_says_so(
    capsys, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int
) -> None:
    target = tmp_path / "x.beton"
    run(capsys, "convert", source, target)
    before = target.read_bytes()

    def interrupt(*_: object) -> None:
        signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(conversion, "encoded_batches", interrupt)
        arguments = ["convert", source, target, "encoding=raw"]
        fails(capsys, arguments, code, f"{target}: interrupted; the same command resumes")
    assert target.read_bytes() == before
    run(capsys, *arguments)
    assert target.read_bytes() != before


def test_odd_names(capsys, tmp_path: Path) -> None:
    folder = tmp_path / "a b, c=d [e] {f}"
    folder.mkdir()
    (folder / "line\nbreak.jpg").write_bytes(encoded(picture(1))[:-9])
    (folder / "byte \udcff.jpg").write_bytes(encoded(picture(2)))
    target = tmp_path / "new \udcff folder" / "-x y.beton"
    fails(capsys, ["convert", folder, target, "on_error=fail"], 1, "line\\nbreak.jpg: cut JPEG")
    (folder / "line\nbreak.jpg").unlink()  # else stderr would say that half is left out
    for locale in ("C", "C.UTF-8"):
        strict = {**os.environ, "PYTHONIOENCODING": "utf-8:strict", "LC_ALL": locale}
        for arguments in (["convert", folder, target], ["info", target], ["verify", target]):
            done = subprocess.run(
                [*COMMAND, *arguments], capture_output=True, env=strict, check=False
            )
            assert (done.returncode, done.stderr) == (0, b"")
            assert os.fsencode(target) in done.stdout
    damaged = bytearray(target.read_bytes())
    damaged[damaged.index(b"\xff\xda") + 40] ^= 1
    target.write_bytes(damaged)
    fails(capsys, ["verify", target], 1, "sample 0 (byte \\udcff.jpg), byte ")


def test_options_that_are_paths_may_hold_anything(capsys, source: Path, tmp_path: Path) -> None:
    labels = tmp_path / "a=b, c (1) [2] {3} 'x'.csv"
    rows = [
        f"{path.relative_to(source)},kind {i % 3}" for i, path in enumerate(source.rglob("*.jpg"))
    ]
    labels.write_text("\n".join(["path,my kind", *rows]))
    target = tmp_path / "x.beton"
    made = json.loads(run(capsys, "convert", source, target, f"labels={labels}:my kind", "--json"))
    assert made["classes"] == ["kind 0", "kind 1", "kind 2"]
    facts = json.loads(target.with_name("x.beton.json").read_text())
    assert facts["options"]["labels"] == f"{labels}:my kind"
    fails(
        capsys, ["convert", source, target, f"labels={tmp_path}/n, o.txt"], 2, "n, o.txt: no such"
    )
    fails(capsys, ["info", target, "a=1"], 2, "unexpected argument a=1")


LINE = r"(\d+)/42 images  [\d,]+ images/s  [\d.]+ MB/s  ETA \d+:\d\d:\d\d"


def test_progress_is_told_in_lines_where_there_is_no_terminal(
    capsys, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "LINE_SECONDS", 0.0)
    assert cli.main(["convert", str(source), str(tmp_path / "x.beton")]) == 0
    lines = capsys.readouterr().err.splitlines()
    done = [re.fullmatch(f"fastmoco: {LINE}", line) for line in lines]
    assert [match and match[1] for match in done] == ["32", "42"]
    assert cli.main(["verify", str(tmp_path / "x.beton")]) == 0
    assert "41/41 images" in capsys.readouterr().err


def test_progress_is_a_bar_on_a_terminal(source: Path, tmp_path: Path) -> None:
    terminal, end = pty.openpty()
    arguments = ["convert", str(source), str(tmp_path / "x.beton")]
    text = b""
    with subprocess.Popen([*COMMAND, *arguments], stdout=end, stderr=end) as process:
        os.close(end)
        with suppress(OSError):  # so a terminal ends
            while part := os.read(terminal, 4096):
                text += part
    os.close(terminal)
    assert process.returncode == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text.decode())
    assert re.search(LINE, plain), plain


def test_help_ends_quietly_where_nobody_reads_on():
    process = subprocess.Popen(
        [*COMMAND, "convert", "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout
    assert process.stderr
    process.stdout.close()
    with process.stderr:
        assert process.stderr.read() == ""
    assert process.wait(60) == 0


def test_info_has_words_for_people(tmp_path, capsys):
    write_class_folders(tmp_path / "in", classes=2, per_class=3)
    target = tmp_path / "x.beton"
    run(capsys, "convert", tmp_path / "in", target)
    facts = json.loads(run(capsys, "info", target, "--json"))
    assert facts.keys() <= {*info.WORDS, *info.NOT_FOR_PEOPLE}
    lines = run(capsys, "info", target).splitlines()
    assert [line.split("  ")[0] for line in lines[:2]] == ["file", "images"]
    assert lines[-1].startswith("what they allow ")
    assert "checksum of each image       yes" in lines
    assert not [line for line in lines if "_" in line.split("  ")[0]]
