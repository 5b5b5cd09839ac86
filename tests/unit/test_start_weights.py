"""What an encoder starts from: RUN, FILE, torchvision:NAME, timm:NAME; local downloads."""

import hashlib
import threading
from argparse import Namespace
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import timm
import torch
import torchvision
from huggingface_hub import constants
from safetensors.torch import save, save_file
from torch import nn

from fastmoco.configuration import load_config
from fastmoco.data.dataset import open_dataset
from fastmoco.errors import UsageError
from fastmoco.moco.build import build_query_encoder
from fastmoco.runs.checkpoint import load_checkpoint, save_checkpoint, under_prefix
from fastmoco.runs.checkpoint_files import CheckpointError
from fastmoco.runs.run_folder import RunFolder
from fastmoco.train.beginning import begin
from fastmoco.train.checks import check_config
from fastmoco.train.header import run_facts
from fastmoco.train.run_warnings import warnings_for
from fastmoco.train.settings import TrainConfig, run_path
from fastmoco.train.trainer import Trainer
from fastmoco.weights.library import timm_weights, torchvision_weights
from fastmoco.weights.settings import start_name
from fastmoco.weights.start import read_start
from tests.encoders import images, randomize
from tests.runs import OPTIONS, write_colors, write_run

VIT = "test_vit"
VIT_OPTIONS = [f"model.encoder=timm:{VIT}", "model.stem=imagenet", "model.width=64"]
VIT_OPTIONS += ["pipeline.view_size=160", "moco.batch_norm=plain", "moco.batch_norm_splits=1"]


def configured(*options) -> TrainConfig:
    return load_config(TrainConfig, [*OPTIONS, "train.compile=never", *map(str, options)])


def started(source, cfg, *, settable=True):
    encoder = build_query_encoder(cfg.model, cfg.moco, view_size=cfg.pipeline.view_size)
    start = read_start(Path(source), encoder, cfg, settable=settable)
    encoder.load_state_dict(start.state)
    return encoder, start


def apart(state):
    return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}


# ---------------------------------------------------------------- downloads


class Server:
    """Answers on 127.0.0.1: whole files, files that are cut, or nothing."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.cut = False
        self.requests: list[str] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_HEAD(self):
                self.answer(b"")

            def do_GET(self):
                content = server.files.get(self.path.rpartition("/")[2], b"")
                self.answer(content[: len(content) // 2] if server.cut else content)

            def answer(self, sent):
                server.requests.append(f"{self.command} {self.path}")
                content = server.files.get(self.path.rpartition("/")[2])
                if content is None:
                    self.send_error(404)
                    return
                self.send_response(200)
                self.send_header("Content-Length", str(len(content)))
                self.send_header("ETag", f'"{server.etag or sha256(content)}"')
                self.send_header("X-Repo-Commit", "a" * 40)
                self.end_headers()
                self.wfile.write(sent)

        self.etag = ""
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def server() -> Iterator[Server]:
    found = Server()
    yield found
    found.close()


@pytest.fixture
def hub(monkeypatch, tmp_path, server) -> Path:
    """Torch.hub's folder, and torchvision's ResNet-18 as a small file of the server."""
    torch.save({"conv1.weight": torch.arange(6.0), "fc.weight": torch.ones(2)}, tmp_path / "w")
    content = (tmp_path / "w").read_bytes()
    name = f"resnet18-{sha256(content)[:8]}.pth"
    server.files[name] = content
    entry = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.value
    monkeypatch.setattr(entry, "url", f"{server.url}/models/{name}")
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    return tmp_path / "torch" / "hub" / "checkpoints"


def test_torchvisions_weights_are_downloaded_once(hub, server, capsys):
    for _ in range(2):
        found = torchvision_weights("resnet18")
        assert torch.equal(found.tensors["conv1.weight"], torch.arange(6.0))
        assert found.mean == pytest.approx([0.485, 0.456, 0.406])
    assert len(server.requests) == 1
    assert capsys.readouterr().out == ""  # `--json` prints there
    (path,) = hub.iterdir()
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(OSError, match=r"is damaged \(wrong checksum\); remove it to download"):
        torchvision_weights("resnet18.IMAGENET1K_V1")


@pytest.mark.parametrize("fault", ["wrong checksum", "cut", "offline"])
def test_a_download_that_fails_leaves_one_line_and_no_file(hub, server, fault):
    (name,) = server.files
    if fault == "wrong checksum":
        server.files[name] = server.files[name][:-1] + b"x"
    server.cut = fault == "cut"
    if fault == "offline":
        server.close()
    words = "Connection refused" if fault == "offline" else "invalid hash value"
    with pytest.raises(OSError, match=rf"torchvision:resnet18 cannot be .*{words}") as error:
        torchvision_weights("resnet18")
    assert "\n" not in str(error.value)
    assert f"download {server.url}/models/{name} and save it as {hub / name}" in str(error.value)
    assert list(hub.iterdir()) == []
    if fault == "offline":
        (hub / name).write_bytes(server.files[name])
        assert torch.equal(torchvision_weights("resnet18").tensors["fc.weight"], torch.ones(2))


@pytest.fixture
def hugging_face(monkeypatch, tmp_path, server) -> Path:
    """Hugging Face's cache, the weights of a small model of timm on the server, no waiting."""
    server.files["model.safetensors"] = save(apart(timm.create_model(VIT).state_dict()))
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setattr("time.sleep", lambda _: None)
    return tmp_path / "hub"


