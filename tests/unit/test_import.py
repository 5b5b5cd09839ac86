"""Weights under the names of other projects give the features that they gave there."""

import pickle

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from torch import nn

import fastmoco
from fastmoco import cli
from fastmoco.errors import UsageError
from fastmoco.evaluate.settings import Features
from fastmoco.interop.export import export
from fastmoco.interop.import_weights import import_weights
from fastmoco.interop.settings import ExportConfig, ImportConfig, Part, Target
from fastmoco.moco.settings import Head, Stem
from fastmoco.torch_files import unpickle
from tests.encoders import images, randomize, write_run

resnet18 = torchvision.models.resnet18


def apart(state):
    """Each tensor with memory of its own, as safetensors wants it."""
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


def prefixed(prefix, model):
    return {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}


def taken_in(tmp_path, state, **options):
    """The encoder of a state dict, through a safetensors file, and the summary."""
    source, out = tmp_path / "weights.safetensors", tmp_path / "taken"
    save_file(apart(state), source)
    summary = import_weights(source, ImportConfig(out=out, **options))
    return fastmoco.load_encoder(out), summary


def same_features(encoder, model, size):
    """Of normalized images; `model` gives ``(N, D)`` or ``(N, D, 1, 1)``."""
    with torch.no_grad():
        return torch.equal(encoder.backbone(images(size)), model(images(size)).flatten(1))


def without_fc(model):
    model.fc = nn.Identity()
    return model


@pytest.mark.parametrize("version", [1, 2])
def test_official_moco(tmp_path, version):
    model = randomize(resnet18(num_classes=32))
    if version == 2:
        model.fc = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), model.fc)
    state = {**prefixed("module.encoder_q.", model), **prefixed("module.encoder_k.", resnet18())}
    state |= {"module.queue": torch.zeros(32, 64), "module.queue_ptr": torch.zeros(1)}
    encoder, summary = taken_in(tmp_path, state)
    x = images(64)
    with torch.no_grad():
        assert torch.equal(encoder.head(encoder.backbone(x)), model(x))
    assert same_features(encoder, without_fc(model), 64)
    assert (summary.layout, summary.encoder, summary.stem) == ("moco", "resnet18", "imagenet")
    assert (summary.head, summary.dim) == ("linear" if version == 1 else "mlp", 32)
    assert summary.left_out == {"encoder_k": 122, "queue": 1, "queue_ptr": 1}
    assert encoder.mean.tolist() == pytest.approx([0.485, 0.456, 0.406])
    assert (encoder.eval_size, encoder.center_crop) == (224, 0.875)


def test_official_moco_v3_has_another_head(tmp_path):
    model = randomize(resnet18())
    model.fc = nn.Sequential(nn.Linear(512, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU())
    state = {**prefixed("module.base_encoder.", model), "module.predictor.0.weight": torch.ones(2)}
    encoder, summary = taken_in(tmp_path, state)
    assert same_features(encoder, without_fc(model), 64)
    assert (summary.layout, summary.head) == ("moco_v3", None)
    assert summary.left_out == {"predictor": 1, "projection head (none of ours)": 6}
    with pytest.raises(ValueError, match="no projection head; set features=backbone"):
        encoder.encode_crops(torch.zeros(1, 1, 64, 64, 3, dtype=torch.uint8), Features.embedding)


@pytest.mark.parametrize("prefix", ["backbone.", "encoder."])
def test_solo_learn_on_cifar_pads_by_two(tmp_path, prefix):
    model = randomize(without_fc(resnet18()))
    model.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=2, bias=False)
    model.maxpool = nn.Identity()
    projector = nn.Sequential(nn.Linear(512, 2048), nn.ReLU(), nn.Linear(2048, 24))
    state = {
        **prefixed(prefix, model),
        **prefixed(f"momentum_{prefix}", model),
        **prefixed("projector.", projector),
        **prefixed("momentum_projector.", projector),
        **prefixed("classifier.", nn.Linear(512, 10)),
        "queue": torch.zeros(2, 24, 64),
    }
    encoder, summary = taken_in(tmp_path, state)
    assert same_features(encoder, model, 32)
    x = images(32)
    with torch.no_grad():
        assert torch.equal(encoder.head(encoder.backbone(x)), projector(model(x)))
    assert (summary.layout, summary.stem) == ("solo_learn", "small_pad2")
    assert (encoder.eval_size, encoder.center_crop) == (32, 1.0)
    assert summary.left_out["classifier"] == 2
    assert summary.left_out[f"momentum_{prefix[:-1]}"] == 120


def test_lightly_numbers_the_children_of_torchvision(tmp_path):
    resnet = randomize(resnet18())
    backbone = nn.Sequential(*list(resnet.children())[:-1])
    head = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 24))
    state = {
        **prefixed("backbone.", backbone),
        **prefixed("backbone_momentum.", backbone),
        **prefixed("projection_head.layers.", head),
    }
    encoder, summary = taken_in(tmp_path, state)
    assert same_features(encoder, backbone, 64)
    assert (summary.layout, summary.head) == ("lightly", "mlp")


