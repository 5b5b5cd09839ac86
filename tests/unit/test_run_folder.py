"""Which configurations a run folder takes, and who may write there."""

import multiprocessing

import pytest
from omegaconf import OmegaConf

from fastmoco.configuration import config_to_dict
from fastmoco.errors import UsageError
from fastmoco.ranks import ALONE
from fastmoco.runs.run_folder import RunFolder, RunIdentity, check_run_folder, claim_run_folder
from fastmoco.train.settings import FREE_KEYS, CudaGraph, TrainConfig
from tests.limits import HANG_SECONDS


def check(cfg):
    check_run_folder(RunFolder(cfg.run_dir), RunIdentity(cfg, FREE_KEYS))


def claim(cfg):
    return claim_run_folder(RunFolder(cfg.run_dir), RunIdentity(cfg, FREE_KEYS), ALONE)


def save_something(folder):
    """What `check_run_folder` takes for a checkpoint."""
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints" / "step-00000001.json").write_text("{}")


@pytest.fixture
def older_run(tmp_path):
    """A run folder of a version that did not know `train.accumulate`."""
    saved = config_to_dict(TrainConfig(run_dir=tmp_path))
    del saved["train"]["accumulate"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(saved)))
    save_something(tmp_path)
    return tmp_path


def test_a_run_older_than_an_option_goes_on_with_its_default(older_run):
    with claim(TrainConfig(run_dir=older_run)):
        assert OmegaConf.load(older_run / "config.yaml").train.accumulate == 1


def test_a_run_older_than_an_option_goes_on_with_nothing_else(older_run):
    cfg = TrainConfig(run_dir=older_run)
    cfg.train.accumulate = 2
    with pytest.raises(UsageError, match=r"train\.accumulate: 1 there, 2 now"):
        check(cfg)


def test_a_run_may_go_on_without_a_graph(older_run):
    cfg = TrainConfig(run_dir=older_run)
    cfg.train.cuda_graph = CudaGraph.never
    with claim(cfg):
        assert OmegaConf.load(older_run / "config.yaml").train.cuda_graph == "never"


def test_a_folder_without_a_checkpoint_binds_nobody(tmp_path):
    with claim(TrainConfig(run_dir=tmp_path, seed=0)):
        (tmp_path / "metrics.jsonl").write_text("")
        (tmp_path / "views.png").write_text("of seed 0")
    with claim(TrainConfig(run_dir=tmp_path, seed=1)):
        assert not (tmp_path / "views.png").exists()
        assert OmegaConf.load(tmp_path / "config.yaml").seed == 1
        save_something(tmp_path)
    with (
        pytest.raises(UsageError, match="seed: 1 there, 0 now"),
        claim(TrainConfig(run_dir=tmp_path)),
    ):
        pass


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "holiday.jpg").write_text("")
    with (
        pytest.raises(UsageError, match="is not a run folder"),
        claim(TrainConfig(run_dir=tmp_path)),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


@pytest.mark.parametrize("text", ["", "5", "- 1", "a: [", "run_dir: x\nmodel: resnet\n", "\xff"])
def test_a_config_of_something_else_is_refused(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text, encoding="latin-1")
    (tmp_path / "tensorboard").mkdir()
    with (
        pytest.raises(UsageError, match="is not a run folder"),
        claim(TrainConfig(run_dir=tmp_path)),
    ):
        pass
    assert (tmp_path / "config.yaml").read_text(encoding="latin-1") == text
    assert (tmp_path / "tensorboard").exists()


def test_what_a_killed_start_leaves_is_taken_up(tmp_path):
    (tmp_path / ".lock").write_text("")
    (tmp_path / ".config.yaml.partial").write_text("na")
    with claim(TrainConfig(run_dir=tmp_path)):
        assert (tmp_path / "config.yaml").exists()


def try_to_claim(folder, answers):
    try:
        with claim(TrainConfig(run_dir=folder, seed=1)):
            answers.put("claimed")
    except UsageError as error:
        answers.put(str(error))


@pytest.mark.full
def test_a_second_process_is_refused_while_a_run_holds_its_folder(tmp_path):
    spawn = multiprocessing.get_context("spawn")
    answers = spawn.Queue()
    with claim(TrainConfig(run_dir=tmp_path)):
        other = spawn.Process(target=try_to_claim, args=(tmp_path, answers))
        other.start()
        assert "is in use by another process" in answers.get(timeout=HANG_SECONDS)
        other.join()
        assert OmegaConf.load(tmp_path / "config.yaml").seed == 0
    other = spawn.Process(target=try_to_claim, args=(tmp_path, answers))
    other.start()
    assert answers.get(timeout=HANG_SECONDS) == "claimed"
    other.join()