def test_timms_weights_are_downloaded_once_and_checked(hugging_face, server):
    found = [timm_weights(VIT, 160) for _ in range(2)]
    assert (
        sum(request.startswith("GET") and "safetensors" in request for request in server.requests)
        == 1
    )
    server.close()
    found.append(timm_weights(f"{VIT}.r160_in1k", 160))  # offline, from the cache
    assert all(
        torch.equal(one.tensors["norm.weight"], found[0].tensors["norm.weight"]) for one in found
    )
    assert "head.weight" not in found[0].tensors
    assert (found[0].mean, found[0].std) == ([0.5] * 3, [0.5] * 3)
    (blob,) = hugging_face.glob("*/blobs/*")
    blob.write_bytes(blob.read_bytes()[:-1] + b"x")
    with pytest.raises(OSError, match=r"is damaged \(wrong checksum\); remove it to download"):
        timm_weights(VIT, 160)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("wrong checksum", r"is damaged \(wrong checksum\)"),
        ("cut", "."),
        ("offline", "connection"),
    ],
)
def test_a_download_by_timm_that_fails_is_one_line(hugging_face, server, fault, words):
    if fault == "wrong checksum":
        server.etag = "0" * 64
    server.cut = fault == "cut"
    if fault == "offline":
        server.close()
    with pytest.raises(OSError, match=words) as error:
        timm_weights(VIT, 160)
    assert "\n" not in str(error.value)
    assert "weights=timm:test_vit cannot be downloaded or read" in str(error.value)
    if fault != "wrong checksum":
        assert list(hugging_face.glob("*/blobs/*")) == []


