"""The grid of demos: which are run, how, and what is said of them."""

import json
from pathlib import Path
from types import SimpleNamespace

from benchmarks import demo_grid
from benchmarks.demo_grid import Unit


def write_result(run: Path, accuracy: float) -> None:
    run.mkdir(parents=True)
    result = {"knn_top1": accuracy, "knn_top1_untrained": 12.0, "knn_top1_pixels": 25.0}
    (run / "result.json").write_text(json.dumps(result))


def test_every_demo_is_run_once_with_its_seed_threads_and_instructions(tmp_path, monkeypatch):
    started = []

    def run(command, *, check, env):
        assert check
        options = dict(part.split("=") for part in command if "=" in part)
        started.append((options["seed"], env["OMP_NUM_THREADS"], env["ATEN_CPU_CAPABILITY"]))
        write_result(Path(options["run_dir"]), 80.0)

    monkeypatch.setattr(demo_grid, "subprocess", SimpleNamespace(run=run))
    for _ in range(2):  # the second finds all of them done
        demo_grid.measure(tmp_path / "runs", tmp_path)
    assert len(set(started)) == len(started) == 25
    assert ("4", "1", "default") in started
    assert [each for each in started if int(each[0]) > 4] == [
        (str(seed), "2", "avx2") for seed in range(5, 10)
    ]
    assert len(json.loads((tmp_path / "demo_grid.json").read_text())) == 8


def test_further_seeds_stay_out_of_the_grid(tmp_path):
    for seed, accuracy in enumerate((80.0, 84.0)):
        write_result(Unit(seed, 1, "avx2").run(tmp_path), accuracy)
    write_result(Unit(5, 2, "avx2", further=True).run(tmp_path), 70.0)
    notes = {row.what: row.note for row in demo_grid.rows(demo_grid.results(tmp_path))}
    assert notes == {
        "1 thread, avx2": "mean 82.0, standard deviation 2.8: 80.0, 84.0",
        "2 threads, avx2, further seeds": "mean 70.0, standard deviation unknown: 70.0",
        "all of the grid": "mean 82.0, standard deviation 2.8: 80.0, 84.0",
        "untrained": "mean 12.0, standard deviation 0.0: 12.0, 12.0, 12.0",
        "pixels": "mean 25.0, standard deviation 0.0: 25.0, 25.0, 25.0",
    }