def test_lightly_splits_batch_norm_in_its_own_resnet(tmp_path):
    resnet = randomize(resnet18())
    resnet.conv1 = nn.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    resnet.maxpool = nn.Identity()
    split = {}
    for name, tensor in resnet.state_dict().items():
        if name.endswith(("running_mean", "running_var")):
            groups = tensor + 0.1 * torch.rand(8, len(tensor))
            tensor.copy_(torch.mean(groups, dim=0))  # what its evaluation mode uses
            tensor = groups.flatten()
        split[name.replace(".downsample.", ".shortcut.")] = tensor
    stages = ["conv1", "bn1", "layer1", "layer2", "layer3", "layer4"]
    state = {
        f"backbone.{stages.index(name.split('.')[0])}.{name.split('.', 1)[1]}": tensor
        for name, tensor in split.items()
        if not name.startswith("fc.")
    }
    encoder, summary = taken_in(tmp_path, state)
    assert same_features(encoder, without_fc(resnet), 32)
    assert (summary.layout, summary.stem, summary.left_out) == ("lightly", "small", {})


@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_torchvision_and_timm(tmp_path, name):
    model = randomize(getattr(torchvision.models, name)())
    encoder, summary = taken_in(tmp_path, timm.create_model(name).state_dict() | model.state_dict())
    assert same_features(encoder, without_fc(model), 64)
    assert (summary.layout, summary.encoder, summary.left_out) == ("torchvision", name, {"fc": 2})


def test_options_say_what_shapes_do_not(tmp_path):
    run = write_run(tmp_path / "run", stem=Stem.small_stride2, width=4, view_size=16)
    source = fastmoco.load_encoder(run)
    encoder, summary = taken_in(
        tmp_path,
        {f"module.{name}": t for name, t in source.backbone.state_dict().items()},
        stem=Stem.small_stride2,
        mean=[0.1, 0.2, 0.3],
        std=[0.5, 0.5, 0.25],
        view_size=16,
        center_crop=0.5,
    )
    assert same_features(encoder, source.backbone, 16)
    assert (summary.width, encoder.eval_size, encoder.center_crop) == (4, 16, 0.5)
    assert encoder.mean.tolist() == pytest.approx([0.1, 0.2, 0.3])
    assert encoder.std.tolist() == pytest.approx([0.5, 0.5, 0.25])


def test_counters_that_old_files_lack_and_half_precision(tmp_path):
    model = randomize(without_fc(resnet18())).half()
    state = {n: t for n, t in model.state_dict().items() if "num_batches_tracked" not in n}
    encoder, _ = taken_in(tmp_path, state)
    assert same_features(encoder, model.float(), 64)


def test_an_imported_encoder_is_a_run(tmp_path):
    encoder, _ = taken_in(tmp_path, without_fc(resnet18()).state_dict())
    out = tmp_path / "again.pth"
    export(tmp_path / "taken", ExportConfig(to=Target.torchvision, out=out))
    state = torch.load(out, weights_only=True)
    assert all(torch.equal(state[n], t) for n, t in encoder.backbone.state_dict().items())
    export(tmp_path / "taken", ExportConfig(to=Target.huggingface, out=tmp_path / "card"))
    card = (tmp_path / "card" / "README.md").read_text()
    assert "weights of `weights.safetensors` (SHA-256 `" in card
    assert "learning rate" not in card
    with pytest.raises(UsageError, match="has no projection head; set part=backbone"):
        export(tmp_path / "taken", ExportConfig(part=Part.encoder, out=tmp_path / "a.safetensors"))


# PyTorch's files, read by another process.


def official_checkpoint(path):
    """As the official code saves: a dict of epoch, name, weights and optimizer."""
    torch.manual_seed(1)
    model = randomize(resnet18(num_classes=16))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    state = {**prefixed("module.encoder_q.", model), **prefixed("module.encoder_k.", model)}
    torch.save(
        {
            "epoch": 200,
            "arch": "resnet18",
            "state_dict": state,
            "optimizer": optimizer.state_dict(),
        },
        path,
    )
    return model


