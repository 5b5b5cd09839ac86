"""What each mechanism is built of, draws, skips and refuses."""

import dataclasses
import math

import pytest
import torch
from torch.nn import functional as F

from fastmoco.configuration import load_config
from fastmoco.data.settings import DataConfig
from fastmoco.draws.device import fork, stream_integers
from fastmoco.draws.streams import Draw
from fastmoco.errors import UsageError
from fastmoco.moco.build import build_model, build_query_encoder
from fastmoco.moco.in_batch_loss import in_batch_info_nce
from fastmoco.moco.mechanism import Views
from fastmoco.moco.memory_bank import draw_others
from fastmoco.moco.momentum import momentum_at
from fastmoco.moco.settings import (
    OWN_HEADS,
    BatchNorm,
    Head,
    Loss,
    Mechanism,
    MocoConfig,
    ModelConfig,
    Negatives,
    Pretext,
    Stem,
    V3Heads,
)
from fastmoco.optim.optimizers import build_optimizer
from fastmoco.optim.schedules import base_learning_rate
from fastmoco.ranks import ALONE, Ranks
from fastmoco.train.checks import check_config
from fastmoco.train.settings import TrainConfig
from tests.optional import require

OTHERS = [m for m in Mechanism if m is not Mechanism.moco]
YES, NO = torch.tensor(True), torch.tensor(False)


def small_moco(mechanism, **changes):
    hidden = {"hidden_dim": 12} if mechanism in OWN_HEADS else {}
    return MocoConfig(mechanism=mechanism, dim=8, queue_size=16, **hidden, **changes)


def small_model(mechanism, ranks=ALONE, **changes):
    encoder = ModelConfig(encoder="resnet18", stem=Stem.small_stride2, width=4)
    return build_model(encoder, small_moco(mechanism, **changes), ranks, num_samples=40)


def contrast_of(model, count=6):
    views, ids = torch.randn(2, count, 3, 16, 16), torch.arange(count)
    return model(Views(views[0], views[1], ids, ids + 3, ids + 100))


@pytest.mark.parametrize("mechanism", Mechanism)
def test_every_mechanism_keeps_the_interface(mechanism):
    torch.manual_seed(0)
    model = small_model(mechanism)
    contrast = contrast_of(model)
    assert contrast.query.shape == contrast.key.shape == (len(contrast.rank), 8)
    torch.testing.assert_close(contrast.query.norm(dim=1), torch.ones(len(contrast.rank)))
    torch.testing.assert_close(contrast.key.norm(dim=1), torch.ones(len(contrast.rank)))
    assert not contrast.query.requires_grad
    assert not contrast.key.requires_grad
    contrast.loss.backward()
    assert all(parameter.grad is not None for parameter in model.learnable())
    assert {id(p) for p in model.query_encoder.parameters()} <= {id(p) for p in model.learnable()}
    statistics = [tensor for tensors in model.running_statistics() for tensor in tensors]
    names = [name for name, _ in model.named_buffers() if "running" in name]
    assert len(statistics) == len(names) > 0
    negatives = model.num_negatives(6)
    assert int(contrast.rank.max()) <= negatives
    assert mechanism.value in model.describe(6)


@pytest.mark.parametrize("mechanism", Mechanism)
def test_negatives_are_as_many_as_is_said(mechanism):
    """With all embeddings equal the loss is that of chance, ln(K+1)."""
    torch.manual_seed(0)
    model = small_model(mechanism).eval()
    with torch.no_grad():
        for buffer in (getattr(model, "bank", None), getattr(model, "queue", None)):
            if buffer is not None:
                rows = buffer if isinstance(buffer, torch.Tensor) else buffer.keys
                rows.copy_(F.normalize(torch.ones_like(rows), dim=1))
    images, ids = torch.zeros(6, 3, 16, 16), torch.arange(6)
    contrast = model(Views(images, images, ids, ids, ids))
    loss = contrast.loss.item() / (contrast.terms * contrast.factor)
    if mechanism in (Mechanism.end_to_end, Mechanism.moco_v3):
        assert loss == pytest.approx(math.log(model.num_negatives(6) + 1), abs=1e-5)
    else:  # queries are one vector, the dictionary another
        similarity = contrast.negative_similarity.item()
        positive = (contrast.query * contrast.key).sum(1).mean().item()
        share = math.exp(positive / 0.2) + model.num_negatives(6) * math.exp(similarity / 0.2)
        assert loss == pytest.approx(math.log(share) - positive / 0.2, abs=1e-4)


