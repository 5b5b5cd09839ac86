import json
import math

import pytest
import torch
from torch.nn import functional as F

from fastmoco.moco.mechanism import StepOutput
from fastmoco.runs.metrics_file import MetricsFile, read_metrics
from fastmoco.train.metrics import STEP_METRICS, MetricsSum, step_metrics


def metrics(query, key, rank, **more):
    contrast = StepOutput(
        torch.tensor(1.5), query, key, torch.tensor(rank), torch.tensor(0.3), **more
    )
    return dict(zip(STEP_METRICS, step_metrics(contrast).tolist(), strict=True))


def test_step_metrics_are_what_their_names_say():
    torch.manual_seed(0)
    query, key = (F.normalize(torch.randn(4, 6), dim=1) for _ in range(2))
    found = metrics(query, key, [0, 3, 5, 0])
    assert found["loss"] == 1.5
    assert metrics(query, key, [0] * 4, terms=2, factor=1.5)["loss"] == 0.5
    assert (found["accuracy_top1"], found["accuracy_top5"]) == (50, 75)
    assert found["positive_similarity"] == pytest.approx((query * key).sum(1).mean().item())
    assert found["negative_similarity"] == pytest.approx(0.3)
    assert found["alignment"] == pytest.approx((query - key).pow(2).sum(1).mean().item(), rel=1e-5)
    pairs = [
        math.exp(-2 * (query[i] - query[j]).pow(2).sum())
        for i in range(4)
        for j in range(4)
        if i != j
    ]
    assert found["uniformity"] == pytest.approx(math.log(sum(pairs) / len(pairs)), rel=1e-4)


def test_feature_deviation_tells_spread_from_collapse():
    torch.manual_seed(0)
    spread = F.normalize(torch.randn(512, 64), dim=1)
    collapsed = F.normalize(torch.ones(512, 64) + 1e-3 * torch.randn(512, 64), dim=1)
    rank = [0] * 512
    assert metrics(spread, spread, rank)["feature_deviation"] == pytest.approx(1, abs=0.03)
    assert metrics(collapsed, collapsed, rank)["feature_deviation"] < 0.01


def test_sum_gives_means_and_starts_anew():
    total = MetricsSum(torch.device("cpu"))
    total.add(torch.arange(8.0))
    total.add(torch.arange(8.0) + 2)
    assert total.flush()["accuracy_top1"] == 2.0
    assert total.count == 0
    assert math.isnan(total.flush()["accuracy_top1"])
    for loss in (1.0, torch.nan, torch.inf):
        total.add(torch.tensor([loss, 3.0, *[0.0] * 6]))
    assert total.count == 1
    assert total.flush()["accuracy_top1"] == 3.0


def test_resuming_cuts_later_rows_and_a_torn_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps({"step": s}) + "\n" for s in (1, 2, 3)) + '{"step": 4, "lo')
    assert [row["step"] for row in read_metrics(path)] == [1, 2, 3]
    file = MetricsFile(path, resume_step=2)
    file.write({"step": 3, "again": True})
    file.close()
    assert read_metrics(path) == [{"step": 1}, {"step": 2}, {"step": 3, "again": True}]


def written(path, *rows, resume_step=0):
    file = MetricsFile(path, resume_step=resume_step)
    for row in rows:
        file.write(row)
    file.close()
    return file


DAMAGED = [b'{"step": 2, "lo', b"[1]", b"\xff", b"\0" * 300, b"[" * 10_000, b'{"step": 1e999999']


@pytest.mark.parametrize("line", DAMAGED)
def test_a_damaged_line_is_named_and_on_resume_kept_aside(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n' + line + b'\n{"step": 3}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl: line 2 is damaged .*; resume the run"):
        read_metrics(path)
    assert len(written(path, {"step": 4}, resume_step=3).damaged) == 1
    assert [row["step"] for row in read_metrics(path)] == [1, 3, 4]
    assert (tmp_path / "metrics.jsonl.damaged").read_bytes() == line + b"\n"


def test_rows_without_a_step_are_kept_aside_too(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"loss": 1}\n{"step": "2"}\n')
    assert len(written(path, resume_step=9).damaged) == 2
    assert read_metrics(path) == [{"step": 1}]


def test_every_changed_byte_of_a_row_is_noticed(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "loss": 2.5}\n')  # of an older version: no checksum
    rows = [{"step": step, "loss": 0.1 * step, "time": None} for step in (2, 3)]
    written(path, *rows, resume_step=1)
    assert read_metrics(path) == [{"step": 1, "loss": 2.5}, *rows]
    good = path.read_bytes()
    for place in range(good.rindex(b'{"step": 3'), len(good) - 1):
        path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
        with pytest.raises(ValueError, match="damaged"):
            read_metrics(path)