class Evil:
    """Unpickled without care, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def import_fails(capsys, path, out, *options):
    assert cli.main(["import", str(path), f"out={out}", *options]) in (1, 2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert not out.exists()
    return line


def test_a_pytorch_file_in_another_process(tmp_path, capsys):
    source, out = tmp_path / "moco v2.pth.tar", tmp_path / "taken"
    model = official_checkpoint(source)
    assert cli.main(["import", str(source), f"out={out}"]) == 0
    assert "left out: encoder_k (122 tensors)" in capsys.readouterr().out
    assert same_features(fastmoco.load_encoder(out), without_fc(model), 64)


@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_file_that_runs_code_is_refused(tmp_path, capsys, how):
    source, traces = tmp_path / "weights.pth", tmp_path / "traces"
    record = {"state_dict": {"conv1.weight": torch.zeros(1)}, "extra": Evil(traces)}
    if how == "torch":
        torch.save(record, source)
        with source.open("rb") as file:  # the trap works where nobody takes care
            torch.load(file, weights_only=False)["extra"].close()
        assert traces.exists()
        traces.unlink()
    else:
        source.write_bytes(pickle.dumps(Evil(traces)))
    line = import_fails(capsys, source, tmp_path / "taken")
    assert str(source) in line
    assert "refused: unpickling it would call io.open" in line
    assert "ask for its weights as safetensors" in line
    assert not traces.exists()


def test_a_file_that_asks_for_far_too_much_memory(tmp_path, capsys):
    source = tmp_path / "weights.pth"
    torch.save({"conv1.weight": torch.zeros(1).expand(1 << 15, 1 << 15)}, source)  # 4 GiB
    line = import_fails(capsys, source, tmp_path / "taken")
    assert "need far more memory than the size of the file" in line


def test_damaged_files(tmp_path, capsys):
    good = tmp_path / "good.pth"
    torch.save({"conv1.weight": torch.zeros(64, 3, 7, 7)}, good)
    cut = tmp_path / "cut.pth"
    cut.write_bytes(good.read_bytes()[:-300])
    assert "damaged or not a PyTorch file" in import_fails(capsys, cut, tmp_path / "taken")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(good.read_bytes())
    assert "damaged or is not a safetensors file" in import_fails(capsys, cut, tmp_path / "taken")


def test_reasons_are_one_line():
    for error in (RuntimeError("a\nb"), ValueError(""), MemoryError(), KeyError("x")):
        assert "\n" not in unpickle._reason(error)
    for loaded, words in (
        ([1], "it contains a list"),
        ({"epoch": 3, "optimizer": {}}, r"no state dict \(its keys: epoch, optimizer\)"),
    ):
        with pytest.raises(unpickle.Refused, match=words):
            unpickle.find_state(loaded)
    with pytest.raises(unpickle.Refused, match="is not a plain dense tensor"):
        unpickle.plain_tensors({"a": torch.zeros(2, 2).to_sparse()})


@pytest.mark.parametrize(
    ("container", "expected"),
    [
        (lambda state: {"model": state, "epoch": 1}, {"a"}),
        (lambda state: {"state_dict": {}, "model": state}, {"a"}),
        (lambda state: state, {"a"}),
    ],
)
def test_where_the_tensors_are(container, expected):
    _, found = unpickle.find_state(container({"a": torch.zeros(1), "note": "text"}))
    assert set(unpickle.plain_tensors(found)) == expected


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (
            lambda: timm.create_model("resnet18d").state_dict(),
            [],
            ["no convolution conv1.weight", "conv1.0.weight"],
        ),
        (
            lambda: timm.create_model("resnet26").state_dict(),
            [],
            ["no encoder has these tensors", "differs in", "expected", "found", " more"],
        ),
        (resnet18().state_dict, ["encoder=resnet50"], ["resnet50 with imagenet stem", "expected"]),
        (resnet18().state_dict, ["encoder=resnet19"], ["model.encoder=resnet19 is unknown"]),
        (resnet18().state_dict, ["layout=moco"], ["layout=moco expects names under encoder_q."]),
        (resnet18().state_dict, ["layout=mocco"], ["layout"]),
        (
            resnet18().state_dict,
            ["mean=[1,0.5]"],
            ["mean must be three numbers in [0, 1] (R, G, B), got [1.0, 0.5]"],
        ),
        (
            resnet18().state_dict,
            ["std=[0,1,1]"],
            ["std must be in (0, 1], got [0.0, 1.0, 1.0]"],
        ),
        (
            lambda: {"blocks.0.attn.qkv.weight": torch.zeros(2)},
            [],
            ["blocks.0.attn.qkv.weight", "no known layout", "moco_v3"],
        ),
    ],
)
def test_what_does_not_fit_is_said_in_one_line(tmp_path, capsys, make, options, words):
    source = tmp_path / "weights.safetensors"
    save_file(apart(make()), source)
    line = import_fails(capsys, source, tmp_path / "taken", *options)
    for word in words:
        assert word in line


def test_files_and_folders_that_cannot_be(tmp_path, capsys):
    def fails(path, *options):
        assert cli.main(["import", str(path), *options]) in (1, 2)
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    out = tmp_path / "taken"
    assert "none.pth does not exist" in fails(tmp_path / "none.pth", f"out={out}")
    assert "is not a file" in fails(tmp_path, f"out={out}")
    own = tmp_path / "own.safetensors"
    run = write_run(tmp_path / "run", stem=Stem.small, width=4, head=Head.linear)
    export(run, ExportConfig(out=own))
    assert "was exported by fastmoco; use it as RUN" in fails(own, f"out={out}")
    assert "out is not set" in fails(own)
    assert "exists; give a new or an empty folder" in fails(own, f"out={run}")
    weights = tmp_path / "weights.safetensors"
    save_file(resnet18().state_dict(), weights)
    assert "own.safetensors is not a folder" in fails(weights, f"out={own}/taken")
