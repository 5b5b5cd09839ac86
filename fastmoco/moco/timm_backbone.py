"""Any model of timm as backbone, up to its pooled feature."""

import difflib
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from fastmoco.errors import UsageError
from fastmoco.moco.backbone import Backbone, NormLayer


class TimmBackbone(Backbone):
    """A model of timm, randomly initialized, without its classifier.

    Attributes:
        network: The model; its parameters have timm's names.
        feature_dim: D, the length of its pooled feature.
    """

    def __init__(
        self, name: str, *, view_size: int, norm_layer: NormLayer = nn.BatchNorm2d
    ) -> None:
        """Create the model, and try it on one image.

        Args:
            name: timm's name of the model, such as ``vit_small_patch16_224``.
            view_size: Side of the images, pixels.
            norm_layer: Replaces each batch norm, with the same settings and weights.

        Raises:
            UsageError: If timm is missing or has no such model, or if the model does not take
                images of this size, gives no feature vector, or has a batch norm that cannot be
                replaced.
        """
        super().__init__()
        self.network = create_network(name, view_size)
        self.feature_dim = _feature_dim(self.network, name, view_size)
        remove_dropout(self.network)
        if type(norm_layer(1)) is not nn.BatchNorm2d:
            replace_batch_norm(self.network, name, norm_layer)

    def freeze_patch_projection(self) -> None:
        """Keep the random weights of a vision transformer's first layer.

        It makes MoCo v3's training more stable (arXiv:2104.02057, section 4.3).

        Raises:
            UsageError: If there is no such layer.
        """
        projection = getattr(getattr(self.network, "patch_embed", None), "proj", None)
        if not isinstance(projection, nn.Module):
            raise UsageError(
                "model.freeze_patch_projection=true needs a model with a patch projection, such as "
                "model.encoder=timm:vit_small_patch16_224"
            )
        projection.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """``(N, 3, H, W)`` to features ``(N, feature_dim)``."""
        features: Tensor = self.network(images)
        return features


def import_timm(option: str) -> ModuleType:
    """The package timm.

    Raises:
        UsageError: If it is missing, naming the option that needs it.
    """
    try:
        import timm
    except ImportError as error:
        raise UsageError(f"{option} needs timm; install it: pip install timm") from error
    module: ModuleType = timm
    return module


def create_network(
    name: str, view_size: int, *, pretrained: bool = False, overlay: dict[str, Any] | None = None
) -> nn.Module:
    """Create a model of timm without its classifier.

    Args:
        name: timm's name, with or without a tag.
        view_size: Side of the images, pixels.
        pretrained: Load the weights that the tag names (timm downloads them); else random ones.
        overlay: What differs from timm's description of these weights, such as a ``file``.

    Raises:
        UsageError: If timm is missing or has no such model.
    """
    timm = import_timm(f"model.encoder=timm:{name}")
    known = timm.list_models()
    if name.split(".")[0] not in known:  # also: hf-hub:NAME would download
        near = difflib.get_close_matches(name, known, n=1)
        raise UsageError(
            f"model.encoder=timm:{name} is unknown to timm {timm.__version__}"
            + (
                f"; did you mean timm:{near[0]}?"
                if near
                else "; timm.list_models() lists its names"
            )
        )
    # Some models have a fixed size; dynamic_img_size lets vision transformers evaluate others too.
    sized: dict[str, Any] = {"img_size": view_size}
    for options in ({**sized, "dynamic_img_size": True}, sized, {}):
        try:
            model: nn.Module = timm.create_model(
                name,
                pretrained=pretrained,
                pretrained_cfg_overlay=overlay,
                num_classes=0,
                **options,
            )
        except TypeError:
            if not options:
                raise
        else:
            return model
    raise AssertionError


@torch.no_grad()
def _feature_dim(network: nn.Module, name: str, view_size: int) -> int:
    """Measure the length of a feature; models state it under several names, or incorrectly."""
    network.eval()
    try:
        feature = network(torch.zeros(1, 3, view_size, view_size))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"model.encoder=timm:{name} does not take views of {view_size} pixels ({reason}); set "
            "pipeline.view_size to a size that it takes"
        ) from error
    finally:
        network.train()
    if not isinstance(feature, Tensor) or feature.ndim != 2:
        raise UsageError(f"model.encoder=timm:{name} gives no feature vector; choose another model")
    return feature.shape[1]


def remove_dropout(network: nn.Module) -> None:
    """Switch off dropout and stochastic depth: a checkpoint holds no state of their generator."""
    for module in network.modules():
        if isinstance(module, _DropoutNd):
            module.p = 0.0
        for attribute in ("drop_prob", "drop_rate"):  # GhostNet's is a function with a rate of 0.2
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)


def replace_batch_norm(network: nn.Module, name: str, norm_layer: NormLayer) -> None:
    """Replace each batch norm by `norm_layer`, in place; names in the state stay.

    Raises:
        UsageError: If one is not two-dimensional with weights and running statistics.
    """
    from timm.layers.norm_act import BatchNormAct2d

    replaced: dict[nn.Module, nn.Module] = {}
    for parent in list(network.modules()):
        for child_name, old in list(parent.named_children()):
            if not isinstance(old, _BatchNorm):
                continue
            if type(old) not in (nn.BatchNorm2d, BatchNormAct2d) or not (
                old.affine and old.track_running_stats and old.momentum is not None
            ):
                raise UsageError(
                    f"model.encoder=timm:{name} has a {type(old).__name__} that cannot be split or "
                    "synchronized; set moco.batch_norm=plain"
                )
            if old not in replaced:
                replaced[old] = _replacement(old, norm_layer)
            setattr(parent, child_name, replaced[old])


def _replacement(old: _BatchNorm, norm_layer: NormLayer) -> nn.Module:
    new: Any = norm_layer(old.num_features)
    new.eps, new.momentum = old.eps, old.momentum
    if hasattr(old, "act"):  # timm's BatchNormAct2d also is the activation after it
        new.drop, new.act = old.drop, old.act
        new.register_forward_hook(_activate)
    new.load_state_dict(old.state_dict())
    module: nn.Module = new
    return module


def _activate(module: Any, _: tuple[Tensor, ...], output: Tensor) -> Tensor:
    activated: Tensor = module.act(module.drop(output))
    return activated
