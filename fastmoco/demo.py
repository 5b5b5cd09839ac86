"""`fastmoco demo`: convert, pretrain and evaluate the built-in images, in minutes on a CPU."""

import json
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fastmoco.data.builtin_file import builtin_file
from fastmoco.data.settings import DataConfig
from fastmoco.errors import UsageError, one_line
from fastmoco.evaluate.knn import KnnResult, knn
from fastmoco.evaluate.settings import KnnConfig
from fastmoco.files import atomic_write_text
from fastmoco.output import display_stream
from fastmoco.ranks import environment_ranks
from fastmoco.report.report import write_at_end
from fastmoco.train.pretrain import pretrain
from fastmoco.train.settings import TrainConfig, run_path


def demo(cfg: TrainConfig) -> None:
    """Convert the built-in images, pretrain, evaluate with both baselines.

    Writes the run folder (default ``runs/demo``) with the figures in ``result.json``, dataset files
    in ``runs/demo-data`` beside it, and prints a table.

    Args:
        cfg: Options of ``fastmoco train`` with ``experiment=demo``; its data is replaced.

    Raises:
        UsageError: If an option is wrong.
    """
    if environment_ranks().several:
        raise UsageError("fastmoco demo runs on one device; start it without torchrun")
    start = time.perf_counter()
    run_dir = run_path(cfg)
    cfg.data = DataConfig(train=_dataset(run_dir, "train"), test=_dataset(run_dir, "test"))
    pretrain(cfg)
    result = knn(run_dir, KnnConfig(data=cfg.data, k=20, baselines=True, device=cfg.device))
    figures = {
        "knn_top1": result.top1,
        "knn_top1_untrained": result.baselines["untrained"]["top1"],
        "knn_top1_pixels": result.baselines["pixels"]["top1"],
        "seconds": time.perf_counter() - start,
        "seed": cfg.seed,
        "epochs": cfg.train.epochs,
        "protocol": result.to_json(),
    }
    atomic_write_text(run_dir / "result.json", json.dumps(figures, indent=1) + "\n")
    write_at_end(run_dir, cfg.device)
    _print_table(result, figures["seconds"], run_dir)


def _dataset(run_dir: Path, split: str) -> Path:
    """Make the dataset file of a split, beside the run folder."""
    return builtin_file(run_dir.with_name(f"{run_dir.name}-data") / f"{split}.beton", split)


def _print_table(result: KnnResult, seconds: float, run_dir: Path) -> None:
    table = Table(
        title=f"kNN top-1 on {result.num_test} test images, k={result.k}, T={result.temperature:g}"
    )
    table.add_column("features")
    table.add_column("top-1 %", justify="right")
    table.add_row("trained encoder", f"{result.top1:.1f}", style="bold")
    table.add_row("the same encoder, untrained", f"{result.baselines['untrained']['top1']:.1f}")
    table.add_row("raw pixels", f"{result.baselines['pixels']['top1']:.1f}")
    console = Console(file=display_stream(sys.stdout))
    console.print(table)
    console.print(
        f"{seconds:.0f} s; report.html (for a browser), metrics.jsonl and result.json are in "
        + one_line(str(run_dir))
    )
