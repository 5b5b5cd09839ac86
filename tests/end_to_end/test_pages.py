"""Code blocks of README and docs: each is run with tiny data, or says before it why it is not.

The reason is a comment on the line before the block, ``<!-- not run: needs a GPU -->``. Every
command of every block is parsed, run or not. Blocks of `QUICK` commands run in every test, the
others in `make full`; to be quick, a command gets the options of `SHORT` in addition.
"""

import dataclasses
import itertools
import re
import shlex
import shutil
from pathlib import Path

import pytest

from fastmoco.cli import main
from fastmoco.commands import COMMANDS
from tests.runs import OPTIONS, write_colors, write_run

ROOT = Path(__file__).resolve().parents[2]
ELSEWHERE = {
    "docs/architecture.md": "a figure, compared with the layers by tests/unit/test_docs.py",
    "docs/extending.md": "parts of files that a reader writes",
    "docs/index.md": "the navigation of the site",
    "docs/api.md": "for Sphinx",
    "docs/python.md": "run by tests/end_to_end/test_python.py",
}
BLOCK = re.compile(
    r"(?:^ *<!-- not run: ([^\n]+) -->\n)?^( *)```([^\n`]*)\n(.*?)^ *```$", re.M | re.S
)
PAGES = [
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "docs/reproductions/*.md")
    for path in sorted(ROOT.glob(pattern))
]
TINY = ["device=cpu", "train.epochs=1", "cache=false"]
SHORT = {
    "train": [
        *OPTIONS,
        "device=cpu",
        "train.max_steps=1",
        "train.compile=never",
        "monitor.every_epochs=0",
    ],
    "linear": [*TINY, "optimizer.milestones=[]"],
    "finetune": TINY,
    "evaluate": ["device=cpu", "finetune_epochs=1", "cache=false"],
    "noise-table": ["device=cpu", "noises=[0,0.4]", "methods=[linear]"],
    "knn": ["device=cpu", "k=5"],
    "request": ["device=cpu", "count=12"],
    "sweep": ["seeds=[0]", "print=true"],
    "views": ["count=1", "views=2", "view_size=32"],
}
QUICK = {"convert", "info", "verify", "views", "embed", "neighbors", "feature-maps", "export"}
PLACEHOLDERS = {"RUN": "runs/first", "TARGET": "safetensors", "PATH": "encoder.safetensors"}
SETS = "train test photos-train photos-test"


def blocks(page):
    """Line, reason not to run it, language and text of each block."""
    text = (ROOT / page).read_text(encoding="utf-8")
    for match in BLOCK.finditer(text):
        yield text[: match.start(2)].count("\n") + 1, match[1], match[3], match[4]


def commands(text):
    """The words of each line that starts fastmoco, also behind torchrun."""
    for line in text.replace("\\\n", " ").splitlines():
        words = shlex.split(line, comments=True) if "fastmoco " in line else []
        if "fastmoco" in words:
            yield words[words.index("fastmoco") + 1 : words.index(">") if ">" in words else None]


def filled(words):
    """The words with `PLACEHOLDERS` and a local folder filled in."""
    names = re.compile(rf"\b({'|'.join(PLACEHOLDERS)})$")
    return [names.sub(lambda m: PLACEHOLDERS[m[1]], w).replace("/shared/", "") for w in words]


def is_quick(text):
    """Whether a block trains nothing."""
    return {words[0] for words in commands(text)} <= QUICK


ALL = [
    pytest.param(page, reason, text, id=f"{page}:{line}")
    for page in PAGES
    if page not in ELSEWHERE
    for line, reason, _, text in blocks(page)
]
TO_RUN = [
    pytest.param(text, id=one.id, marks=[] if is_quick(text) else pytest.mark.full)
    for one in ALL
    for _, reason, text in [one.values]
    if not reason
]


def test_there_are_blocks_and_the_pages_elsewhere_exist():
    assert len(ALL) > 20
    assert set(ELSEWHERE) <= set(PAGES)
    assert any(one.id.startswith("README.md") for one in TO_RUN)


@pytest.mark.usefixtures("place")
def test_every_command_of_the_pages_is_understood(monkeypatch, capsys):
    """Also those that are not run: names, values and ranges, by the command line itself."""
    parsed = []
    for name, command in list(COMMANDS.items()):
        if command.run is not None:
            stub = dataclasses.replace(command, run=lambda *given: parsed.append(given) or "done")
            monkeypatch.setitem(COMMANDS, name, stub)
    wrong = []
    for one in ALL:
        for words in commands(one.values[2]):
            if (
                "COMMAND" in words
                or "--multirun" in words
                or words[0] in ("demo", "sweep", "table")
            ):
                continue
            given = [re.sub("^runs/.*", "runs/first", word) for word in filled(words)]
            given += ["--cfg", "job"] if words[0] == "train" else []
            code, said = main(given), capsys.readouterr().err
            if code and not re.search("no such|needs s3fs; install it", said, re.IGNORECASE):
                wrong.append(f"{one.id}: {shlex.join(words)}: {said}")
    assert not wrong, "\n".join(wrong)
    assert len(parsed) > 30


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Photographs, dataset files of `SETS`, a run, an image and a checkpoint."""
    folder = tmp_path_factory.mktemp("pages")
    write_colors(folder / "photos", seed=0, per_class=10)
    (folder / "flat").mkdir()
    for number, image in enumerate(sorted((folder / "photos").rglob("*.jpg"))):
        shutil.copy(image, folder / "flat" / f"{number}.jpg")
    assert main(["convert", str(folder / "flat"), str(folder / "unlabeled.beton")]) == 0
    for seed, name in enumerate(SETS.split(), 1):
        write_colors(folder / "sources" / name, seed=seed, per_class=10)
        assert main(["convert", str(folder / "sources" / name), str(folder / f"{name}.beton")]) == 0
    shutil.copy(folder / "photos/blue/0.jpg", folder / "cat.jpg")
    write_run(folder / "runs/first")
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A copy of what was made, as the current folder."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def grant_labels(request, classes):
    """What a person does between `request` and `merge-labels`; each class gets some images."""
    rows = (request / "request.csv").read_text().splitlines()[1:]
    ids = (row.partition(",")[0] for row in rows)
    lines = [f"{one},{name}" for one, name in zip(ids, itertools.cycle(classes), strict=False)]
    (request.parent / "granted.csv").write_text("\n".join(["sample_id,label", *lines]) + "\n")


@pytest.mark.parametrize("text", TO_RUN)
def test_a_block_runs(text, place, capsys):
    ran = 0
    for words in commands(text):
        name = words[0]
        if name == "merge-labels":
            classes = [folder.name for folder in (place / "photos").iterdir()]
            grant_labels(place / "request", classes)
        if name == "train" and any(word.startswith("name=") for word in words):
            shutil.rmtree(place / "runs/first", ignore_errors=True)
        given = filled(words) + SHORT.get(name, [])
        assert main(given) == 0, f"{shlex.join(given)}: {capsys.readouterr().err}"
        ran += 1
    assert ran
