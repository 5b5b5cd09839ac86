"""An exported encoder gives the same features in the library that it was exported for."""

import json
import shutil
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
import timm
import torch
import torchvision
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

import fastmoco
from fastmoco import cli
from fastmoco.evaluate.settings import Features
from fastmoco.interop import onnx_graph
from fastmoco.interop.detectron2_weights import detectron2_name
from fastmoco.interop.export import export
from fastmoco.interop.loaded_encoder import LoadedEncoder
from fastmoco.interop.model_card import _policy_text
from fastmoco.interop.settings import ExportConfig, Normalize, Part, Target
from fastmoco.interop.state_dicts import RESNETS
from fastmoco.moco.settings import ModelConfig, Stem
from fastmoco.pipelines.policies import POLICIES
from fastmoco.runs.checkpoint import load_checkpoint
from fastmoco.train.settings import TrainConfig
from tests.encoders import MEAN, STD, images, write_run


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return write_run(tmp_path_factory.mktemp("runs") / "large")


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "narrow"
    return write_run(folder, stem=Stem.small, width=8, view_size=16)


def features_of(run, x):
    """What fastmoco says, of images that are normalized already."""
    with torch.no_grad():
        return fastmoco.load_encoder(run).backbone(x)


@pytest.mark.parametrize("name", ["a b.pth", "a.safetensors"])
def test_torchvision_loads_all_but_its_classifier(run, tmp_path, name):
    out = tmp_path / name
    export(run, ExportConfig(to=Target.torchvision, out=out))
    state = load_file(out) if out.suffix == ".safetensors" else torch.load(out, weights_only=True)
    model = torchvision.models.resnet18()
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert (missing, unexpected) == (["fc.weight", "fc.bias"], [])
    model.fc = torch.nn.Identity()
    with torch.no_grad():
        assert torch.equal(model.eval()(images(64)), features_of(run, images(64)))


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_timm_loads_strictly(run, tmp_path, name):
    out = tmp_path / name
    export(run, ExportConfig(to=Target.timm, out=out))
    model = timm.create_model("resnet18", num_classes=0, checkpoint_path=str(out)).eval()
    with torch.no_grad():
        assert torch.equal(model(images(64)), features_of(run, images(64)))


def test_timm_and_torchvision_name_every_resnet_alike():
    for name in RESNETS:
        with torch.device("meta"):
            theirs = timm.create_model(name).state_dict()
            ours = getattr(torchvision.models, name)().state_dict()
        assert {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in ours.items()}


