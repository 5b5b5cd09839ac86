"""Every preset starts and trains: its mechanism, head, optimizer, schedule, policy and batch norm.

On few and small images, with a narrow encoder.
"""

from contextlib import closing

import pytest
import torch

from fastmoco import cli
from fastmoco.configuration import load_config, preset_names
from fastmoco.data.dataset import open_dataset
from fastmoco.moco.settings import OWN_HEADS, Mechanism
from fastmoco.runs.run_folder import RunFolder
from fastmoco.train.checks import check_config
from fastmoco.train.settings import TrainConfig
from fastmoco.train.trainer import Trainer
from tests.optional import require
from tests.pictures import write_class_folders

CPU = torch.device("cpu")
STEPS, BATCH = 3, 16
# Groups of 2 where batch norm has 8; a queue of both views' keys.
SMALL = [
    f"global_batch_size={BATCH}",
    "pipeline.view_size=32",
    "pipeline.num_threads=1",
    "moco.dim=16",
    f"moco.queue_size={2 * BATCH}",
    "train.compile=never",
]


QUICK = {
    "cifar10_cpu",
    "cifar10_colab_symmetric",
    "cifar10_moco",
    "demo",
    "fast_moco",
    "imagenette",
    "moco_v1",
    "moco_v2",
    "moco_v3_vit",
    "own",
    "simclr",
}
"""All mechanisms, heads, optimizers and kinds of batch norm; the rest by `make full`."""
PRESETS = [
    pytest.param(name, marks=() if name in QUICK else pytest.mark.full)
    for name in preset_names("experiment")
]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_class_folders(folder / "images", classes=4, per_class=4 * STEPS)  # one epoch
    assert cli.main(["convert", str(folder / "images"), str(folder / "images.beton")]) == 0
    return folder / "images.beton"


def small_config(name, dataset):
    """The preset made small: what it sets, in a size that a test can bear."""
    options = [f"experiment={name}", f"data.train={dataset}", f"data.test={dataset}", *SMALL]
    preset = load_config(TrainConfig, options[:2])
    options.append("monitor.allow_overlap=true")
    options.append("precision=float32")  # fp16 skips the first steps, in search of a loss scale
    if preset.model.encoder.startswith("timm:"):
        options.append("model.encoder=timm:test_vit")
    else:
        options.append("model.width=8")
    if preset.moco.mechanism in OWN_HEADS:
        options.append("moco.hidden_dim=16")
    if preset.moco.head_hidden_dim:
        options.append("moco.head_hidden_dim=24")
    return load_config(TrainConfig, options)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains(dataset, tmp_path, name):
    cfg = small_config(name, dataset)
    if cfg.optimizer.name == "lars" or cfg.model.encoder.startswith("timm:"):
        require("timm")
    assert check_config(cfg) == CPU
    with open_dataset(dataset) as images:
        rates = []
        trainer = Trainer(cfg, RunFolder(tmp_path), images, CPU)
        model = trainer.step.model
        before = {key: value.clone() for key, value in model.state_dict().items()}
        with closing(trainer.open_loader()) as loader:
            for _ in range(STEPS):
                rates.append(trainer.learning_rate)
                trainer.take(next(loader), rates[-1])
    assert trainer.step.guard.read().skipped == 0
    assert trainer.channel_mean == (cfg.pipeline.channel_mean or images.facts["channel_mean"])
    torch.testing.assert_close(trainer.step.std, torch.tensor(trainer.channel_std))
    assert trainer.checkpoint().facts["channel_mean"] == trainer.channel_mean
    changed = {key for key, value in model.state_dict().items() if not value.equal(before[key])}
    assert any(key.startswith("query_encoder.backbone.") for key in changed)
    assert any(key.startswith("query_encoder.head.") for key in changed)
    if cfg.moco.mechanism is Mechanism.moco or cfg.moco.mechanism in OWN_HEADS:
        assert any(key.startswith("key_encoder.") and key.endswith("weight") for key in changed)
    if cfg.moco.mechanism is Mechanism.moco:
        keys = model.queue.keys
        assert (keys != before["queue.keys"]).any(dim=1).sum() == min(
            len(keys), STEPS * BATCH * (1 + cfg.moco.symmetric)
        )
    if cfg.optimizer.warmup_epochs:
        assert rates[0] < rates[1] < rates[2]
    else:
        assert rates == sorted(rates, reverse=True)
