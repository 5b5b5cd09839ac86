"""Advice: its rules, `experiment=own`, the warnings of a run's header, the estimates."""

import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from omegaconf import OmegaConf
from torch.autograd.graph import saved_tensors_hooks

from fastmoco import cli
from fastmoco.configuration import complete, load_config, to_dataclass
from fastmoco.data.dataset import Survey, survey
from fastmoco.errors import UsageError
from fastmoco.moco.build import build_query_encoder
from fastmoco.moco.resnet_designs import view_cost
from fastmoco.moco.settings import MocoConfig, ModelConfig, Precision, Stem
from fastmoco.optim.settings import OptimizerName
from fastmoco.roofline import OperationCounter
from fastmoco.runs.run_folder import RunFolder, RunIdentity
from fastmoco.schema_options import describe
from fastmoco.train import own, pretrain
from fastmoco.train.advice import advise, momentum, norm_groups, outlook, queue_size
from fastmoco.train.checks import check_config
from fastmoco.train.estimate import run_cost
from fastmoco.train.machine import Machine, machine_of
from fastmoco.train.rules import FEWEST_BATCHES, RULES, SMALLEST_SET
from fastmoco.train.run_warnings import RunFacts, warnings_for
from fastmoco.train.settings import FREE_KEYS, PENDING, TrainConfig, advised_overrides
from tests.pictures import write_class_folders

ROOT = Path(__file__).parents[2]
CPU = Machine(kind="cpu", memory_bytes=16 * 10**9, units=4)
SMALL_GPU = Machine(kind="cuda", memory_bytes=8 * 10**9, units=40, precision=Precision.fp16)
LARGE_GPU = Machine(kind="cuda", memory_bytes=80 * 10**9, units=132, precision=Precision.bf16)
MACHINES = {"a CPU": CPU, "a GPU of 8 GB": SMALL_GPU, "a GPU of 80 GB": LARGE_GPU}
SIZES = sorted({round(SMALLEST_SET * 1.13**power) for power in range(110)} | {10**7})


