"""What requested labels are worth beside random ones, on a folder of class folders.

    python docs/reproductions/competition96/request.py IMAGES/ TEST.beton OUT/

Pretrains once, without labels; then, for each seed, hides all labels but some, requests more in
each way, grants them (a class is its folder's name), and trains a linear classifier on old and new
labels. Every step is a command of fastmoco, written to OUT/commands.txt; the table to OUT/table.md.
What is done is not done again.
"""

import argparse
import contextlib
import csv
import io
import json
import os
import random
import shlex
import statistics
import sys
import time
from collections import Counter
from pathlib import Path

from fastmoco import cli

RUN = "experiment=cifar10_cpu model.width=16 monitor.every_epochs=0 train.compile=never"
FEATURES = "device=cpu"
WAYS = {
    "random": "mode=random max_similarity=1",
    "per sample runs (as published)": "mode=per_sample_runs max_similarity=1",
    "trained model": "",
    "trained model, balance=clusters": "balance=clusters",
    "trained model, diversity": "diversity=true pool=8",
    "trained model, both": "diversity=true pool=8 balance=clusters",
    "k-center of all": "mode=random diversity=true pool=1000",
}


def main() -> None:
    """Run all of it."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("images", type=Path)
    options.add_argument("test", type=Path)
    options.add_argument("out", type=Path)
    options.add_argument("--pool", type=int, default=8000, help="unlabeled images")
    options.add_argument("--base", type=int, default=500, help="labels at first")
    options.add_argument("--count", type=int, default=500, help="labels requested")
    options.add_argument("--epochs", type=int, default=10, help="of pretraining")
    options.add_argument("--samples", type=int, default=4, help="runs of the published way")
    options.add_argument("--sample-size", type=int, default=2000, help="images of each")
    options.add_argument("--sample-epochs", type=int, default=4, help="of each")
    options.add_argument("--seeds", type=int, default=3)
    Study(options.parse_args()).run()


class Study:
    """One table."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.out = given, given.out
        self.out.mkdir(parents=True, exist_ok=True)
        names = sorted(given.images.rglob("*.jpg"))
        random.Random(0).shuffle(names)
        self.paths = names[: given.pool + given.base]
        self.start = time.monotonic()

    def run(self) -> None:
        """Pretrain, then everything else for each seed."""
        results: dict[str, list[tuple[float, Counter[str]]]] = {}
        for seed in range(self.given.seeds):
            everything, base = self.label_some(seed)
            if not seed:
                train = f"{RUN} train.epochs={self.given.epochs} run_dir={self.out}/run"
                self.command("train", *train.split(), f"data.train={everything}")
            found = self.linear(base, "base", seed)
            results.setdefault(f"{self.given.base} labels alone", []).append((found, Counter()))
            for number, (way, how) in enumerate(WAYS.items()):
                found, classes = self.requested(seed, everything, number, how)
                results.setdefault(way, []).append((found, classes))
        self.write(results)

    def label_some(self, seed: int) -> tuple[Path, Path]:
        """All images with some labels left, as one file, and the labeled ones alone."""
        labeled = set(random.Random(seed).sample(range(len(self.paths)), self.given.base))
        everything, base = (self.out / f"{name}-{seed}.beton" for name in ("pool", "base"))
        for path, only in ((everything, False), (base, True)):
            rows = [("path", "label")]
            for place, image in enumerate(self.paths):
                if place in labeled or not only:
                    name = os.path.relpath(image, self.out)
                    rows.append((name, image.parent.name if place in labeled else ""))
            with path.with_suffix(".csv").open("w", newline="") as file:
                csv.writer(file).writerows(rows)
            if not path.exists():
                self.command("convert", str(path.with_suffix(".csv")), str(path))
        return everything, base

    def requested(
        self, seed: int, everything: Path, number: int, how: str
    ) -> tuple[float, Counter[str]]:
        """Accuracy with granted labels, and how many each class got."""
        folder = self.out / f"request-{seed}-{number}"
        given = self.given
        if "per_sample_runs" in how:
            how += f" samples={given.samples} sample_size={given.sample_size}"
            how += f" epochs={given.sample_epochs}"
        options = f"count={given.count} seed={seed} images=false {FEATURES} {how}".split()
        run, data = f"{self.out}/run", f"data.train={everything}"
        self.command("request", run, data, f"out={folder}", *options)
        with (folder / "request.csv").open() as file:
            rows = [
                (row["sample_id"], Path(row["path"]).parent.name) for row in csv.DictReader(file)
            ]
        with (folder / "granted.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("sample_id", "label"), *rows])
        merged = folder / "labeled.beton"
        labels = [f"labels={folder}/granted.csv", data, f"out={merged}", "only_labeled=true"]
        self.command("merge-labels", str(folder), *labels)
        return self.linear(merged, folder.name, seed), Counter(name for _, name in rows)

    def linear(self, data: Path, name: str, seed: int) -> float:
        """Top-1 of a linear classifier on frozen features, percent."""
        options = f"protocol=fast seed={seed} name={name}-{seed} {FEATURES}".split()
        sets = [f"data.train={data}", f"data.test={self.given.test}"]
        top1: float = self.command("linear", f"{self.out}/run", *sets, *options, "--json")["top1"]
        return top1

    def command(self, *arguments: str) -> dict[str, float]:
        """Run a command of fastmoco; gives what it printed, as JSON."""
        line = shlex.join(["fastmoco", *arguments])
        with (self.out / "commands.txt").open("a") as file:
            file.write(f"{line}\n")
        sys.stderr.write(f"[{time.monotonic() - self.start:.0f} s] {line}\n")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            if code := cli.main(list(arguments)):
                sys.exit(code)
        text = printed.getvalue()
        found: dict[str, float] = json.loads(text) if text.startswith("{") else {}
        return found

    def write(self, results: dict[str, list[tuple[float, Counter[str]]]]) -> None:
        """The table: means over seeds, their deviations, and how even the classes were."""
        lines = ["| labels | linear top-1 % | fewest and most of a class | gain on random |"]
        lines += ["|---|---:|---:|---:|"]
        random_ones = [one for one, _ in results["random"]]
        for way, found in results.items():
            accuracies = [one for one, _ in found]
            gains = [a - b for a, b in zip(accuracies, random_ones, strict=True)]
            classes = [sorted(counts.values()) for _, counts in found if counts]
            spread = ""
            if classes:
                least = statistics.mean(one[0] for one in classes)
                spread = f"{least:.0f}, {statistics.mean(one[-1] for one in classes):.0f}"
            cells = [
                way,
                mean_text(accuracies),
                spread,
                "" if way == "random" else mean_text(gains),
            ]
            lines.append(f"| {' | '.join(cells)} |")
        (self.out / "table.md").write_text("\n".join(lines) + "\n")
        record = {way: [one for one, _ in found] for way, found in results.items()}
        (self.out / "results.json").write_text(json.dumps(record, indent=1) + "\n")


def mean_text(values: list[float]) -> str:
    """Mean and standard deviation."""
    deviation = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.2f}{deviation}"


if __name__ == "__main__":
    main()
