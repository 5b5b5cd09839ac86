"""The pages about the code say what the code is: paths, names, layers, columns, links."""

import ast
import os
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import fastmoco
from fastmoco.draws.streams import Stream
from fastmoco.moco.settings import OWN_HEADS, Mechanism
from fastmoco.runs.run_folder import LOCK_NAME, RunFolder
from fastmoco.train.data_wait import DataWait
from fastmoco.train.metrics import MetricsSum
from fastmoco.train.report import StepClock, make_row
from tests.optional import require
from tests.steps import make_batch, make_step

ROOT = Path(__file__).parents[2]
PAGES = [
    "CONTRIBUTING.md",
    "docs/architecture.md",
    "docs/choosing.md",
    "docs/extending.md",
    "docs/metrics.md",
]
"""Pages that name code."""
ALL_PAGES = sorted(
    str(path.relative_to(ROOT))
    for pattern in ("*.md", "docs/*.md", "docs/reproductions/*.md")
    for path in ROOT.glob(pattern)
)
FOLDERS = ("fastmoco", "pipelines", "configs", "benchmarks", "docs", "tests")
PATH = re.compile(rf"`((?:{'|'.join(FOLDERS)})/[^`\s:]*)(?:::(\w+))?`( \(new\))?")
CODE_BLOCK = re.compile(r"^ *```.*?^ *```$", re.MULTILINE | re.DOTALL)


def text_of(page: str) -> str:
    return (ROOT / page).read_text(encoding="utf-8")


def prose_of(page: str) -> str:
    return CODE_BLOCK.sub("", text_of(page))


def tables_of(page: str) -> list[list[list[str]]]:
    """Cells of each table, its header first; without the line under the header."""
    tables, before = [], False
    for line in prose_of(page).splitlines():
        if is_row := line.startswith("|"):
            if not before:
                tables.append([])
            cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
            if not set("".join(cells)) <= set("-: "):
                tables[-1].append(cells)
        before = is_row
    return tables


@cache
def names_in(file: str) -> frozenset[str]:
    """Classes, functions and constants at the top of a file, and members as ``Class.member``."""
    found = set()
    for node in ast.parse(text_of(file)).body:
        names = defined(node)
        found |= names
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{name}" for member in node.body for name in defined(member)}
    return frozenset(found)


def defined(node: ast.stmt) -> set[str]:
    if isinstance(node, ast.ClassDef | ast.FunctionDef):
        return {node.name}
    targets = [node.target] if isinstance(node, ast.AnnAssign) else getattr(node, "targets", [])
    return {target.id for target in targets if isinstance(target, ast.Name)}


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist_but_for_those_that_a_reader_creates(page):
    found = PATH.findall(prose_of(page))
    for path, name, new in found:
        if re.search(r"/[A-Z]{2,}", path):  # a placeholder, such as configs/GROUP
            continue
        assert (ROOT / path).exists() != bool(new), f"{page}: {path}{new}"
        if name:
            assert name in names_in(path), f"{page}: {path}::{name}"
    assert found