def test_a_file_of_timm_that_is_brought_by_hand_is_read(hugging_face, server):
    server.close()
    with pytest.raises(OSError, match="cannot be downloaded") as error:
        timm_weights(VIT, 160)
    advice = str(error.value).partition("download ")[2]
    url, _, path = advice.partition(" and save it as ")
    assert url.startswith(server.url)
    assert url.endswith(f"/{VIT}.r160_in1k/resolve/main/model.safetensors")
    assert path == str(hugging_face.parent / f"torch/hub/checkpoints/{VIT}.r160_in1k.safetensors")
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    given = apart(timm.create_model(VIT).state_dict())
    Path(path).write_bytes(save(given))
    found = timm_weights(VIT, 160)
    assert torch.equal(found.tensors["pos_embed"], given["pos_embed"])
    for fault in ("half a file", "another model's", "a folder"):
        if fault == "half a file":
            Path(path).write_bytes(save(given)[:-9])
        elif fault == "another model's":
            Path(path).write_bytes(save({"conv1.weight": torch.ones(2)}))
        else:
            Path(path).unlink()
            Path(path).mkdir()
        with pytest.raises(OSError, match="remove it, or replace it with http") as error:
            timm_weights(VIT, 160)
        assert f"weights=timm:test_vit cannot be read from {path} (" in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("torchvision:resnet51", "weights=torchvision:resnet51 is unknown; did you mean resnet"),
        ("torchvision:vit_b_16", "weights=torchvision:vit_b_16 is unknown"),
        ("torchvision:resnet18.V1", "is unknown; known: IMAGENET1K_V1"),
        ("timm:resnet18.nope", "knows no weights=timm:resnet18.nope; timm.list_pretrained"),
        ("timm:vit_small_patch16_224", r"set model.encoder=timm:vit_small_patch16_224 model.stem"),
        ("frist", "weights=frist does not exist; give a run folder, a file of weights, torchvis"),
    ],
)
def test_sources_that_cannot_be(source, words):
    with pytest.raises((UsageError, FileNotFoundError), match=words):
        started(source, configured())


# ---------------------------------------------------------------- what fits


def test_a_run_starts_another_encoder_with_its_head(tmp_path):
    run = write_run(tmp_path / "run")
    encoder, start = started(run, configured())
    theirs = under_prefix("model.query_encoder", load_checkpoint(run).tensors)
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in encoder.state_dict().items())
    assert (start.source, start.head, start.mean) == ("run", "taken", [0.5, 0.45, 0.4])
    _, start = started(f"{run}@1", configured("moco.dim=12"))
    assert start.head == "new (theirs has another form)"


def test_weights_of_another_architecture_name_the_options_to_set(tmp_path):
    run = write_run(tmp_path / "run")
    cfg = configured("model.width=8", "model.stem=small")
    with pytest.raises(UsageError, match=r"set model.stem=small_stride2 model.width=4$"):
        started(run, cfg)
    with pytest.raises(UsageError, match=r"than RUN .*; give weights of the architecture of RUN"):
        started(run, cfg, settable=False)
    save_file(apart(torchvision.models.resnet18().state_dict()), tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=r"set model.stem=imagenet model.width=64$"):
        started(tmp_path / "w.safetensors", configured())
    save_file({"blocks.0.weight": torch.zeros(2)}, tmp_path / "w.safetensors")
    with pytest.raises(UsageError, match=r"weights=.*w.safetensors: the tensor names of this file"):
        started(tmp_path / "w.safetensors", configured())


def test_torchvisions_weights_give_torchvisions_features(tmp_path):
    theirs = randomize(torchvision.models.resnet18())
    save_file(apart(theirs.state_dict()), tmp_path / "w.safetensors")
    form = ["model.stem=imagenet", "model.width=64"]
    encoder, _ = started(tmp_path / "w.safetensors", configured(*form))
    theirs.fc = nn.Identity()
    with torch.no_grad():
        assert torch.equal(encoder.eval().backbone(images(64)), theirs(images(64)))


def test_a_files_strides_are_the_encoders(tmp_path):
    source = randomize(build_query_encoder(configured().model, configured().moco))
    state = {f"module.{name}": t for name, t in source.backbone.state_dict().items()}
    save_file(apart(state), tmp_path / "w.safetensors")
    encoder, start = started(tmp_path / "w.safetensors", configured())
    assert torch.equal(encoder.backbone.bn1.running_mean, source.backbone.bn1.running_mean)
    assert start.head == "new (the weights have none)"
    # The width differs: the stem, which leaves no trace, is taken as it is set.
    with pytest.raises(UsageError, match=r"set model.width=4$"):
        started(tmp_path / "w.safetensors", configured("model.width=8"))