@pytest.mark.parametrize("mechanism", OTHERS)
def test_a_skipped_step_changes_nothing(mechanism):
    torch.manual_seed(0)
    model, asked = small_model(mechanism), small_model(mechanism)
    asked.load_state_dict(model.state_dict())
    contrast = contrast_of(model)
    with torch.no_grad():
        for parameter in model.query_encoder.parameters():
            parameter.add_(0.1)
    asked.load_state_dict(model.state_dict())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    asked.after_step(contrast, NO)
    assert all(map(torch.equal, before.values(), asked.state_dict().values()))
    asked.after_step(contrast, YES)
    model.after_step(contrast)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(asked.state_dict()[name], value, msg=name)
    changed = [n for n, value in before.items() if not torch.equal(value, model.state_dict()[n])]
    key = "key_encoder"
    memory = {"memory_bank": "bank", "moco_v3": key, "fast_moco": key}
    expected = memory.get(mechanism, "nothing")
    assert {name.split(".")[0] for name in changed} == {expected} - {"nothing"}


def test_bank_moves_the_entries_of_the_batch_alone():
    torch.manual_seed(0)
    model = small_model(Mechanism.memory_bank, bank_momentum=0.75)
    before, contrast = model.bank.clone(), contrast_of(model)
    address = model.bank.data_ptr()
    torch.testing.assert_close(contrast.key, before[3:9])
    model.after_step(contrast)
    expected = F.normalize(0.75 * before[3:9] + 0.25 * contrast.query, dim=1)
    torch.testing.assert_close(model.bank[3:9], expected)
    assert torch.equal(model.bank[:3], before[:3])
    assert torch.equal(model.bank[9:], before[9:])
    assert model.bank.data_ptr() == address
    assert "bank" in model.state_dict()


def test_drawn_others_are_never_of_the_batch_and_equally_likely():
    batch = torch.tensor([7, 0, 11, 4, 5])
    stream = fork(torch.tensor([99]), Draw.NEGATIVES, 0)
    drawn = draw_others(batch, stream, 7000, 12)
    counts = torch.bincount(drawn, minlength=12)
    assert counts[batch].tolist() == [0] * 5
    others = counts[counts > 0]
    assert len(others) == 7
    assert (others - 1000).abs().max() < 5 * math.sqrt(1000)
    assert torch.equal(drawn, draw_others(batch.flip(0), stream, 7000, 12))
    another = fork(torch.tensor([98]), Draw.NEGATIVES, 0)
    assert not torch.equal(drawn, draw_others(batch, another, 7000, 12))
    with pytest.raises(ValueError, match="global_batch_size=5 leaves none of the dataset's 5"):
        draw_others(batch, stream, 4, 5)


def test_stream_integers_are_splitmix_by_whole_numbers():
    """The hash of `draws`, in Python's integers."""
    bits = (1 << 64) - 1

    def absorb(state, word):
        return mix(state + 0x9E3779B97F4A7C15 * (word + 1) & bits)

    def mix(z):
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & bits
        z = (z ^ z >> 27) * 0x94D049BB133111EB & bits
        return z ^ z >> 31

    key = 0xFEDCBA9876543210
    stream = fork(torch.tensor([key - (1 << 64)]), Draw.NEGATIVES, 1)
    part = absorb(absorb(key, int(Draw.NEGATIVES) << 32 | 1 << 16), 2)
    expected = [(mix(part + 0x9E3779B97F4A7C15 * i & bits) >> 1) % 1_281_167 for i in range(1, 6)]
    assert stream_integers(stream, 2, 5, 1_281_167).tolist() == [expected]


def test_in_batch_loss_is_computed_in_float32_under_autocast():
    rows = F.normalize(torch.randn(8, 32), dim=1)
    with torch.autocast("cpu", torch.bfloat16):
        loss, _, similarity = in_batch_info_nce(rows, rows, torch.arange(8), 0.07)
    assert loss.dtype == similarity.dtype == torch.float32


def test_simclr_has_batch_norm_in_its_head():
    """``projection_head`` of its code: no biases, and no shift in the last batch norm."""
    head = small_model(Mechanism.end_to_end, head=Head.mlp_norm).query_encoder.head
    kinds = [type(layer).__name__ for layer in head]
    assert kinds == ["Linear", "BatchNorm1d", "ReLU", "Linear", "BatchNorm1d"]
    trained = [name for name, value in head.named_parameters() if value.requires_grad]
    assert trained == ["0.weight", "1.weight", "1.bias", "3.weight", "4.weight"]