def test_hugging_face_folder(run, tmp_path):
    out = tmp_path / "folder"
    out.mkdir()  # empty: may be there
    summary = export(run, ExportConfig(to=Target.huggingface, out=out, license="cc-by-4.0"))
    assert sorted(p.name for p in out.iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    model = timm.create_model(f"local-dir:{out}", pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(model(images(64)), features_of(run, images(64)))
    data = timm.data.resolve_model_data_config(model)
    assert (list(data["mean"]), list(data["std"])) == (MEAN, STD)
    assert (list(data["input_size"]), data["crop_pct"]) == ([3, 64, 64], 0.875)
    assert f"local-dir:{out}" in summary.loading


def test_models_of_timm_go_back_to_timm(tmp_path, monkeypatch):
    """A vision transformer whose positions were learned for images of 32 pixels."""
    network = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32).eval()
    backbone = torch.nn.Module()
    backbone.network, backbone.feature_dim = network, 192
    encoder = SimpleNamespace(
        backbone=backbone,
        mean=torch.tensor(MEAN),
        std=torch.tensor(STD),
        eval_size=32,
        center_crop=0.875,
    )
    config = TrainConfig(model=ModelConfig(encoder="timm:vit_tiny_patch16_224"))
    config.pipeline.view_size = 32
    facts = {"imported": {"file": "x.pth", "sha256": "0", "layout": "torchvision"}}
    loaded = LoadedEncoder(tmp_path / "run", tmp_path / "run" / "x", encoder, config, facts, 7)
    monkeypatch.setattr("fastmoco.interop.export.load_for_export", lambda _: loaded)
    out, folder = tmp_path / "a.pth", tmp_path / "folder"
    summary = export(loaded.run, ExportConfig(to=Target.timm, out=out))
    export(loaded.run, ExportConfig(to=Target.huggingface, out=folder))
    models = [eval(summary.loading.removeprefix("model = "))]  # as it is printed
    models.append(timm.create_model(f"local-dir:{folder}", pretrained=True))
    with torch.no_grad():
        for model in models:
            assert torch.equal(model.eval()(images(32)), network(images(32)))


def test_a_model_card_tells_unlike_views_apart():
    loaded = SimpleNamespace(config=SimpleNamespace(policy=POLICIES["moco_v3"]))
    assert _policy_text(loaded) == (
        "crops of 0.08 to 1 of the area, flip 0.5, jitter 0.8, gray 0.2, "
        "blur 1 (second view: 0.1), solarize 0 (second view: 0.2)"
    )


def test_model_card_says_what_the_run_was(run, tmp_path):
    out = tmp_path / "folder"
    (run / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": s, "knn_top1": v}) + "\n" for s, v in ((5, 61.25), (9, 70.0)))
    )
    export(run, ExportConfig(to=Target.huggingface, out=out))
    card = (out / "README.md").read_text()
    for words in (
        "license: other",
        "TODO: state under which license",
        "`train.beton`, fingerprint `0123456789abcdef`",
        "7 steps of 256 images",
        "from weights timm:NAME (SHA-256 abababababababab), projection head taken",
        "K = 64, m = 0.999, T = 0.2, mlp head of 16, asymmetric loss",
        "mean 0.4, 0.5, 0.45",
        "blur 0.5",
        "k = 200, T = 0.1, backbone features) on `test.beton` after 5 steps: 61.25% top-1",
    ):
        assert words in card
    assert "/data/of/mine" not in card
    (run / "metrics.jsonl").unlink()


def detectron2_features(state, x, depths):
    """res5 of a ResNet of basic blocks, written from detectron2's documentation of its modules.

    Each convolution has its batch norm as ``norm``; a stem of one convolution and a max-pool; the
    stages res2 to res5; a block adds ``shortcut`` where it has one.
    """

    def convolve(x, name, stride, padding):
        x = F.conv2d(x, state[f"{name}.weight"], None, stride, padding)
        norm = (state[f"{name}.norm.{key}"] for key in ("running_mean", "running_var"))
        affine = (state[f"{name}.norm.{key}"] for key in ("weight", "bias"))
        return F.batch_norm(x, *norm, *affine)

    x = F.max_pool2d(convolve(x, "stem.conv1", 2, 3).relu(), 3, 2, 1)
    for stage, depth in enumerate(depths):
        for block in range(depth):
            name, stride = f"res{stage + 2}.{block}", 2 if stage and not block else 1
            out = convolve(x, f"{name}.conv1", stride, 1).relu()
            out = convolve(out, f"{name}.conv2", 1, 1)
            if f"{name}.shortcut.weight" in state:
                x = convolve(x, f"{name}.shortcut", stride, 0)
            x = (out + x).relu()
    return x


def test_detectron2_names_and_features(run, tmp_path):
    out = tmp_path / "d2.pth"
    summary = export(run, ExportConfig(to=Target.detectron2, out=out))
    record = torch.load(out, weights_only=True)
    assert record["matching_heuristics"] is True
    assert record["__author__"] == "fastmoco"
    used = dict.fromkeys(record["model"], False)

    class Watched(dict):
        def __getitem__(self, key):
            used[key] = True
            return super().__getitem__(key)

    with torch.no_grad():
        maps = detectron2_features(Watched(record["model"]), images(64), (2, 2, 2, 2))
        assert torch.equal(maps.mean((2, 3)), features_of(run, images(64)))
    assert all(used.values())
    assert "MODEL.PIXEL_MEAN [102.0, 127.5, 114.75]" in summary.loading.splitlines()
    assert "MODEL.RESNETS.DEPTH 18" in summary.loading


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("conv1.weight", "stem.conv1.weight"),
        ("bn1.running_var", "stem.conv1.norm.running_var"),
        ("layer1.0.downsample.0.weight", "res2.0.shortcut.weight"),
        ("layer4.2.bn3.bias", "res5.2.conv3.norm.bias"),
        ("layer3.0.downsample.1.running_mean", "res4.0.shortcut.norm.running_mean"),
        ("layer2.1.conv3.weight", "res3.1.conv3.weight"),
    ],
)
def test_detectron2_names(ours, theirs):
    assert detectron2_name(ours) == theirs