def anchors_of(page: Path) -> set[str]:
    """Anchors of a page's headings, as they are made on the web."""
    headings = re.findall(r"^#+ (.+)$", CODE_BLOCK.sub("", page.read_text()), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.strip().replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", ALL_PAGES)
def test_links_between_pages_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\(([^)#\s]*)(?:#([^)\s]+))?\)", prose_of(page)):
        if "://" in target or not (target or anchor):
            continue
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors_of(path), f"{page}: {target}#{anchor}"


def test_the_navigation_of_the_site_holds_every_page_once():
    trees = re.findall(r"^```{toctree}\n(.*?)```$", text_of("docs/index.md"), re.M | re.S)
    listed = [f"docs/{line}.md" for tree in trees for line in tree.split("\n\n")[1].split()]
    pages = {page for page in ALL_PAGES if page.startswith("docs/")} - {"docs/index.md"}
    assert sorted(listed) == sorted(pages)


@pytest.mark.full
def test_the_site_is_built_without_a_warning(tmp_path):
    """Half a minute: autodoc imports torch. `make docs` does the same."""
    require("sphinx")
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q"]
    command += ["-d", tmp_path / "doctrees", ROOT / "docs", tmp_path / "site"]
    subprocess.run(command, check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    api = (tmp_path / "site/api.html").read_text()
    public = set(fastmoco.__all__) - {"__version__"}
    assert public == set(re.findall(r'id="fastmoco\.(\w+)"', api))


@pytest.mark.parametrize("page", ["docs/architecture.md"])
def test_names_in_tables_are_defined_in_the_file_beside_them(page):
    checked = 0
    for header, *rows in tables_of(page):
        if "names" in header:
            for row in rows:
                (file,) = re.findall(r"`([^`]+)`", row[header.index("file")])
                names = re.findall(r"`([^`]+)`", row[header.index("names")])
                assert set(names) <= names_in(file), f"{page}: {row[0]}: {names}, {file}"
                checked += len(names)
    assert checked > 60


def test_modules_that_are_named_exist():
    for page in PAGES:
        for name in re.findall(r"`fastmoco\.((?:\w+\.)*\w+)`", prose_of(page)):
            path = ROOT / "fastmoco" / name.replace(".", "/")
            assert path.is_dir() or path.with_suffix(".py").exists(), f"{page}: fastmoco.{name}"


def test_the_figure_has_the_layers_of_the_contract():
    contracts = tomllib.loads(text_of("pyproject.toml"))["tool"]["importlinter"]["contracts"]
    (layers,) = (contract["layers"] for contract in contracts if contract["type"] == "layers")
    (figure,) = re.findall(r"```text\n(.*?)```", text_of("docs/architecture.md"), re.DOTALL)
    lines = [re.split(r" {2,}", line) for line in figure.splitlines()]
    assert [line[0] for line in lines] == layers
    assert all(len(line) == 2 for line in lines)  # a few words beside each


def test_streams_are_those_of_the_table():
    (table,) = (rows for rows in tables_of("docs/architecture.md") if rows[0][0] == "`Stream`")
    written = {}
    for name, value, _ in table[1:]:
        base, exponent, more = re.fullmatch(r"(\d+)\^(\d+)(?: \+ (\d+))?", value).groups()
        written[name.strip("`")] = int(base) ** int(exponent) + int(more or 0)
    assert written == {stream.name: stream.value for stream in Stream}


def row_of(mechanism: Mechanism) -> dict[str, object]:
    """A row of metrics.jsonl after one step, by the code that training writes it with."""
    options = {"hidden_dim": 8} if mechanism in OWN_HEADS else {}
    step = make_step(moco={"mechanism": mechanism, **options})
    metrics = MetricsSum(torch.device("cpu"))
    metrics.add(step(make_batch(0), 0.1))
    trainer = SimpleNamespace(
        device=torch.device("cpu"),
        steps_done=1,
        learning_rate_of=lambda _: 0.1,
        steps_per_epoch=10,
        metrics=metrics,
        skipped_steps=0,
        chance_loss=step.model.chance_loss(8),
        cfg=SimpleNamespace(global_batch_size=8),
    )
    return make_row(trainer, StepClock(DataWait(trainer.device)), {})


@pytest.mark.parametrize("mechanism", Mechanism)
def test_metrics_columns_are_those_that_are_written(mechanism):
    (columns,) = (rows for rows in tables_of("docs/metrics.md") if rows[0][0] == "column")
    row = row_of(mechanism)
    assert [cells[0].strip("`") for cells in columns[1:]] == list(row)
    nullable = {cells[0].strip("`") for cells in columns[1:] if "null" in cells[3]}
    assert {name for name, value in row.items() if value is None} == nullable


def test_each_mechanism_has_its_row():
    (table,) = (rows for rows in tables_of("docs/metrics.md") if rows[0][0] == "`moco.mechanism`")
    assert [row[0].strip("`") for row in table[1:]] == list(Mechanism)


def test_a_run_folder_is_described_as_it_is():
    run = RunFolder(Path("run"))
    paths = [run.checkpoints, run.config, run.metrics, run.log, run.views, run.curves]
    paths += [run.quarantine, run.baselines, run.verdict, Path("bad-step-N.json")]
    paths += [run.report, Path("stacks-rank-N.txt")]
    written = {
        name.rstrip("/") for name in re.findall(r"^- `([^`]+)`", prose_of("docs/metrics.md"), re.M)
    }
    ours = {path.name for path in [*paths, run.tensorboard, run.wandb]} | {LOCK_NAME}
    assert written == ours | {"evaluation", "features"}


def test_no_page_installs_fastmoco_from_an_index():
    """It is on none under this name: another project's package would be installed."""
    files = [*map(ROOT.joinpath, ALL_PAGES), *ROOT.glob("fastmoco/**/*.py"), ROOT / "Makefile"]
    wrong = re.compile(r"pip install (-U |--upgrade )?['\"]?fastmoco\b")
    assert [str(path) for path in files if wrong.search(path.read_text())] == []


def test_the_citation_has_this_version():
    assert f"\nversion: {fastmoco.__version__}\n" in text_of("CITATION.cff")