@pytest.mark.parametrize(
    ("heads", "projector", "last_affine"),
    [("vit", [32, 12, 12, 8], [False]), ("resnet", [32, 12, 8], [])],
)
def test_moco_v3_heads_are_those_of_the_code(heads, projector, last_affine):
    """``_build_mlp(3 or 2, ...)``, and ``_build_mlp(2, ..., last_bn=False)`` of ResNets."""
    model = small_model(Mechanism.moco_v3, v3_heads=V3Heads(heads))
    for head, widths, last in (
        (model.query_encoder.head, projector, [False]),
        (model.predictor, [8, 12, 8], last_affine),
    ):
        linear = [layer for layer in head if isinstance(layer, torch.nn.Linear)]
        norms = [layer for layer in head if isinstance(layer, torch.nn.BatchNorm1d)]
        assert [linear[0].in_features] + [layer.out_features for layer in linear] == widths
        assert [norm.affine for norm in norms] == [True] * (len(linear) - 1) + last
        assert all(layer.bias is None for layer in linear)
        assert sum(isinstance(layer, torch.nn.ReLU) for layer in head) == len(linear) - 1
    key = set(model.key_encoder.state_dict())
    assert key == set(model.query_encoder.state_dict())
    assert not any("momentum" in name for name in model.state_dict())


@pytest.mark.parametrize("end", [0.999, 1.0])
def test_momentum_moves_by_half_a_cosine(end):
    """Where it ends at 1, ``m = 1 - (1 - m_0) (cos(pi k / K) + 1) / 2``, as in arXiv:2006.07733."""
    assert momentum_at(0.99, end, 0) == pytest.approx(0.99)
    assert momentum_at(0.99, end, 0.5) == pytest.approx((0.99 + end) / 2)
    assert momentum_at(0.99, end, 1) == end
    quarter = (math.cos(math.pi / 4) + 1) / 2
    assert momentum_at(0.99, 1.0, 0.25) == pytest.approx(1 - 0.01 * quarter)
    assert momentum_at(0.99, end, 0.25) == pytest.approx(0.99 * quarter + end * (1 - quarter))


@pytest.mark.parametrize(
    ("mechanism", "changes", "end"),
    [
        ("moco", {"final_momentum": 0.9}, 0.9),
        ("moco_v3", {}, 1),
        ("moco_v3", {"final_momentum": 0.7}, 0.7),
    ],
)
def test_keys_follow_by_the_momentum_of_the_progress(mechanism, changes, end):
    torch.manual_seed(0)
    model = small_model(Mechanism(mechanism), momentum=0.5, **changes)
    address = model.momentum.value.data_ptr()
    model.set_progress(0.5)
    m = (0.5 + end) / 2
    assert model.momentum.value.item() == pytest.approx(m)
    assert model.momentum.value.data_ptr() == address  # a captured graph reads it
    assert f"momentum 0.5 to {end:g}" in model.describe(8)
    contrast = contrast_of(model)
    with torch.no_grad():
        for parameter in model.query_encoder.parameters():
            parameter.add_(torch.randn_like(parameter))
    query, key = ([*e.parameters()] for e in (model.query_encoder, model.key_encoder))
    expected = [m * k + (1 - m) * q for q, k in zip(query, key, strict=True)]
    model.after_step(contrast)
    torch.testing.assert_close(key, expected)


@pytest.mark.parametrize(
    ("mechanism", "final"),
    [("moco", None), ("moco", 0.75), ("moco_v3", 0.75), ("fast_moco", None)],
)
def test_momentum_that_stays_is_a_number(mechanism, final):
    """As before there was a schedule, bit for bit: old runs go on as they began."""
    model = small_model(Mechanism(mechanism), momentum=0.75, final_momentum=final)
    model.set_progress(0.5)
    assert model.momentum.step == 0.25
    assert isinstance(model.momentum.step, float)
    assert "momentum" not in model.describe(8)


@pytest.mark.parametrize("mechanism", ["moco", "end_to_end", "memory_bank"])
def test_width_of_the_heads_hidden_layer(mechanism):
    def widths(hidden):
        model = small_model(Mechanism(mechanism), head_hidden_dim=hidden)
        head = model.query_encoder.head
        return [
            head[0].in_features,
            head[0].out_features,
            head[2].in_features,
            head[2].out_features,
        ]

    assert widths(0) == [32, 32, 32, 8]
    assert widths(20) == [32, 20, 20, 8]


def test_width_of_the_heads_of_halves():
    moco = MocoConfig(pretext=Pretext.cross_channel, dim=8, queue_size=16, head_hidden_dim=20)
    encoder = ModelConfig(encoder="halves:resnet18", stem=Stem.small_stride2, width=8)
    heads = build_model(encoder, moco).query_encoder.head.children()
    assert [(head[0].out_features, head[2].in_features) for head in heads] == [(20, 20)] * 2