@pytest.mark.parametrize(
    ("part", "normalize"),
    [
        (Part.encoder, Normalize.inside),
        pytest.param(Part.backbone, Normalize.outside, marks=pytest.mark.full),
    ],
)
def test_onnx(narrow, tmp_path, part, normalize):
    out = tmp_path / "a.onnx"
    export(narrow, ExportConfig(to=Target.onnx, out=out, part=part, normalize=normalize))
    encoder = fastmoco.load_encoder(narrow)
    session = onnxruntime.InferenceSession(str(out), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        x = images(16, count)
        with torch.no_grad():
            expected = encoder(x)
            expected = encoder.head(expected) if part is Part.encoder else expected
        if normalize is Normalize.outside:
            x = (x - encoder.mean[:, None, None]) / encoder.std[:, None, None]
        (found,) = session.run(None, {"images": x.numpy()})
        # onnxruntime folds batch norm into the convolutions, which rounds otherwise.
        assert np.abs(found - expected.numpy()).max() < 1e-4 * expected.abs().max()
    properties = {item.key: item.value for item in onnx.load(out).metadata_props}
    assert json.loads(properties["channel_mean"]) == MEAN
    assert properties["normalization"] == normalize.value


def test_a_graph_that_differs_is_not_written(narrow, tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_graph, "_serialized", lambda *_: b"")
    monkeypatch.setattr(onnx_graph, "_difference", lambda *_: 0.01)
    out = tmp_path / "a.onnx"
    with pytest.raises(ValueError, match=r"onnxruntime differs from PyTorch by 0\.01"):
        export(narrow, ExportConfig(to=Target.onnx, out=out))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("part", list(Part))
def test_own_file(narrow, tmp_path, part):
    out = tmp_path / "a b.safetensors"
    export(narrow, ExportConfig(out=out, part=part))
    ours, theirs = fastmoco.load_encoder(narrow), fastmoco.load_encoder(out)
    crops = (255 * images(16)).to(torch.uint8).permute(0, 2, 3, 1)[:, None].contiguous()
    assert torch.equal(ours(images(16)), theirs(images(16)))
    assert (theirs.eval_size, theirs.center_crop) == (16, 0.875)
    if part is Part.encoder:
        embeddings = [e.encode_crops(crops, Features.embedding) for e in (ours, theirs)]
        assert torch.equal(*embeddings)
    else:
        with pytest.raises(ValueError, match="no projection head; set features=backbone"):
            theirs.encode_crops(crops, Features.embedding)
    assert b"/data/of/mine" not in out.read_bytes()
    again = tmp_path / "again.safetensors"
    export(out, ExportConfig(out=again, part=part))  # an export is a RUN too
    assert again.read_bytes() == out.read_bytes()


def test_a_damaged_own_file_is_refused(narrow, tmp_path):
    out = tmp_path / "a.safetensors"
    export(narrow, ExportConfig(out=out))
    content = bytearray(out.read_bytes())
    content[-5] ^= 1
    out.write_bytes(content)
    with pytest.raises(ValueError, match="wrong checksum"):
        fastmoco.load_encoder(out)
    out.write_bytes(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"is damaged or is not a safetensors file"):
        fastmoco.load_encoder(out)
    save_file({"conv1.weight": torch.zeros(2)}, out)
    with pytest.raises(
        ValueError, match="was not exported by fastmoco; import it first: fastmoco import"
    ):
        fastmoco.load_encoder(out)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            ["to=torchvision", "out=a.pth"],
            ["cannot hold", "conv1.weight", "to=onnx"],
        ),
        (["to=timm", "out=a.pth"], ["to=timm cannot hold this encoder (resnet18, small stem"]),
        (["to=huggingface", "out=a"], ["to=huggingface cannot hold this encoder"]),
        (["to=detectron2", "out=a.pth"], ["to=detectron2 cannot hold this encoder"]),
        (["to=onnx", "out=a.pb"], ["out=a.pb must end in .onnx"]),
        (["out=a.pth"], ["out=a.pth must end in .safetensors"]),
        (["to=torchvision"], ["out is not set"]),
        (["to=torchvision", "out=."], ["out=. is a folder"]),
        (["to=pytorch", "out=a.pth"], ["to", "torchvision"]),
        (["to=torchvision", "out=a.pth", "part=encoder"], ["holds only a backbone"]),
        (["out=file/a.safetensors"], ["out=file/a.safetensors: ", "file is not a folder; choose"]),
    ],
)
def test_what_cannot_be_is_said_in_one_line(narrow, tmp_path, capsys, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert cli.main(["export", str(narrow), *options]) in (1, 2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    for word in words:
        assert word in lines[0].lower() or word in lines[0]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_other_refusals(run, tmp_path, capsys):
    def fails(path, *options):
        assert cli.main(["export", str(path), *options]) in (1, 2)
        (line,) = capsys.readouterr().err.strip().splitlines()
        return line

    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.txt").write_text("precious")
    assert "exists; give a new" in fails(run, "to=huggingface", f"out={full}")
    assert [path.name for path in full.iterdir()] == ["thesis.txt"]
    assert "must end in .pth" in fails(run, "to=detectron2", f"out={tmp_path / 'a.pkl'}")
    assert "must end in .pth or .safetensors" in fails(run, "to=timm", f"out={tmp_path / 'a.bin'}")
    assert "does not exist" in fails(tmp_path / "none", f"out={tmp_path / 'a.safetensors'}")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full"]


def test_what_may_be_needed_is_not_replaced(narrow, tmp_path, capsys):
    def exports(path, out, *options):
        code = cli.main(["export", str(path), f"out={out}", *options])
        return code, capsys.readouterr().err.strip()

    own = next((narrow / "checkpoints").glob("*.safetensors"))
    foreign, ours = tmp_path / "foreign.safetensors", tmp_path / "ours.safetensors"
    link = tmp_path / "link.safetensors"
    link.symlink_to(own)
    save_file({"precious": torch.zeros(2)}, foreign)
    before = own.read_bytes(), foreign.read_bytes()
    for out in (own, own.with_name("new.safetensors"), link):
        code, line = exports(narrow, out, "overwrite=true")
        assert code == 2
        assert "is in a run's folder of checkpoints; give another path" in line
    code, line = exports(narrow, foreign)
    assert code == 2
    assert line.endswith("foreign.safetensors exists; set overwrite=true to replace it")
    assert (own.read_bytes(), foreign.read_bytes()) == before
    assert exports(narrow, foreign, "overwrite=true")[0] == 0
    fastmoco.load_encoder(foreign)
    for _ in range(2):  # our own file says whose it is
        assert exports(narrow, ours)[0] == 0
    content = ours.read_bytes()
    code, line = exports(ours, ours, "overwrite=true")
    assert code == 2
    assert "is the file that is exported; give another path" in line
    assert ours.read_bytes() == content


def test_a_run_may_remove_the_checkpoint_that_is_exported(narrow, tmp_path, monkeypatch):
    run = tmp_path / "run"
    shutil.copytree(narrow, run)

    def load_and_remove(path):
        checkpoint = load_checkpoint(path)
        shutil.rmtree(run / "checkpoints")
        return checkpoint

    monkeypatch.setattr("fastmoco.interop.loaded_encoder.load_checkpoint", load_and_remove)
    export(run, ExportConfig(out=tmp_path / "a.safetensors"))
    assert fastmoco.load_encoder(tmp_path / "a.safetensors")
