"""Measure speed and memory of a run in a separate process.

``python -m fastmoco.reproduce.cost`` reads a configuration as JSON and prints a JSON object.
"""

import json
import subprocess
import sys
from typing import Any

from fastmoco.configuration import config_from_dict, config_to_dict
from fastmoco.device import resolve_device
from fastmoco.reproduce.children import start_child
from fastmoco.train.dry_run import measure_cost
from fastmoco.train.settings import TrainConfig


def cost_of(cfg: TrainConfig) -> dict[str, Any]:
    """The fields of `fastmoco.train.dry_run.DryRun`, measured in a child process.

    Raises:
        ValueError: If the child fails; contains the last line that it printed.
    """
    command = [sys.executable, "-m", "fastmoco.reproduce.cost"]
    pipe = subprocess.PIPE
    child = start_child(command, text=True, stdin=pipe, stdout=pipe, stderr=pipe)
    try:
        answer, errors = child.communicate(json.dumps(config_to_dict(cfg)))
    finally:
        child.kill()
    sys.stderr.write(errors)
    if child.returncode:
        lines = errors.strip().splitlines() or [f"exit code {child.returncode}"]
        raise ValueError(f"the dry run failed: {lines[-1]}")
    found: dict[str, Any] = json.loads(answer.splitlines()[-1])
    return found


def main() -> None:
    """Run in the child process: read a configuration, print the cost."""
    cfg = config_from_dict(TrainConfig, json.load(sys.stdin))
    print(json.dumps(measure_cost(cfg, resolve_device(cfg.device)).to_json()))  # noqa: T201


if __name__ == "__main__":
    main()
