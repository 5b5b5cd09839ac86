"""Options of the benchmarks, and what each of them is given."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks.report import Report, show
from benchmarks.settings import Settings

TABLE_WIDTH = 190  # where no terminal says how wide it is
REPORTS = pytest.StashKey[list[Report]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Adds the options."""
    group = parser.getgroup("benchmark", "benchmarks of fastmoco beside its peers")
    group.addoption("--benchmark", action="store_true", help="run them; else they skip")
    group.addoption(
        "--benchmark-scale",
        choices=["small", "full"],
        default="small",
        help="small ends in 15 minutes on two cores; full has more images and rounds",
    )
    group.addoption(
        "--benchmark-plots", action="store_true", help="write NAME.svg beside each NAME.json"
    )
    group.addoption(
        "--benchmark-results",
        type=Path,
        default=Path(__file__).parent / "results",
        help="folder of the results (benchmarks/results)",
    )
    group.addoption(
        "--benchmark-cifar",
        type=Path,
        default=os.environ.get("FASTMOCO_BENCHMARK_CIFAR"),
        help="folder of CIFAR-10's training JPEGs in class folders (FASTMOCO_BENCHMARK_CIFAR); "
        "without it a stand-in is made",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skips what was not asked for; what was has no limit but those of its own processes."""
    on_gpu = torch.cuda.is_available()
    for item in items:
        if Path(__file__).parent not in item.path.parents:
            continue
        if not config.getoption("--benchmark"):
            item.add_marker(pytest.mark.skip(reason="a benchmark; --benchmark runs it"))
        if item.get_closest_marker("gpu") and not on_gpu:
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device; torch sees none"))
        item.add_marker(pytest.mark.timeout(0))


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest) -> Settings:
    """The options."""
    option = request.config.getoption
    cifar = option("--benchmark-cifar")
    return Settings(
        scale=option("--benchmark-scale"),
        cifar=Path(cifar) if cifar else None,
        results=option("--benchmark-results"),
        plots=option("--benchmark-plots"),
    )


@pytest.fixture
def report(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Report]:
    """Takes the rows; they are written when the benchmark ends, if it got that far."""
    found = Report(request.node.name.removeprefix("bench_"), settings.scale)
    yield found
    if not found.rows:
        return
    found.write(settings.results)
    if settings.plots:
        found.plot(settings.results)
    request.config.stash.setdefault(REPORTS, []).append(found)


def pytest_terminal_summary(config: pytest.Config) -> None:
    """Shows all figures in one table."""
    reports = config.stash.get(REPORTS, [])
    if reports:
        width = None if sys.stdout.isatty() else TABLE_WIDTH
        show(reports, Console(width=width))
