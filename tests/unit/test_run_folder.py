"""Which configurations go on in a run folder."""

import pytest
from omegaconf import OmegaConf

from fastmoco.configuration import config_to_dict
from fastmoco.runs.run_folder import open_run_folder
from fastmoco.schema import CudaGraph, TrainConfig, UsageError


@pytest.fixture
def older_run(tmp_path):
    """A run folder of a version that did not know `train.accumulate`."""
    saved = config_to_dict(TrainConfig(run_dir=tmp_path))
    del saved["train"]["accumulate"]
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(saved)))
    return tmp_path


def test_a_run_older_than_an_option_goes_on_with_its_default(older_run):
    assert open_run_folder(TrainConfig(run_dir=older_run)).path == older_run


def test_a_run_older_than_an_option_goes_on_with_nothing_else(older_run):
    cfg = TrainConfig(run_dir=older_run)
    cfg.train.accumulate = 2
    with pytest.raises(UsageError, match=r"train\.accumulate: 1 there, 2 now"):
        open_run_folder(cfg)


def test_a_run_may_go_on_without_a_graph(older_run):
    cfg = TrainConfig(run_dir=older_run)
    cfg.train.cuda_graph = CudaGraph.never
    open_run_folder(cfg)
