"""Weights that torchvision and timm publish, through their own download code and caches.

Both keep files for the next time: torchvision in torch.hub's folder (``TORCH_HOME``), timm in
Hugging Face's (``HF_HOME``) or torch.hub's. Both write a download under another name first, so a
connection that breaks leaves no file that could be taken for a complete one. A file that was
brought by hand is read from torch.hub's folder (`_Download`): Hugging Face's has names that only
their client can give.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fastmoco.errors import UsageError, first_line, nearest_name
from fastmoco.files import file_sha256
from fastmoco.moco.resnet_designs import RESNETS

HUB_FILE = "model.safetensors"
"""Usual name of the weights at Hugging Face."""


class LibraryWeights(NamedTuple):
    """A backbone as its library has it."""

    tensors: dict[str, Tensor]
    """Under the library's names."""
    mean: list[float]
    """Channel mean in 0..1 that the weights were trained with."""
    std: list[float]
    """Channel standard deviation in 0..1."""


class _Download(NamedTuple):
    """A file that a library downloads."""

    url: str
    path: Path
    """Where it is read from if somebody put it there."""


def torchvision_weights(name: str) -> LibraryWeights:
    """Weights of a ResNet of torchvision, downloaded unless torch.hub's cache has them.

    Args:
        name: ``resnet50`` for torchvision's default weights, ``resnet50.IMAGENET1K_V1`` for others.

    Raises:
        UsageError: If there are no such weights.
        OSError: If they cannot be downloaded, or the file is damaged.
    """
    import torchvision

    model, _, tag = name.partition(".")
    models = [name for name in torchvision.models.list_models() if name in RESNETS]
    if model not in models:
        raise UsageError(f"weights=torchvision:{name} is unknown{nearest_name(model, models)}")
    known = torchvision.models.get_model_weights(model)
    if tag and tag not in known.__members__:
        tags = list(known.__members__)
        raise UsageError(f"weights=torchvision:{name} is unknown{nearest_name(tag, tags)}")
    chosen = known[tag] if tag else known.DEFAULT
    download = _Download(chosen.url, _hub_path(chosen.url.rpartition("/")[2]))
    with _one_line(f"torchvision:{name}", download):
        _check_cached(download.path)
        tensors = chosen.get_state_dict(
            progress=sys.stderr.isatty(), check_hash=True, weights_only=True, map_location="cpu"
        )
    preset = chosen.transforms()
    return LibraryWeights(tensors, list(preset.mean), list(preset.std))


def timm_weights(name: str, view_size: int) -> LibraryWeights:
    """Weights of a model of timm without its classifier, downloaded unless they are cached.

    Args:
        name: timm's name, such as ``vit_small_patch16_224.dino`` (without a tag: timm's default).
        view_size: Side of the images, pixels: timm resizes learned positions to it.

    Raises:
        UsageError: If timm is missing or has no such model.
        OSError: If they cannot be downloaded, or the file is damaged.
    """
    from fastmoco.moco.timm_backbone import create_network, import_timm

    source = f"timm:{name}"
    published = _published(source, import_timm(f"weights={source}"), name)
    download, overlay = _timm_download(published), None
    by_hand = download.path.exists()
    if published.hf_hub_id and by_hand:
        overlay = {"file": str(download.path), "custom_load": published.custom_load}
    with _one_line(source, download):
        if not by_hand:
            _check_hub_file(published)
        network = create_network(name, view_size, pretrained=True, overlay=overlay)
        if by_hand:
            _check_complete(
                network, create_network(name, view_size, pretrained=True, overlay=overlay)
            )
        else:
            _check_hub_file(published)
    return LibraryWeights(network.state_dict(), list(published.mean), list(published.std))


def _check_complete(network: nn.Module, again: nn.Module) -> None:
    """Check that a file holds a model: timm skips what a file lacks, and leaves it random.

    Args:
        network: The model, loaded from the file.
        again: The same, loaded over other random weights.

    Raises:
        OSError: If they differ.
    """
    pairs = zip(network.state_dict().items(), again.state_dict().values(), strict=True)
    if lacking := [name for (name, one), other in pairs if not torch.equal(one, other)]:
        raise OSError(f"it does not hold {lacking[0]} of this model")


def _hub_path(name: str) -> Path:
    """Path of a file in torch.hub's folder of weights."""
    return Path(torch.hub.get_dir(), "checkpoints", name)


def _timm_download(published: Any) -> _Download:
    """The file of timm's weights, saved under their name: most files are `HUB_FILE` there."""
    from huggingface_hub import hf_hub_url

    if not published.hf_hub_id:
        return _Download(published.url, _hub_path(published.url.rpartition("/")[2]))
    file = published.hf_hub_filename or HUB_FILE
    repository, _, revision = published.hf_hub_id.partition("@")
    name = ".".join(filter(None, [published.architecture, published.tag]))
    url = hf_hub_url(repository, file, revision=revision or None)
    return _Download(url, _hub_path(name + Path(file).suffix))


def _check_cached(path: Path) -> None:
    """Check a file that torch.hub would take from its cache: it does so unseen.

    Raises:
        OSError: If its checksum is not the one in its name.
    """
    expected = torch.hub.HASH_REGEX.search(path.name)
    if expected and path.exists() and not file_sha256(path).startswith(expected[1]):
        raise OSError(f"{path} is damaged (wrong checksum); remove it to download it again")


def _published(source: str, timm: Any, name: str) -> Any:
    """What timm knows of the weights: where they are, and the normalization.

    Raises:
        UsageError: If it knows none.
    """
    try:
        found = timm.get_pretrained_cfg(name)
    except RuntimeError:  # the tag
        found = None
    if not (found and (found.hf_hub_id or found.url)):
        raise UsageError(
            f"timm {timm.__version__} knows no weights={source}; timm.list_pretrained() lists them"
        )
    return found


def _check_hub_file(published: Any) -> None:
    """Check a file in Hugging Face's cache by its name there, which their client does not do.

    Raises:
        OSError: If its checksum is another.
    """
    from huggingface_hub import try_to_load_from_cache

    if not published.hf_hub_id:
        return
    name = published.hf_hub_filename or HUB_FILE
    found = try_to_load_from_cache(published.hf_hub_id, name)
    path = Path(found).resolve() if isinstance(found, str) else None
    if path and len(path.name) == 64 and file_sha256(path) != path.name:
        raise OSError(f"{path} is damaged (wrong checksum); remove it to download it again")


@contextmanager
def _one_line(source: str, download: _Download) -> Iterator[None]:
    """Within the block, turn any error of a library into one line, and its prints to stderr.

    What a download raises depends on the library's HTTP client and its version.
    """
    try:
        with redirect_stdout(sys.stderr):
            yield
    except UsageError:
        raise
    except Exception as error:
        if download.path.exists():
            raise OSError(
                f"weights={source} cannot be read from {download.path} ({first_line(error)}); "
                f"remove it, or replace it with {download.url}"
            ) from error
        raise OSError(
            f"weights={source} cannot be downloaded or read ({first_line(error)}); repeat the "
            f"command with a connection, or bring the file by hand: download {download.url} and "
            f"save it as {download.path}"
        ) from error