@pytest.mark.parametrize("mechanism", Mechanism)
def test_the_query_encoder_alone_starts_as_that_of_the_model(mechanism):
    moco = small_moco(mechanism)
    encoder = ModelConfig(encoder="resnet18", stem=Stem.small_stride2, width=4)
    torch.manual_seed(3)
    whole = build_model(encoder, moco, num_samples=40).query_encoder.state_dict()
    torch.manual_seed(3)
    alone = build_query_encoder(encoder, moco).state_dict()
    assert whole.keys() == alone.keys()
    assert all(torch.equal(value, alone[name]) for name, value in whole.items())


@pytest.mark.parametrize(
    ("mechanism", "devices", "kind"),
    [
        ("end_to_end", 1, "plain"),
        ("end_to_end", 2, "synchronized"),
        ("memory_bank", 2, "plain"),
        ("moco_v3", 2, "synchronized"),
        ("fast_moco", 2, "synchronized"),
    ],
)
def test_batch_norm_that_auto_chooses(mechanism, devices, kind):
    model = small_model(Mechanism(mechanism), Ranks(0, devices))
    synchronized = "Synchronized" in type(model.query_encoder.backbone.bn1).__name__
    assert synchronized == (kind == "synchronized")
    if mechanism in OWN_HEADS:
        assert ("Synchronized" in type(model.predictor[1]).__name__) == synchronized
    assert not model.shuffle_keys


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"mechanism": "end_to_end", "symmetric": True}, r"moco\.symmetric=true .*=false"),
        ({"mechanism": "memory_bank", "symmetric": True}, "its positives are entries, not views"),
        ({"mechanism": "moco_v3", "symmetric": True}, "MoCo v3 is always symmetric"),
        ({"mechanism": "moco_v3", "batch_norm": "shuffled"}, r"moco\.batch_norm=shuffled"),
        ({"mechanism": "end_to_end", "batch_norm": "eman"}, r"moco\.batch_norm=eman"),
        ({"mechanism": "memory_bank", "batch_norm_splits": 2}, r"moco\.batch_norm_splits=1"),
        ({"mechanism": "end_to_end", "loss": "fused"}, r"moco\.loss=fused .*moco\.loss=auto"),
        ({"mechanism": "moco_v3", "loss": "chunked"}, r"moco\.loss=chunked"),
        (
            {"mechanism": "moco_v3", "head": "linear"},
            r"its own heads; set moco\.head=mlp",
        ),
        ({"mechanism": "fast_moco", "symmetric": True}, "Fast-MoCo is always symmetric"),
        ({"mechanism": "fast_moco", "head": "linear"}, r"=fast_moco has its own heads"),
        ({"mechanism": "fast_moco", "v3_heads": "resnet"}, r"=moco_v3 only, got fast_moco"),
        ({"mechanism": "moco_v3", "hidden_dim": 0}, r"moco\.hidden_dim must be 1 or more, got 0"),
        ({"negatives": "other_view"}, r"moco\.negatives=other_view .*moco\.mechanism=end_to_end"),
        ({"bank_momentum": 0.9}, r"moco\.bank_momentum=0\.9 .*=memory_bank"),
        ({"mechanism": "end_to_end", "hidden_dim": 8}, r"=moco_v3 or fast_moco only, got"),
        (
            {"mechanism": "memory_bank", "bank_momentum": 1.0},
            r"must be in \[0, 1\), got 1\.0",
        ),
        (
            {"mechanism": "memory_bank", "queue_size": 0},
            r"moco\.queue_size must be 1 or more",
        ),
        ({"head_hidden_dim": -1}, r"moco\.head_hidden_dim must be 0 or more, got -1"),
        ({"head": "linear", "head_hidden_dim": 8}, r"moco\.head_hidden_dim=8 .*head=linear"),
        ({"mechanism": "moco_v3", "head_hidden_dim": 8}, r"moco\.head_hidden_dim=8 .*hidden_dim"),
        ({"head": "mlp_norm"}, r"moco\.head=mlp_norm .*=end_to_end, got moco; set moco\.head=mlp"),
        ({"v3_heads": "resnet"}, r"moco\.v3_heads=resnet .*=moco_v3"),
        ({"final_momentum": 1.5}, r"moco\.final_momentum must be in \[0, 1\], got 1\.5"),
    ],
)
def test_what_means_nothing_is_refused(options, words):
    kinds = {
        "mechanism": Mechanism,
        "batch_norm": BatchNorm,
        "loss": Loss,
        "head": Head,
        "negatives": Negatives,
    }
    with pytest.raises(UsageError, match=words) as found:
        MocoConfig(**{name: kinds.get(name, type(v))(v) for name, v in options.items()})
    assert "\n" not in str(found.value)
    overrides = [f"moco.{name}={str(value).lower()}" for name, value in options.items()]
    with pytest.raises(UsageError, match=words):
        load_config(TrainConfig, overrides)