def test_a_pickle_is_read_as_by_import_and_its_container_is_said(tmp_path, monkeypatch):
    """By the guarded child: code in a ``.pt`` never runs."""
    source = randomize(build_query_encoder(configured().model, configured().moco))
    other = {name: tensor + 1 for name, tensor in source.backbone.state_dict().items()}
    record = {"student": other, "teacher": source.backbone.state_dict(), "args": Namespace(a=1)}
    torch.save(record, tmp_path / "w.pt")
    encoder, start = started(tmp_path / "w.pt", configured())
    assert torch.equal(encoder.backbone.bn1.running_mean, source.backbone.bn1.running_mean)
    assert start.source == "w.pt (teacher)"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.pt").write_bytes(b"\x80\x02cos\nmkdir\n(S'trace'\ntR.")
    with pytest.raises(UsageError, match=r"evil.pt: refused: unpickling it would call os.mkdir"):
        started(tmp_path / "evil.pt", configured())
    assert not (tmp_path / "trace").exists()


@pytest.mark.usefixtures("hugging_face")
def test_a_model_of_timm_takes_timms_weights_and_files(tmp_path, server):
    cfg = configured(*VIT_OPTIONS)
    encoder, start = started(f"timm:{VIT}", cfg)
    assert (start.source, start.mean) == (f"timm:{VIT}", [0.5] * 3)
    (tmp_path / "w.safetensors").write_bytes(server.files["model.safetensors"])
    other, _ = started(tmp_path / "w.safetensors", cfg)
    state = other.backbone.state_dict()
    assert all(torch.equal(t, state[name]) for name, t in encoder.backbone.state_dict().items())
    with pytest.raises(UsageError, match="does not fit timm:test_vit for views of 80 pixels: netw"):
        started(write_vit_run(tmp_path / "run"), configured(*VIT_OPTIONS, "pipeline.view_size=80"))


def write_vit_run(path: Path) -> Path:
    return write_run(path, *VIT_OPTIONS)


@pytest.mark.parametrize(
    ("weights", "name"),
    [
        (None, "pretrained"),
        ("random", "random"),
        ("torchvision:resnet50.IMAGENET1K_V1", "torchvision-resnet50.IMAGENET1K_V1"),
        ("a b/first", "first"),
        ("runs/w.pth", "w"),
    ],
)
def test_names_of_starts(weights, name):
    assert start_name(weights and Path(weights)) == name


# ---------------------------------------------------------------- runs


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = write_colors(tmp_path_factory.mktemp("colors"), seed=1, per_class=8)
    with open_dataset(folder) as found:
        yield found


def trainer_of(dataset, folder, *options) -> Trainer:
    options = (f"data.train={dataset.path}", f"run_dir={folder}", *options)
    cfg = configured("precision=float32", *options)
    return Trainer(cfg, RunFolder(run_path(cfg)), dataset, check_config(cfg))


def equal(one: nn.Module, other: nn.Module) -> bool:
    state = other.state_dict()
    return all(torch.equal(t, state[name]) for name, t in one.state_dict().items())


@pytest.mark.parametrize("mechanism", ["moco", "moco_v3"])
def test_a_run_starts_both_encoders_and_resumes_without_the_weights(dataset, tmp_path, mechanism):
    form = [f"moco.mechanism={mechanism}", "moco.batch_norm_splits=1", "moco.dim=8"]
    form += ["moco.hidden_dim=8"] if mechanism == "moco_v3" else []
    source = write_run(tmp_path / "source", *form)
    options = [*form, f"weights={source}"]
    trainer = trainer_of(dataset, tmp_path / "run", *options)
    fresh = trainer_of(dataset, tmp_path / "other", *form)
    begin(trainer)
    begin(fresh)
    model, theirs = trainer.step.model, fresh.step.model
    assert not equal(model.query_encoder, theirs.query_encoder)
    assert equal(model.query_encoder, model.key_encoder)
    theirs.start_from(model.query_encoder.state_dict())
    assert equal(model, theirs)  # a predictor or queue is that of the seed
    assert trainer.channel_mean == [0.5, 0.45, 0.4]
    assert trainer.step.mean.tolist() == pytest.approx([0.5, 0.45, 0.4])
    save_checkpoint(trainer.run.checkpoints, trainer.checkpoint(), keep=1)
    source.rename(tmp_path / "moved")
    again = trainer_of(dataset, tmp_path / "run", *options)
    begin(again)
    assert equal(again.step.model, model)
    assert again.channel_mean == trainer.channel_mean
    assert again.origins == trainer.origins
    assert again.origins[0]["weights"] == "source"


def test_statistics_that_are_set_are_kept(dataset, tmp_path):
    source = write_run(tmp_path / "source")
    own = ["pipeline.channel_mean=[0.1,0.1,0.1]", "pipeline.channel_std=[1,1,1]"]
    trainer = trainer_of(dataset, tmp_path / "run", f"weights={source}", *own)
    begin(trainer)
    assert trainer.channel_mean == [0.1, 0.1, 0.1]
    assert trainer.step.mean.tolist() == pytest.approx([0.1] * 3)


@pytest.fixture
def before(dataset, tmp_path) -> Path:
    """A run of one epoch, 3 steps."""
    trainer = trainer_of(dataset, tmp_path / "before", "train.epochs=1")
    trainer.steps_done = 3
    save_checkpoint(trainer.run.checkpoints, trainer.checkpoint(), keep=1)
    return tmp_path / "before"


@pytest.mark.parametrize("has_weights", [False, True])
def test_a_run_from_a_run_is_warned_by_what_that_began_with(dataset, tmp_path, has_weights):
    options = [f"weights={write_run(tmp_path / 'source')}"] if has_weights else []
    first = trainer_of(dataset, tmp_path / "first", "train.epochs=1", *options)
    begin(first)
    first.steps_done = 3
    save_checkpoint(first.run.checkpoints, first.checkpoint(), keep=1)
    on = trainer_of(dataset, tmp_path / "on", "train.epochs=2", f"train.from_run={first.run.path}")
    begin(on)
    said = "\n".join(warnings_for(on.cfg, run_facts(on)))
    for words in ("of the random first key encoder", "too few to learn from nothing"):
        assert (words in said) is not has_weights


def test_another_runs_state_is_gone_on_with(dataset, before, tmp_path):
    options = [f"train.from_run={before}@3", "train.epochs=2", "seed=7", "moco.temperature=0.1"]
    trainer = trainer_of(dataset, tmp_path / "run", *options)
    begin(trainer)
    assert (trainer.steps_done, trainer.total_steps) == (3, 6)
    saved = under_prefix("model", load_checkpoint(before).tensors)
    assert all(torch.equal(t, saved[name]) for name, t in trainer.step.model.state_dict().items())
    assert trainer.origins == [{"run": "before", "step": 3}]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["train.epochs=1"], r"is at step 3, and this run ends at step 3; set train.epochs=2 or"),
        (["train.max_steps=2"], r"ends at step 2; set train.max_steps=4 or more"),
        (["moco.queue_size=32", "moco.dim=4"], r"set moco.dim=8 moco.queue_size=16 as there"),
        (
            ["global_batch_size=12"],
            r"set global_batch_size=8 as there; weights=.* starts a new run",
        ),
        (["weights=x"], r"so weights=x has no effect; set only one of them"),
    ],
)
def test_a_state_that_does_not_fit_names_what_to_set(dataset, before, tmp_path, options, words):
    with pytest.raises(UsageError, match=words):
        begin(trainer_of(dataset, tmp_path / "run", f"train.from_run={before}", *options))


def test_states_that_are_none(dataset, before, tmp_path):
    def fails(source, words, data=dataset):
        with pytest.raises((UsageError, CheckpointError), match=words):
            begin(trainer_of(data, tmp_path / "run", f"train.from_run={source}"))

    fails(f"{before}@4", "has no checkpoint of step 4; it has 3")
    fails(write_run(tmp_path / "encoder"), "holds an encoder, not the state of a run; weights=")
    other = write_colors(tmp_path / "other", seed=2, per_class=8)
    with open_dataset(other) as data:
        fails(before, "was trained on another dataset than .*other; give that one", data)
