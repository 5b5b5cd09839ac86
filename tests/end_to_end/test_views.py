"""`fastmoco views`: the picture, its captions, and that a run of the same seed sees the same."""

import json
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
import torch

from fastmoco import cli
from fastmoco.data.dataset import open_dataset
from fastmoco.draws.host import draw_keys
from fastmoco.pipelines.contract import EpochPlan
from fastmoco.pipelines.policies import POLICIES, Policy, PoolOp
from fastmoco.pipelines.pool import draw_ops
from fastmoco.pipelines.view_parameters import draw_parameters
from fastmoco.visualize.crop_figure import _first_views, without_crop
from fastmoco.visualize.settings import ViewsConfig
from fastmoco.visualize.views import captions
from tests.pictures import write_class_folders


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    folder = tmp_path_factory.mktemp("views")
    write_class_folders(folder / "images", classes=3, per_class=4)
    assert cli.main(["convert", str(folder / "images"), str(folder / "set.beton")]) == 0
    return folder / "set.beton"


def write(dataset, out, *options):
    arguments = ["views", str(dataset), "view_size=32", f"out={out}", *options]
    assert cli.main(arguments) == 0
    return matplotlib.image.imread(out)


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_every_policy(dataset, tmp_path, capsys, policy):
    out = tmp_path / "a b.png"
    capsys.readouterr()
    first = write(dataset, out, f"policy={policy}", "count=4")
    assert capsys.readouterr().out.strip() == str(out)
    assert np.array_equal(first, write(dataset, out, f"policy={policy}", "count=4"))
    assert not np.array_equal(first, write(dataset, out, f"policy={policy}", "count=4", "seed=1"))


def test_the_path_as_json(dataset, tmp_path, capsys):
    out = tmp_path / "v.png"
    capsys.readouterr()
    write(dataset, out, "--json")
    assert json.loads(capsys.readouterr().out) == str(out)


def test_a_set_of_fewer_images_is_drawn_complete(dataset, tmp_path):
    every, more = (write(dataset, tmp_path / "v.png", f"count={n}") for n in (12, 13))
    assert np.array_equal(every, more)
    (tmp_path / "one").mkdir()
    copied = next((dataset.parent / "images").rglob("*.jpg")).read_bytes()
    (tmp_path / "one" / "a.jpg").write_bytes(copied)
    assert cli.main(["convert", str(tmp_path / "one"), str(tmp_path / "one.beton")]) == 0
    assert write(tmp_path / "one.beton", tmp_path / "v.png").size > 0


def test_more_images_than_a_row_holds(dataset, tmp_path):
    few, many = (write(dataset, tmp_path / "v.png", f"count={n}") for n in (8, 13))  # of 12
    assert many.shape[0] == 2 * few.shape[0]
    assert many.shape[1] == few.shape[1]
    assert write(dataset, tmp_path / "v.png", "count=1").shape[0] == few.shape[0]


@pytest.mark.parametrize("policy", ["moco_v2", "imagenette_pool"])
def test_more_views_than_a_run_makes(dataset, tmp_path, policy):
    """The first two are the run's; the rest are drawn alike and differ."""
    options = [f"policy={policy}", "count=2"]
    one, two, four = (write(dataset, tmp_path / "v.png", *options, f"views={n}") for n in (1, 2, 4))
    assert (one.shape[0] / 2, four.shape[0] / 5) == (two.shape[0] / 3,) * 2
    assert np.array_equal(two, write(dataset, tmp_path / "v.png", *options))
    keys = torch.from_numpy(draw_keys(0, 0, np.arange(50, dtype=np.int64)))
    drawn = [captions(keys, view, POLICIES[policy]) for view in range(4)]
    assert all(drawn[a] != drawn[b] for a in range(4) for b in range(a))


def test_four_pictures_of_each_image(dataset, tmp_path):
    """The original, the view with its crop, without it, and the center crop."""
    out = tmp_path / "crops.png"
    few, many = (write(dataset, out, "crops=true", f"count={n}") for n in (1, 3))
    assert many.shape[0] > 2 * few.shape[0]
    assert many.shape[1] == few.shape[1]