@pytest.mark.parametrize("mechanism", OTHERS)
def test_what_is_not_read_is_not_refused(tmp_path, mechanism):
    moco = MocoConfig(mechanism=mechanism, queue_size=2, momentum=0.9)
    check_config(TrainConfig(data=DataConfig(train=tmp_path), global_batch_size=16, moco=moco))


def test_fast_moco_needs_views_of_two_equal_halves(tmp_path):
    moco = small_moco(Mechanism.fast_moco)
    cfg = TrainConfig(data=DataConfig(train=tmp_path), moco=moco)
    cfg.pipeline.view_size = 33
    with pytest.raises(UsageError, match=r"2 x 2 equal patches, got pipeline\.view_size=33"):
        check_config(cfg)


@pytest.mark.parametrize(("encoder", "size"), [("alexnet_bn", 96), ("timm:test_vit", 48)])
def test_fast_moco_needs_patches_that_the_encoder_takes(tmp_path, encoder, size):
    """Views of this size fit it; halves of them do not."""
    if encoder.startswith("timm:"):
        require("timm")
    moco = dataclasses.replace(small_moco(Mechanism.fast_moco), batch_norm=BatchNorm.plain)
    cfg = TrainConfig(data=DataConfig(train=tmp_path), moco=moco)
    cfg.model.encoder, cfg.pipeline.view_size = encoder, size
    words = rf"does not take patches of {size // 2} pixels, half of pipeline\.view_size={size}"
    with pytest.raises(UsageError, match=words):
        check_config(cfg)
    cfg.pipeline.view_size *= 4
    check_config(cfg)


@pytest.mark.parametrize(
    ("name", "mechanism", "negatives", "rate"),
    [("simclr", "end_to_end", 8190, 4.8), ("moco_v3", "moco_v3", 4095, 4.8)],
)
def test_presets_fit_together(tmp_path, name, mechanism, negatives, rate):
    cfg = load_config(TrainConfig, [f"experiment={name}", f"data.train={tmp_path}"])
    check_config(cfg)
    check_config(cfg, Ranks(0, 8))
    assert cfg.moco.mechanism.value == mechanism
    assert base_learning_rate(cfg.optimizer, cfg.global_batch_size) == pytest.approx(rate)
    moco = dataclasses.replace(cfg.moco, hidden_dim=12) if name == "moco_v3" else cfg.moco
    model = build_model(ModelConfig(encoder="resnet18", width=4), moco)
    assert model.num_negatives(cfg.global_batch_size) == negatives


def test_moco_v3_trains_a_vision_transformer_but_for_its_patches(tmp_path):
    require("timm")
    small = ["model.encoder=timm:test_vit", "pipeline.view_size=32", "moco.hidden_dim=12"]
    cfg = load_config(TrainConfig, ["experiment=moco_v3_vit", f"data.train={tmp_path}", *small])
    check_config(cfg)
    torch.manual_seed(0)
    model = build_model(cfg.model, cfg.moco, view_size=32)
    patches = model.query_encoder.backbone.network.patch_embed.proj.weight
    assert not any(patches is parameter for parameter in model.learnable())
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = build_optimizer(model.learnable(), cfg.optimizer)
    views, ids = torch.randn(2, 4, 3, 32, 32), torch.arange(4)
    contrast = model(Views(views[0], views[1], ids, ids, ids))
    contrast.loss.backward()
    optimizer.step()
    model.after_step(contrast)
    frozen = [name for name, value in model.named_parameters() if torch.equal(value, before[name])]
    layer = "backbone.network.patch_embed.proj"
    assert frozen == [
        f"{encoder}.{layer}.{part}"
        for encoder in ("query_encoder", "key_encoder")
        for part in ("weight", "bias")
    ]


def test_the_vision_transformer_of_the_preset_is_timms(tmp_path):
    require("timm")
    import timm

    cfg = load_config(TrainConfig, ["experiment=moco_v3_vit", f"data.train={tmp_path}"])
    assert cfg.model.encoder.removeprefix("timm:") in timm.list_models()
    assert base_learning_rate(cfg.optimizer, cfg.global_batch_size) == pytest.approx(0.0024)
