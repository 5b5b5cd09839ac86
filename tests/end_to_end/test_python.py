"""What Python programs call: `views`, `pretrain`, and the examples of docs/python.md."""

import asyncio
import itertools
import re
import signal
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

import fastmoco
from fastmoco.configuration import load_config
from fastmoco.data.convert import ConvertConfig, convert
from fastmoco.errors import UsageError
from fastmoco.pipelines.policies import POLICIES
from fastmoco.train.settings import TrainConfig
from tests.runs import write_colors, write_run

TINY = {"train__max_steps": 2, "train__compile": "never", "train__report": False}
TINY |= {"model__width": 4, "global_batch_size": 8, "pipeline__view_size": 16, "device": "cpu"}
TINY |= {"monitor__every_epochs": 0}
PAGE = Path(__file__).parents[2] / "docs/python.md"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("python")
    write_colors(folder / "images", seed=0, per_class=8)
    convert(str(folder / "images"), folder / "train.beton", ConvertConfig())
    return folder


def taken(place, count=None, **options):
    given = {"batch_size": 8, "size": 16, "device": "cpu"} | options
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = itertools.islice(fastmoco.views(place / "train.beton", **given), count)
        return [tuple(tensor.clone() for tensor in batch) for batch in found]


def test_views_are_two_of_each_image_and_a_function_of_the_seed(place):
    batches = taken(place, epochs=2)
    assert [len(ids) for _, _, ids in batches] == [8] * 6
    for epoch in (batches[:3], batches[3:]):
        assert sorted(torch.cat([ids for _, _, ids in epoch]).tolist()) == list(range(24))
    query, key, _ = batches[0]
    assert query.shape == key.shape == (8, 3, 16, 16)
    assert query.is_contiguous(memory_format=torch.channels_last)
    assert not torch.equal(query, key)
    again = taken(place, 1)
    assert all(torch.equal(a, b) for a, b in zip(batches[0], again[0], strict=True))
    other = taken(place, 1, seed=1)
    assert not torch.equal(other[0][2], batches[0][2])


def test_views_are_those_of_a_run(place, tmp_path, monkeypatch):
    from fastmoco.train.step import TrainStep

    seen = []
    plain = TrainStep.make_views

    def noting(self, *arguments):
        found = plain(self, *arguments)
        seen.append((found.query.clone(), arguments[1].clone()))
        return found

    monkeypatch.setattr(TrainStep, "make_views", noting)
    options = {"train__max_steps": 1, "train__compile": "never", "monitor__every_epochs": 0}
    options |= {"global_batch_size": 8, "pipeline__view_size": 16, "policy": "moco_v2"}
    fastmoco.pretrain(place / "train.beton", tmp_path / "run", device="cpu", **options)
    (query, _, ids) = taken(place, 1, policy="moco_v2")[0]
    assert torch.equal(seen[0][1], ids)
    torch.testing.assert_close(seen[0][0], query, rtol=0, atol=0)


def test_leaving_the_loop_ends_the_threads(place):
    before = threading.active_count()
    found = fastmoco.views(place / "train.beton", batch_size=4, size=16, device="cpu", epochs=50)
    next(found)
    assert threading.active_count() > before
    found.close()
    assert threading.active_count() == before


def test_several_threads_may_iterate_at_once(place):
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: taken(place), range(3)))
    for batches in found[1:]:
        for ours, theirs in zip(found[0], batches, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_policies_by_name_or_as_they_are(place):
    named, given = (taken(place, 1, policy=one) for one in ("cifar", POLICIES["cifar"]))
    assert torch.equal(named[0][0], given[0][0])
    with pytest.raises(UsageError, match="policy=moco_v5 is unknown; did you mean moco_v"):
        taken(place, 1, policy="moco_v5")
    with pytest.raises(UsageError, match="larger than the dataset of 24 images"):
        taken(place, 1, batch_size=99)


def test_pretrain_takes_options_or_a_configuration(place, tmp_path):
    with pytest.raises(UsageError, match=r"optimizer\.learning_rate"):
        fastmoco.pretrain(place / "train.beton", tmp_path / "x", optimizer__learning_rat=1)
    cfg = load_config(TrainConfig, [f"data.train={place / 'train.beton'}"])
    with pytest.raises(UsageError, match="a configuration alone"):
        fastmoco.pretrain(cfg, tmp_path / "x")
    assert not (tmp_path / "x").exists()


def test_pretrain_runs_in_a_thread_beside_an_event_loop_and_alone(place, tmp_path, monkeypatch):
    """As in a notebook; the program uses Hydra itself; a second training meanwhile is refused."""
    from hydra import initialize
    from hydra.core.global_hydra import GlobalHydra

    from fastmoco.train.step import TrainStep

    refused = []
    plain = TrainStep.make_views

    def trying(self, *arguments):
        with pytest.raises(UsageError, match="running in another thread") as caught:
            fastmoco.pretrain(place / "train.beton", tmp_path / "other", **TINY)
        refused.append(caught)
        return plain(self, *arguments)

    monkeypatch.setattr(TrainStep, "make_views", trying)
    call = (fastmoco.pretrain, place / "train.beton", tmp_path / "run")
    with initialize(version_base="1.3", config_path=None):
        of_program = GlobalHydra.instance().hydra
        run = asyncio.run(asyncio.to_thread(*call, **TINY))
        assert GlobalHydra.instance().hydra is of_program
    assert len(refused) == 2
    assert (run / "verdict.json").exists()
    assert not (run / "report.html").exists()  # train.report=false
    assert not (tmp_path / "other").exists()


def test_an_interrupt_saves_and_the_same_call_resumes(place, tmp_path, monkeypatch):
    from fastmoco.train.step import TrainStep

    plain = TrainStep.make_views
    calls = []

    def counting(self, *arguments):
        calls.append(len(calls))
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
        return plain(self, *arguments)

    monkeypatch.setattr(TrainStep, "make_views", counting)
    before = signal.getsignal(signal.SIGINT)
    options = TINY | {"train__max_steps": 3}
    with pytest.raises(fastmoco.Interrupted, match="stopped after step 2, saved"):
        fastmoco.pretrain(place / "train.beton", tmp_path / "run", **options)
    assert signal.getsignal(signal.SIGINT) is before
    fastmoco.pretrain(place / "train.beton", tmp_path / "run", **options)
    assert len(calls) == 3


def test_loading_an_encoder_leaves_the_random_state_of_the_program(tmp_path):
    run = write_run(tmp_path / "run")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    untrained = [fastmoco.load_encoder(run, untrained=True) for _ in range(2)]
    assert torch.equal(torch.rand(2), expected)
    weights = [next(encoder.parameters()) for encoder in untrained]
    assert torch.equal(*weights)


def test_a_notebook_completes_the_names():
    assert set(fastmoco.__all__) <= set(dir(fastmoco))


def test_the_examples_of_the_page_run(place, monkeypatch, capsys):
    from fastmoco.report import report

    reports = []
    monkeypatch.setattr(report, "write_at_end", lambda *given: reports.append(given))
    monkeypatch.chdir(place)
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
    assert len(blocks) == 4
    scope = {}
    for block in blocks:
        exec(block, scope)
    assert "torch.Size([8, 3, 32, 32])" in capsys.readouterr().out
    assert scope["run"] == Path("runs/first")
    assert reports == [(Path("runs/first"), "auto")]
    assert len(scope["features"]) == 4
    assert 0 <= scope["accuracy"] <= 1