def advised(images: int, side: int = 400, machine: Machine = CPU, classes: int = 0, **given):
    found = Survey(images, side, classes)
    return {key: v for one in advise(found, machine, given) for key, v in one.values.items()}


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_rules_hold_for_sets_of_any_size(machine):
    before = None
    for images in SIZES:
        values = advised(images, machine=machine)
        batch, queue = values["global_batch_size"], values["moco.queue_size"]
        groups, epochs = values["moco.batch_norm_splits"], values["train.epochs"]
        assert batch <= queue <= images
        assert batch * FEWEST_BATCHES <= images
        assert groups > 1
        assert batch % groups == 0
        assert batch // groups > 1
        rules = RULES[machine.kind]
        steps = epochs * (images // batch)
        assert rules.fewest_epochs <= epochs <= rules.most_epochs
        assert steps >= rules.steps or epochs == rules.most_epochs
        assert values["moco.momentum"] ** steps < 0.05 or steps < 300
        now = (batch, queue, values["moco.momentum"], -epochs)
        if before and before[0] == batch:
            assert all(old <= new for old, new in zip(before, now, strict=True)), images
        before = now


def config(*options: str) -> TrainConfig:
    """Defaults with options, without the second that Hydra takes."""
    return to_dataclass(TrainConfig, OmegaConf.from_dotlist(list(options)))


@pytest.mark.parametrize("machine", MACHINES.values(), ids=MACHINES)
def test_every_advised_value_is_an_option_and_valid(machine):
    keys = {key for key, _, _ in describe(TrainConfig)}
    for images in (SMALLEST_SET, 300, 10_000, 10**6):
        for side in (8, 32, 100, 400):
            advice = [str(one) for one in advise(Survey(images, side, 3), machine)]
            assert advice == [str(one) for one in advise(Survey(images, side, 3), machine)]
            assert advised(images, side, machine).keys() <= keys
    words = advised_overrides(advice)
    cfg = load_config(TrainConfig, [*words, "data.train=x", "device=cpu"])
    assert check_config(cfg).type == "cpu"
    assert cfg.advice == advice
    assert cfg == config(*words[:-1], "data.train=x", "device=cpu", f"advice={advice}")


def test_what_is_given_stays_and_the_rest_follows():
    values = advised(10_000, **{"global_batch_size": 90, "train.epochs": 2})
    assert not values.keys() & {"global_batch_size", "train.epochs"}
    assert values["moco.queue_size"] % 90 == 0
    assert 90 % values["moco.batch_norm_splits"] == 0
    assert (
        values["moco.momentum"] == momentum(2 * (10_000 // 90)) < advised(10_000)["moco.momentum"]
    )
    assert float(values["optimizer.learning_rate"]) > 0.002
    assert "optimizer.learning_rate" not in advised(10_000, **{"optimizer.name": "lars"})
    assert advised(10_000, **{"moco.symmetric": True})["moco.queue_size"] % 128 == 0
    assert "model.width" not in advised(10_000, **{"model.encoder": "resnet50"})
    assert "model.stem" not in advised(10_000, **{"model.encoder": "timm:test_vit"})
    assert "policy.blur_probability" in advised(10_000, side=32)
    assert "policy.blur_probability" not in advised(10_000, side=32, policy="simclr")
    assert "policy.blur_probability" not in advised(10_000, side=32, **{"pipeline.view_size": 96})
    weights = advised(300, weights="torchvision:resnet50")
    model = {"model.encoder": "resnet50", "model.width": 64, "model.stem": "imagenet"}
    assert weights.items() >= model.items()
    assert "too few" not in str(
        advise(Survey(300, 400, 0), CPU, {"weights": "torchvision:resnet50"})[0]
    )
    assert not advised(300, weights="runs/first").keys() & model.keys()
    assert advised(300, weights="random") == advised(300)
    for key, value in {"moco.batch_norm": "plain", "train.accumulate": 2}.items():
        assert "moco.batch_norm_splits" not in advised(10_000, **{key: value})
    assert "moco.momentum" not in advised(10_000, **{"moco.mechanism": "end_to_end"})


def test_a_set_with_classes_is_measured_while_it_trains():
    monitor = {"monitor.every_epochs": 6, "monitor.k": 20}
    assert advised(10_000, classes=10).items() >= monitor.items()
    assert advised(50_000, classes=10)["monitor.k"] == 200
    assert advised(10**6, classes=10)["monitor.every_epochs"] == 1
    for classes in (0, 1):  # unlabeled, or nothing to tell apart
        assert not advised(10_000, classes=classes).keys() & monitor.keys()
    assert "monitor.k" not in advised(10_000, classes=10, **{"monitor.k": 5})


def test_one_image_without_a_label_prevents_knn_and_the_header_says_so(tmp_path):
    write_class_folders(tmp_path, classes=2, per_class=10)
    assert survey(tmp_path) == Survey(20, survey(tmp_path).side, 2)
    shutil.copy(tmp_path / "class_0" / "0.jpg", tmp_path)
    with pytest.warns(UserWarning, match="no accuracy can be measured: move them into"):
        found = survey(tmp_path)
    assert (found.classes, found.unlabeled) == (0, 1)
    said = "no kNN while training: 1 of 21 images have no label; put them into the folders"
    assert str(advise(found, CPU)[-1]).startswith(said)
    assert advised_overrides([said])[:-1] == []
    for other, given in ((Survey(21, 400, 0, 21), {}), (found, {"monitor.every_epochs": 0})):
        assert "label" not in str(advise(other, CPU, given)[-1])


def test_several_devices_share_the_batch_and_are_its_groups():
    eight = replace(LARGE_GPU, devices=8)
    values = advised(10**6, machine=eight)
    assert values["global_batch_size"] == 8 * advised(10**6, machine=LARGE_GPU)["global_batch_size"]
    assert "moco.batch_norm_splits" not in values


def test_less_memory_means_smaller_batches():
    batches = [
        advised(10**6, machine=replace(SMALL_GPU, memory_bytes=gb * 10**9))["global_batch_size"]
        for gb in (80, 8, 4, 2)
    ]
    assert batches == sorted(set(batches), reverse=True)


def test_few_images_are_told_so():
    with pytest.raises(UsageError, match="needs 16 images or more, got 15"):
        advise(Survey(15, 400, 0), CPU)
    assert str(advise(Survey(309, 400, 0), CPU)[0]) == outlook(309)
    assert outlook(309).startswith("309 images: too few to learn from nothing; start from")
    assert all("too few" not in str(one) for one in advise(Survey(10_000, 400, 0), CPU))
    assert len({outlook(n).partition(":")[2] for n in (300, 10_000, 100_000)}) == 3


@pytest.mark.parametrize("batch", [1, 2, 3, 4, 7, 8, 64, 90, 256, 4096])
def test_groups_of_batch_norm_divide_the_batch(batch):
    assert batch % norm_groups(batch) == 0
    assert queue_size(8 * batch, batch, 5_000) % batch == 0
    known = {1: 1, 2: 1, 3: 1, 4: 2, 7: 1, 8: 2, 64: 4, 90: 3, 256: 8}
    assert norm_groups(batch) == known.get(batch, batch // 32)


# experiment=own


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("own") / "with space, and=signs"
    write_class_folders(folder, classes=2, per_class=20)
    return folder


def own_config(images: Path, run: Path, *options: str) -> TrainConfig:
    """As `load_config` with ``experiment=own``, without the second that Hydra takes."""
    given = [f"data.train={images}", f"run_dir={run}", "device=cpu", *options]
    preset = OmegaConf.load(ROOT / "configs" / "experiment" / "own.yaml")
    composed = OmegaConf.merge(preset, OmegaConf.from_dotlist(given))
    return complete(TrainConfig, composed, {option.partition("=")[0] for option in given})


def test_own_takes_advice_and_the_user_wins(images, tmp_path):
    options = [f"data.train='{images}'", f"run_dir={tmp_path}", "device=cpu", "experiment=own"]
    cfg = load_config(TrainConfig, options)
    assert cfg == own_config(images, tmp_path)
    chosen = advised_overrides(cfg.advice)[:-1]
    assert len(chosen) > 10
    by_hand = config(f"data.train={images}", f"run_dir={tmp_path}", "device=cpu", *chosen)
    by_hand.name, by_hand.pipeline.center_crop, by_hand.advice = "own", 1.0, cfg.advice
    assert cfg == by_hand

    mine = own_config(images, tmp_path, "global_batch_size=12", "moco.momentum=0.5")
    assert (mine.global_batch_size, mine.moco.momentum) == (12, 0.5)
    assert (mine.moco.queue_size, mine.moco.batch_norm_splits) == (12, 2)
    assert not any("global_batch_size=" in line for line in mine.advice)


def test_own_needs_images(tmp_path):
    with pytest.raises(UsageError, match=r"data\.train is not set; make .* give data\.train="):
        load_config(TrainConfig, ["experiment=own"])
    (tmp_path / "x").mkdir()
    with pytest.raises(ValueError, match=str(tmp_path)):
        own_config(tmp_path, tmp_path / "run")


def test_own_gives_the_same_for_a_folder_and_its_file(images, tmp_path, capsys):
    target = tmp_path / "set.beton"
    assert cli.main(["convert", str(images), str(target)]) == 0
    capsys.readouterr()
    assert own_config(images, tmp_path / "run").advice == own_config(target, tmp_path).advice
    assert survey(images) == survey(target)
    assert survey(images).classes == 2


def test_a_folder_is_surveyed_by_a_sample(images, monkeypatch):
    from fastmoco.data import source_set

    read = []
    look_at = source_set._look_at
    monkeypatch.setattr(source_set, "SURVEYED", 10)
    monkeypatch.setattr(source_set, "_look_at", lambda place: read.append(place) or look_at(place))
    count, shapes, labels = source_set.survey_source(images)
    assert (count, len(shapes), len(read), len(labels)) == (40, 10, 10, 40)
    bad = read[:3]
    monkeypatch.setattr(source_set, "_look_at", lambda x: "is cut" if x in bad else look_at(x))
    assert source_set.survey_source(images)[0] == 40 - 3 * 4
    monkeypatch.setattr(source_set, "_look_at", lambda _: "is cut")
    with pytest.raises(ValueError, match=r"no image can be read unconverted \(the first is cut\)"):
        source_set.survey_source(images)


def test_a_run_with_a_checkpoint_is_not_advised_again(images, tmp_path, monkeypatch):
    first = own_config(images, tmp_path)
    (tmp_path / "checkpoints").mkdir()
    run = RunFolder(tmp_path)
    run.config.write_text(RunIdentity(first, FREE_KEYS).to_yaml())
    monkeypatch.setattr(own, "advise", lambda *_: [])
    changed = own_config(images, tmp_path)  # no checkpoint yet: today's rules
    assert (changed.advice, changed.moco.queue_size) == ([], 65536)
    (tmp_path / "checkpoints" / "step-00000001.json").touch()
    assert own_config(images, tmp_path) == first
    # Its images need not be there to know its settings.
    again = own_config(tmp_path / "moved", tmp_path, "moco.queue_size=16")
    assert RunIdentity(again, FREE_KEYS).differences(run.config) == [
        f"moco.queue_size: {first.moco.queue_size} there, 16 now"
    ]


def test_hydra_shows_what_was_chosen(images, tmp_path, capfd):
    arguments = [f"data.train={images}", f"run_dir={tmp_path / 'run'}", "device=cpu"]
    options = ["experiment=own", "moco.temperature=0.3", "--cfg", "job"]
    assert cli.main(["train", *arguments, *options]) == 0
    shown = capfd.readouterr().out
    assert "queue_size: 8\n" in shown
    assert "temperature: 0.3\n" in shown
    assert "moco.queue_size=8: " in shown
    plain = yaml.safe_load(shown)  # without tags of Python: it refuses them
    assert plain["run_dir"] == str(tmp_path / "run")
    assert plain["optimizer"]["name"] in list(OptimizerName)
    assert not (tmp_path / "run").exists()


def test_each_job_of_a_sweep_is_advised_by_its_own_options(images, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)  # Hydra writes multirun.yaml there
    jobs: list[TrainConfig] = []

    def train(job: TrainConfig) -> None:
        jobs.append(job)
        logging.getLogger("matplotlib.font_manager").info("generated new fontManager")

    monkeypatch.setattr(pretrain, "train", train)
    data = [f"data.train='{images}'", "experiment=own", f"name={tmp_path.name}", "device=cpu"]
    data += ["train.report=false"]
    assert cli.main(["train", *data, "global_batch_size=8,16", "--multirun"]) == 0
    shown = capfd.readouterr().out
    assert "Launching 2 jobs" in shown
    assert "fontManager" not in shown
    assert [job.moco.queue_size for job in jobs] == [8, 16]
    assert [job.run_dir.name for job in jobs] == ["global_batch_size=8", "global_batch_size=16"]
    assert all(job.advice and job.advice != PENDING for job in jobs)


def test_a_machine_is_the_same_each_time():
    machine = machine_of(torch.device("cpu"))
    assert machine == machine_of(torch.device("cpu"))
    assert (machine.kind, machine.devices) == ("cpu", 1)
    assert machine.memory_bytes > 10**8


def test_a_duration_is_that_of_the_threads_in_use(monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(8))
    cfg = load_config(TrainConfig, ["experiment=cifar10_cpu"])
    seconds = []
    for threads in (1, 2, 16):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        seconds.append(run_cost(cfg, 100, machine_of(torch.device("cpu"))).seconds)
    assert [seconds[0] / s for s in seconds] == pytest.approx([1, 2, 8])


# Estimates


@pytest.mark.parametrize(
    ("encoder", "stem", "width", "view_size"),
    [
        ("resnet18", "imagenet", 16, 64),
        ("resnet18", "small", 16, 32),
        ("resnet34", "small_stride2", 8, 32),
        ("resnet50", "imagenet", 16, 96),
        ("resnext50_32x4d", "imagenet", 64, 64),
    ],
)
def test_layers_are_counted_as_autograd_and_torch_count_them(encoder, stem, width, view_size):
    model = ModelConfig(encoder=encoder, stem=Stem(stem), width=width)
    with torch.device("meta"):
        backbone = build_query_encoder(model, MocoConfig(), view_size=view_size).backbone
    weights = {tensor.untyped_storage()._cdata for tensor in backbone.state_dict().values()}
    kept = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage
        return tensor

    count = 4
    with saved_tensors_hooks(keep, lambda x: x), OperationCounter() as counter:
        backbone(torch.empty(count, 3, view_size, view_size, device="meta"))
    cost = view_cost(model, view_size)
    assert cost.kept_bytes == pytest.approx(
        sum(storage.nbytes() for storage in kept.values()) / count, rel=0.03
    )
    flops = sum(one.flops for one in counter.operations) / count
    assert cost.flops == pytest.approx(flops, rel=0.03)
    convolutions = [m for m in backbone.modules() if isinstance(m, torch.nn.Conv2d)]
    assert cost.weights == sum(m.weight.numel() for m in convolutions)


# Warnings


def facts(cfg: TrainConfig, images: int, machine: Machine = CPU, batch_norm: bool = True):
    per_epoch = max(1, images // cfg.global_batch_size)
    steps = per_epoch * cfg.train.epochs
    return RunFacts(
        images=images,
        steps=min(steps, cfg.train.max_steps or steps),
        steps_per_epoch=per_epoch,
        has_batch_norm=batch_norm,
        machine=machine,
    )


GOOD = ["model.encoder=resnet18", "pipeline.view_size=96", "moco.batch_norm_splits=8"]


@pytest.mark.parametrize(
    ("options", "images", "machine", "words"),
    [
        (["moco.queue_size=70000"], 69_999, LARGE_GPU, ["set moco.queue_size=8704"]),
        (["moco.queue_size=70000"], 70_000, LARGE_GPU, []),
        (
            ["train.epochs=7", "moco.queue_size=256"],
            30_000,
            LARGE_GPU,
            ["m = 0.999 keeps 44%", "moco.momentum=0.99", "819 steps are too few", "epochs=9 or"],
        ),
        (["train.epochs=7", "train.max_steps=20", "moco.momentum=0.5"], 70_000, LARGE_GPU, []),
        (["train.epochs=9", "moco.momentum=0.99"], 70_000, LARGE_GPU, []),
        (["moco.momentum=1", "moco.final_momentum=0.9"], 70_000, LARGE_GPU, []),
        (["moco.momentum=1"], 70_000, LARGE_GPU, ["m = 1 keeps 100%"]),
        (["moco.momentum=1", "train.epochs=3", "weights=runs/a"], 70_000, LARGE_GPU, []),
        (["train.epochs=3", "weights=random"], 70_000, LARGE_GPU, ["too few", "m = 0.999"]),
        (["moco.batch_norm_splits=1"], 70_000, LARGE_GPU, ["one group", "batch_norm_splits=8"]),
        (["moco.batch_norm=plain"], 70_000, LARGE_GPU, ["one group"]),
        (["moco.batch_norm_splits=1", "train.accumulate=2"], 70_000, LARGE_GPU, []),
        (
            ["moco.batch_norm_splits=1", "moco.mechanism=end_to_end", "moco.queue_size=90000"],
            70_000,
            LARGE_GPU,
            [],
        ),
        (["precision=float32"], 70_000, LARGE_GPU, ["set precision=auto"]),
        (["model.encoder=timm:vit_tiny_patch16_224"], 70_000, SMALL_GPU, []),
    ],
)
def test_warnings(options, images, machine, words):
    cfg = config("precision=fp16", *GOOD, *options)
    found = warnings_for(cfg, facts(cfg, images, machine))
    assert bool(found) == bool(words), found
    assert [word for word in words if word not in "\n".join(found)] == []
    if "one group" in words:
        assert warnings_for(cfg, facts(cfg, images, machine, batch_norm=False)) == []


@pytest.mark.parametrize(
    ("options", "saving"),
    [
        (
            ["moco.batch_norm_splits=8"],
            "global_batch_size=64 moco.batch_norm_splits=2 optimizer.learning_rate=0.0075, or "
            "train.accumulate=4, which keeps the batch and its groups",
        ),
        (
            ["moco.batch_norm_splits=2", "optimizer.scale_learning_rate=true"],
            "global_batch_size=64 moco.batch_norm_splits=2, or train.accumulate=4 "
            "moco.batch_norm_splits=4, which keeps the batch but makes 4 groups of batch norm",
        ),
        (["moco.mechanism=moco_v3"], "global_batch_size=32 optimizer.learning_rate=0.00375"),
        (
            ["pipeline.view_size=1024"],
            "pipeline.view_size lower, or choose a smaller model.encoder",
        ),
    ],
)
def test_memory_that_does_not_suffice(options, saving):
    cfg = config("precision=fp16", *options)
    (line,) = [x for x in warnings_for(cfg, facts(cfg, 10**5, SMALL_GPU)) if "GB" in x]
    assert line.endswith(saving)
    settings = [word.rstrip(",") for word in saving.split() if "=" in word]
    if settings:
        smaller = [word for word in settings if not word.startswith("train.accumulate")][:3]
        cfg = config("precision=fp16", *options, *smaller)
        assert not [x for x in warnings_for(cfg, facts(cfg, 10**5, SMALL_GPU)) if "GB" in x]


def test_a_long_run_is_told_so():
    cfg = config("moco.batch_norm_splits=8", "train.accumulate=8")
    (line,) = [x for x in warnings_for(cfg, facts(cfg, 1_281_167)) if "days" in x]
    assert line.startswith("the run may take 606 days here (an estimate")
    fast = config("moco.batch_norm_splits=8", "precision=fp16")
    assert warnings_for(fast, facts(fast, 1_281_167, LARGE_GPU)) == []


@pytest.mark.parametrize(
    ("name", "images"), [("demo", 6_000), ("cifar10_cpu", 10_000), ("cifar10_colab", 50_000)]
)
def test_small_presets_have_no_warning_on_a_cpu(name, images):
    cfg = load_config(TrainConfig, [f"experiment={name}"])
    assert [x for x in warnings_for(cfg, facts(cfg, images)) if "days" not in x] == []


@pytest.mark.parametrize("images", [300, 10_000, 100_000])
def test_own_is_never_warned_of_its_own_settings(images):
    for machine in MACHINES.values():
        advice = [str(one) for one in advise(Survey(images, 400, 2), machine)]
        cfg = config(*advised_overrides(advice)[:-1])
        assert [x for x in warnings_for(cfg, facts(cfg, images, machine)) if "days" not in x] == []


# docs/choosing.md


def rows() -> list[str]:
    keys = "model.encoder model.width pipeline.view_size global_batch_size moco.batch_norm_splits "
    keys += "moco.queue_size moco.momentum train.epochs"
    lines = ["| images | device | " + " | ".join(f"`{key}`" for key in keys.split()) + " |"]
    lines.append("|---:|---|---|" + "---:|" * (len(keys.split()) - 1))
    for images in (300, 10_000, 100_000, 1_000_000):
        for name, machine in MACHINES.items():
            values = advised(images, 400, machine)
            cells = [
                f"{values[key]:,}" if isinstance(values[key], int) else str(values[key])
                for key in keys.split()
            ]
            lines.append(f"| {images:,} | {name} | " + " | ".join(cells) + " |")
    return lines


def test_the_table_of_the_page_is_what_the_rules_give():
    expected = "\n".join(rows())
    assert expected in (ROOT / "docs/choosing.md").read_text(), f"put this there:\n{expected}"


def test_a_gpu_that_is_not_used_is_the_first_warning():
    cfg = load_config(TrainConfig, GOOD)
    found = replace(facts(cfg, 70_000), unused_gpu="there is no NVIDIA driver here")
    first = warnings_for(cfg, found)[0]
    assert first.startswith("this run is on the CPU: there is no NVIDIA driver here; fastmoco doct")
