"""`fastmoco feature-maps`: what a hook sees, of the crop that evaluation sees."""

import json

import matplotlib.image
import numpy as np
import pytest
import torch

import fastmoco
from fastmoco import cli
from fastmoco.data.dataset import open_dataset
from fastmoco.evaluate.features import FeatureRequest, feature_batches
from tests.pictures import encoded, picture, write_class_folders
from tests.runs import write_run


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("maps")
    write_run(folder / "run")
    write_class_folders(folder / "images", classes=2, per_class=2)
    assert cli.main(["convert", str(folder / "images"), str(folder / "set.beton")]) == 0
    return folder


def maps(capsys, place, *options):
    capsys.readouterr()
    assert cli.main(["feature-maps", str(place / "run"), *options, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("layer", ["", "bn1", "layer2.0.conv1", "relu"])
def test_maps_are_what_a_hook_sees(place, tmp_path, capsys, layer):
    """Also of bn1, whose output the ReLU behind it overwrites."""
    out = tmp_path / "maps.npy"
    image = f"image={place / 'images/class_1/1.jpg'}"
    found = maps(capsys, place, image, f"layer={layer}", f"out={out}")
    encoder = fastmoco.load_encoder(place / "run")
    seen = []
    module = encoder.backbone.get_submodule(layer or "conv1")
    module.register_forward_hook(lambda _, __, output: seen.append(output.clone()))
    # The crop by the loader, of the same JPEG in the dataset file.
    request = FeatureRequest(
        features="backbone", batch_size=1, loader="beton", sample_ids=np.array([3])
    )
    with open_dataset(place / "set.beton") as dataset:
        assert dataset.name(3) == "class_1/1.jpg"
        list(feature_batches(encoder, dataset, request))
    expected = seen[0][0]
    assert found["layer"] == (layer or "conv1")
    assert found["shape"] == list(expected.shape)
    torch.testing.assert_close(torch.from_numpy(np.load(out)), expected)
    again = tmp_path / "of the set.npy"
    maps(
        capsys, place, f"image={place / 'set.beton'}", "sample=3", f"layer={layer}", f"out={again}"
    )
    assert np.array_equal(np.load(again), np.load(out))


def test_the_picture(place, tmp_path, capsys):
    out = tmp_path / "maps.png"
    image = f"image={place / 'images/class_0/0.jpg'}"
    found = maps(capsys, place, image, f"out={out}", "layer=layer4")
    assert found["shown"] == 32
    large = matplotlib.image.imread(out)
    assert maps(capsys, place, image, f"out={out}", "layer=layer4", "channels=3")["shown"] == 3
    assert matplotlib.image.imread(out).shape[0] < large.shape[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["layer=layer1.0.conv3"], "layer1.0 has layer1.0.conv1, layer1.0.bn1, layer1.0.relu"),
        (["layer=cnov1"], "layer=cnov1 is unknown; did you mean conv1?"),
        (["image=null"], "image is not set"),
        (["image=missing.jpg"], "missing.jpg: no such file"),
        (["image=broken.jpg"], "broken.jpg: "),
        (["image=set.beton", "sample=4"], "sample must be an id of set.beton, 0 to 3, got 4"),
        (["out=maps.jpg"], "out=maps.jpg must end in .png or .npy"),
        (["channels=0"], "channels must be 1 or more, got 0"),
        (["pipeline.center_crop=2"], "pipeline.center_crop must be in (0, 1], got 2.0"),
        (["pipeline.eval_size=-1"], "pipeline.eval_size must be 0 or more, got -1"),
    ],
)
def test_wrong_options_get_one_line(place, monkeypatch, capsys, options, words):
    monkeypatch.chdir(place)
    (place / "broken.jpg").write_bytes(encoded(picture(0))[:200])
    capsys.readouterr()
    image = "image=images/class_0/0.jpg"
    assert cli.main(["feature-maps", "run", image, *options]) in (1, 2)
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert words in line
