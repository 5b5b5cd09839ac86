"""Made-up sweeps: a definition, and run folders as a sweep leaves them, without any training."""

import json
from pathlib import Path

from fastmoco.reproduce.record import RunRecord, Status

DEFINITION = """
about: Two axes
source: nowhere
settings: [train.epochs=2]
axes:
  momentum:
    "0": [moco.momentum=0.0]
    "0.90": [moco.momentum=0.9]
  head:
    linear: [moco.head=linear]
    mlp: [moco.head=mlp]
skip: [{momentum: "0", head: mlp}]
measure: [knn, linear]
plot:
  - {x: momentum, lines: head, y: linear_top1}
  - {x: parameters, x_scale: log, y: knn_top1, title: by size}
  - {y: knn_top1, kind: bar, lines: head, x: momentum}
  - {y: accuracy_top1, kind: curve}
  - {y: linear.top1, kind: curve}
published:
  about: ImageNet
  values: {"0,linear": fails, "0.90,mlp": "60.10"}
  orderings: ["0.90,mlp > 0.90,linear > 0,linear"]
"""
FACTS = {
    "device": "cpu",
    "torch": "2",
    "precision": "float32",
    "epochs": 2,
    "global_batch_size": 8,
    "encoder": "resnet18",
    "width": 4,
    "stem": "small",
    "view_size": 16,
    "train_data": "train.beton",
    "train_images": 100,
    "test_data": "test.beton",
    "test_images": 1000,
}


def write_definition(folder: Path, text: str = DEFINITION, name: str = "mine.yaml") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)
    return folder / name


def write_state(folder: Path, seeds: list[int]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    state = {"name": "mine.yaml", "scale": "full", "seeds": seeds, "settings": ["train.epochs=2"]}
    (folder / "sweep.json").write_text(json.dumps(state))


def write_run(
    folder: Path,
    name: str,
    seed: int,
    top1: float,
    status: Status = Status.finished,
    reason: str = "",
    deviation: float = 0.9,
) -> Path:
    """A run folder with two rows of metrics; kNN is 10 points below the linear top-1."""
    run = folder / f"{name},seed={seed}"
    run.mkdir(parents=True)
    rows = [
        {
            "step": step,
            "epoch": step / 10,
            "loss": 5.0 - step / 10,
            "loss_floor_ln_k1": 5.55,
            "accuracy_top1": 10.0 * step / 10,
            "feature_deviation": deviation,
            "step_seconds": 0.5,
            "images_per_second": 100.0,
        }
        for step in (10, 20)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    measures = {}
    curves = run / "evaluation/linear-fast/curves.jsonl"
    curves.parent.mkdir(parents=True)
    curve = [{"epoch": 1, "loss_train": 2.0}, {"epoch": 2, "loss_train": 1.0, "top1": top1}]
    curves.write_text("".join(json.dumps(row) + "\n" for row in curve))
    if status is Status.finished:
        linear = {"protocol": "fast", "views": "cached", "epochs": 30, "optimizer": "sgd"}
        measures = {
            "knn": {
                "top1": top1 - 10,
                "top5": 90.0,
                "k": 20,
                "temperature": 0.1,
                "features": "backbone",
            },
            "linear": {"top1": top1, "top5": 95.0, "num_train": 100, **linear},
        }
    facts = {**FACTS, "parameters": 1e6 if name.endswith("linear") else 2e6}
    points = dict(zip(("momentum", "head"), name.split(","), strict=True))
    RunRecord(
        points=points, seed=seed, status=status, reason=reason, facts=facts, measures=measures
    ).write(run)
    return run