def test_without_the_crop_a_view_is_the_image_and_all_else_stays(dataset):
    policy = Policy(flip_probability=1.0, crop_scale=(0.2, 0.3))
    cfg = ViewsConfig(view_size=24, policy=policy)
    with open_dataset(dataset) as opened:
        plan = EpochPlan(seed=0, epoch=0, num_samples=len(opened), global_batch_size=4)
        ids = next(plan.batches())
        cropped = _first_views(opened, plan, policy, cfg)
        whole = _first_views(opened, plan, without_crop(policy), cfg)
        central = _first_views(opened, plan, None, replace(cfg, center_crop=1.0))
        for row, sample in enumerate(ids.tolist()):
            assert opened.heights[sample] != opened.widths[sample]
            # Of an image that is no square: its central square, as evaluation takes it; flipped.
            assert np.array_equal(whole[row], central[row, :, ::-1])
            assert not np.array_equal(cropped[row], whole[row])


def test_a_policy_file(dataset, tmp_path):
    path = tmp_path / "my policy.yaml"
    path.write_text("base: cifar\ncrop_scale: [0.9, 1.0]\n")
    mine = write(dataset, tmp_path / "v.png", f"policy={path}")
    assert not np.array_equal(mine, write(dataset, tmp_path / "v.png", "policy=cifar"))


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("count=0", ", got 0"),
        ("views=0", "views must be 1 or more, got 0"),
        ("policy=moco", "unknown policy=moco; did you mean moco_v"),
        ("policy=none.yaml", "policy=none.yaml: no such file"),
        ("view_sise=3", "unknown option view_sise; did you mean view_size?"),
        ("view_size=0", "fastmoco: view_size must be 1 or more, got 0"),
        ("center_crop=1.5", "fastmoco: center_crop must be in (0, 1], got 1.5"),
    ],
)
def test_wrong_options_get_one_line(dataset, tmp_path, capsys, option, message):
    capsys.readouterr()
    assert cli.main(["views", str(dataset), f"out={tmp_path / 'v.png'}", option]) in (1, 2)
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "v.png").exists()


def test_captions_name_what_was_drawn():
    keys = torch.from_numpy(draw_keys(0, 0, np.arange(50, dtype=np.int64)))
    drawn = draw_parameters(keys, [1], POLICIES["moco_v2"])
    words = [caption.split(", ") for caption in captions(keys, 1, POLICIES["moco_v2"])]
    assert ["flip" in image for image in words] == drawn.flip.tolist()
    assert ["gray" in image for image in words] == drawn.grayscale.tolist()
    blurred = [any(word.startswith("blur ") for word in image) for image in words]
    assert blurred == (drawn.blur_sigma > 0).tolist()


def test_captions_follow_the_recipe_of_their_view():
    """MoCo v3: the first view is always blurred, the second alone is solarized."""
    keys = torch.from_numpy(draw_keys(0, 0, np.arange(50, dtype=np.int64)))
    first, second = (captions(keys, view, POLICIES["moco_v3"]) for view in (0, 1))
    assert all("blur " in caption for caption in first)
    assert not any("solarize" in caption for caption in first)
    drawn = draw_parameters(keys, [1], POLICIES["moco_v3"]).solarize <= 1
    assert ["solarize" in caption for caption in second] == drawn.tolist()
    assert drawn.any()


def test_captions_of_a_pool_are_in_order():
    policy = Policy(flip_probability=0, pool=list(PoolOp))
    keys = torch.from_numpy(draw_keys(0, 0, np.arange(50, dtype=np.int64)))
    for caption, ops in zip(captions(keys, 0, policy), draw_ops(keys, [0], policy), strict=True):
        names = [list(PoolOp)[op].replace("_", " ") for op in ops.tolist() if op]
        assert caption == (", ".join(names) or "nothing")
