import pytest
import torch
from safetensors.torch import save_file
from torchvision.models import resnet18

from fastmoco.errors import UsageError
from fastmoco.evaluate.torchvision_weights import load_torchvision_weights
from fastmoco.moco.encoders import build_encoder
from fastmoco.moco.settings import ModelConfig, Stem


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_torchvisions_weights_give_torchvisions_features(tmp_path, suffix):
    theirs = resnet18().eval()
    path = tmp_path / f"weights{suffix}"
    save_file(theirs.state_dict(), path) if suffix == ".safetensors" else torch.save(
        theirs.state_dict(), path
    )
    ours = build_encoder(ModelConfig(encoder="resnet18", stem=Stem.imagenet)).eval()
    load_torchvision_weights(ours, path)
    images = torch.randn(2, 3, 64, 64)
    theirs.fc = torch.nn.Identity()
    torch.testing.assert_close(ours(images), theirs(images), rtol=0, atol=0)


def test_what_does_not_fit_is_refused(tmp_path):
    narrow = build_encoder(ModelConfig(encoder="resnet18", stem=Stem.imagenet, width=4))
    path = tmp_path / "wide.pth"
    torch.save(
        build_encoder(ModelConfig(encoder="resnet18", stem=Stem.imagenet, width=8)).state_dict(),
        path,
    )
    with pytest.raises(UsageError, match=r"conv1\.weight is \(8, 3, 7, 7\) there, \(4, 3, 7, 7\)"):
        load_torchvision_weights(narrow, path)
    torch.save(
        build_encoder(ModelConfig(encoder="resnet50", stem=Stem.imagenet, width=4)).state_dict(),
        path,
    )
    with pytest.raises(UsageError, match="another architecture"):
        load_torchvision_weights(narrow, path)
    torch.save(narrow, path)  # a pickled module could run code
    with pytest.raises(UsageError, match=r"wide\.pth: refused: unpickling it would call"):
        load_torchvision_weights(narrow, path)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_torchvision_weights(narrow, tmp_path / "none.pth")
