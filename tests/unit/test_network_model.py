"""What a step sends, by formula, is what the parts of a step send; the page shows that table."""

from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import namespaces, network, network_model, network_subject
from benchmarks.network_model import CROP_BYTES, RESNET50, exchanged_bytes, step_bytes
from fastmoco.configuration import load_config
from fastmoco.draws.host import draw_keys
from fastmoco.moco.build import build_model
from fastmoco.moco.key_exchange import key_exchange
from fastmoco.ranks import Ranks
from fastmoco.train.settings import TrainConfig

ROOT = Path(__file__).parents[2]


def test_the_weights_are_those_of_the_preset():
    cfg = load_config(TrainConfig, ["experiment=moco_v2"])
    cfg.moco.queue_size = 8
    with torch.device("meta"):
        model = build_model(cfg.model, cfg.moco)
    assert sum(weight.numel() for weight in model.learnable()) == RESNET50


def test_as_many_crops_are_sent_as_the_formula_says():
    """On average over ranks and steps: where a crop goes is drawn."""
    count, cards, sent = 8, 8, []
    for step in range(20):
        keys = draw_keys(0, step, np.arange(count * cards, dtype=np.int64))
        for rank in range(cards):
            counts = key_exchange(keys, Ranks(rank, cards), torch.device("cpu")).counts
            sent.append(int(counts[0].sum() - counts[0, rank]))
    assert np.mean(sent) == pytest.approx(exchanged_bytes(cards, count, 1), rel=0.02)
    sent_once, to_all = (
        step_bytes(64, 256)[f"key crops {way}"] for way in ("sent once", "to all cards")
    )
    assert to_all == 63 * 256 * CROP_BYTES
    assert to_all / sent_once == 64


def test_bytes_are_counted_when_all_ranks_have_them(tmp_path, monkeypatch):
    """A way ends on the sender while megabytes are still in the kernel's buffer of its socket."""
    counter = tmp_path / "tx_bytes"
    counter.write_text("1000")
    monkeypatch.setattr(network_subject, "SENT", counter)
    monkeypatch.setattr(network_subject.dist, "barrier", lambda: None)
    monkeypatch.setattr(network_subject.dist, "all_reduce", lambda *_: counter.write_text("3000"))
    seconds, sent = network_subject.measure(lambda: counter.write_text("1500"))
    assert sent == 2000
    assert seconds < 10


def test_the_page_shows_the_table():
    page = (ROOT / "docs" / "devices.md").read_text(encoding="utf-8")
    assert "\n".join(network_model.table()) in page


def test_where_no_network_can_be_made_the_reason_is_said(monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["network"])
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)
    network.main()
    assert capsys.readouterr().out == "skipped: ip is not installed (package iproute2)\n"
    with pytest.raises(namespaces.NoNamespaces), namespaces.machines(2, 100):
        pytest.fail("there is a network")
