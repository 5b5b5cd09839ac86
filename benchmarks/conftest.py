"""Options of the benchmarks, and what each of them is given."""

import ctypes
import gc
import os
import signal
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console

from benchmarks.memory import own_peak_bytes, reset_own_peak
from benchmarks.pictures import Source, make_photographs, make_thumbnails
from benchmarks.report import Report, show
from benchmarks.settings import Settings

TABLE_WIDTH = 190  # where no terminal says how wide it is
REPORTS = pytest.StashKey[list[Report]]()
PROBLEM = pytest.StashKey[str]()


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
    group.addoption(
        "--benchmark-images",
        type=Path,
        default=os.environ.get("FASTMOCO_BENCHMARK_IMAGES"),
        help="folder of your own JPEGs, searched to its depth (FASTMOCO_BENCHMARK_IMAGES), in "
        "place of the photographs that are made",
    )


def pytest_sessionstart(session: pytest.Session) -> None:
    """SIGTERM ends benchmarks as Ctrl-C does: frozen children would else stay for ever."""
    if session.config.getoption("--benchmark"):
        signal.signal(signal.SIGTERM, signal.default_int_handler)


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


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Notes how a benchmark ended; of one that is interrupted pytest makes no report."""
    if call.when == "call":
        item.stash[PROBLEM] = call.excinfo.exconly().splitlines()[0] if call.excinfo else ""
    return (yield)


@pytest.fixture(scope="session")
def settings(request: pytest.FixtureRequest) -> Settings:
    """The options."""
    option = request.config.getoption
    return Settings(
        scale=option("--benchmark-scale"),
        cifar=_folder(request.config, "--benchmark-cifar"),
        images=_folder(request.config, "--benchmark-images"),
        results=option("--benchmark-results"),
        plots=option("--benchmark-plots"),
    )


def _folder(config: pytest.Config, option: str) -> Path | None:
    """A folder that an option names."""
    given = config.getoption(option)
    if given and not Path(given).is_dir():
        raise pytest.UsageError(f"{option}={given} is no folder")
    return Path(given) if given else None


@pytest.fixture(scope="session")
def scratch() -> Iterator[Path]:
    """A folder in $TMPDIR that is gone afterwards: pytest's own would keep gigabytes."""
    with tempfile.TemporaryDirectory(prefix="fastmoco_benchmarks_") as name:
        yield Path(name)


@pytest.fixture(scope="session")
def photographs(settings: Settings, scratch: Path) -> Source:
    """Photographs of ImageNet's size, or one's own images."""
    count = settings.pick(600, 6_000)
    return _on_disk(make_photographs(scratch / "photographs", count, settings.images))


@pytest.fixture(scope="session")
def thumbnails(settings: Settings, scratch: Path) -> Source:
    """CIFAR-10's JPEGs, or a stand-in."""
    count = settings.pick(6_000, 50_000)
    return _on_disk(make_thumbnails(scratch / "thumbnails", count, settings.cifar))


def _on_disk(source: Source) -> Source:
    os.sync()  # or the kernel would write them while others are measured
    return source


@pytest.fixture
def report(request: pytest.FixtureRequest, settings: Settings) -> Iterator[Report]:
    """Takes the rows, which are written when the benchmark ends.

    Where it failed, they say why; where it was interrupted, the file of an earlier run stays.
    """
    found = Report(request.node.name.removeprefix("bench_"), settings.scale)
    reset_own_peak()
    start = time.perf_counter()
    yield found
    found.seconds, found.peak_bytes = time.perf_counter() - start, own_peak_bytes()
    _free_memory()
    if not found.rows or PROBLEM not in request.node.stash:
        return
    found.problem = request.node.stash[PROBLEM]
    found.write(settings.results)
    if settings.plots:
        found.plot(settings.results)
    request.config.stash.setdefault(REPORTS, []).append(found)


def _free_memory() -> None:
    """Gives the next benchmark what this one held: compiled steps live as long as their caches."""
    torch.compiler.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    ctypes.CDLL(None).malloc_trim(0)  # man 3 malloc_trim


def pytest_terminal_summary(config: pytest.Config) -> None:
    """Shows all figures in one table."""
    reports = config.stash.get(REPORTS, [])
    if reports:
        width = None if sys.stdout.isatty() else TABLE_WIDTH
        show(reports, Console(width=width))
