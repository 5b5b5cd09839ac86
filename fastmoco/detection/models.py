"""Detectors that are built from torchvision's parts on a pretrained backbone.

The published figures come from detectron2. Where its parts differ, this keeps torchvision's:
RoIAlign without the half-pixel shift, smooth L1 with beta = 1/9 instead of L1 in the proposal
network and box head, and for masks on C4 a separate head instead of one that shares conv5 with the
boxes. docs/detection.md lists all differences.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.models.detection.generalized_rcnn import GeneralizedRCNN
from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
from torchvision.models.detection.mask_rcnn import MaskRCNNHeads, MaskRCNNPredictor
from torchvision.models.detection.roi_heads import RoIHeads
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

from fastmoco.detection.backbones import Conv5Head, build_backbone, norm_layer, set_batch_norm
from fastmoco.detection.settings import Arch, DetectConfig, DetectionTask
from fastmoco.errors import UsageError
from fastmoco.moco.resnet import ResNet
from fastmoco.ranks import Ranks

ASPECT_RATIOS = (0.5, 1.0, 2.0)
PYRAMID_LEVELS = 5
SCORE_THRESHOLD = 0.05
DETECTIONS_PER_IMAGE = 100


class ReadyTransform(GeneralizedRCNNTransform):  # type: ignore[misc]
    """Normalizes and pads images that have the right size already; all draws are made before."""

    def resize(
        self, image: Tensor, target: dict[str, Tensor] | None = None
    ) -> tuple[Tensor, dict[str, Tensor] | None]:
        """Return both as they are."""
        return image, target


class Detector(GeneralizedRCNN):  # type: ignore[misc]
    """Faster, Mask or Keypoint R-CNN.

    In training ``detector(images, targets)`` returns the losses by name, as in torchvision.
    """

    @torch.no_grad()
    def predict(self, image: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """Detect the objects of one image, in the coordinates of the original image.

        Args:
            image: ``(3, h, w)`` float in 0..1, at test size.
            size: Height and width of the original image.

        Returns:
            ``boxes`` ``(n, 4)``, ``labels``, ``scores``; by task also ``masks``, probabilities
            ``(n, 1, height, width)``, or ``keypoints`` ``(n, K, 3)``.
        """
        images, _ = self.transform([image])
        features = self.backbone(images.tensors)
        if isinstance(features, Tensor):
            features = {"0": features}
        proposals, _ = self.rpn(images, features)
        found, _ = self.roi_heads(features, proposals, images.image_sizes)
        result: list[dict[str, Tensor]] = self.transform.postprocess(
            found, images.image_sizes, [size]
        )
        return result[0]


def build_detector(
    resnet: ResNet,
    cfg: DetectConfig,
    *,
    num_classes: int,
    num_keypoints: int,
    mean: Sequence[float],
    std: Sequence[float],
    ranks: Ranks,
) -> Detector:
    """Build a detector; new layers are initialized from torch's global generator.

    Args:
        resnet: The backbone; its layers are reused and changed in place.
        cfg: Task, architecture, sizes.
        num_classes: Number of classes, background included.
        num_keypoints: Keypoints per object; 0: none.
        mean: Channel mean in 0..1.
        std: Channel standard deviation in 0..1.
        ranks: Ranks that share batch norm's statistics.

    Raises:
        UsageError: If the settings do not fit each other.
    """
    check_detector(cfg, num_keypoints)
    set_batch_norm(resnet, cfg.batch_norm, ranks)
    width = resnet.conv1.out_channels
    norm = norm_layer(cfg.batch_norm, ranks)
    backbone = build_backbone(resnet, cfg.arch, norm)
    head: nn.Module
    if cfg.arch is Arch.c4:
        head = Conv5Head(resnet, norm)
        head_channels = head.out_channels
    else:
        head_channels = 16 * width  # 1,024 in the paper
        head = TwoMLPHead(backbone.out_channels * region_size(cfg) ** 2, head_channels)
    heads = RoIHeads(
        _roi_align(cfg, region_size(cfg)),
        head,
        FastRCNNPredictor(head_channels, num_classes),
        fg_iou_thresh=0.5,
        bg_iou_thresh=0.5,
        batch_size_per_image=cfg.model.roi_samples,
        positive_fraction=0.25,
        bbox_reg_weights=None,
        score_thresh=SCORE_THRESHOLD,
        nms_thresh=0.5,
        detections_per_img=DETECTIONS_PER_IMAGE,
    )
    _add_task_heads(heads, cfg, backbone.out_channels, width, num_classes, num_keypoints)
    transform = ReadyTransform(0, 0, list(mean), list(std))
    return Detector(backbone, _proposal_network(cfg, backbone.out_channels), heads, transform)


def check_detector(cfg: DetectConfig, num_keypoints: int) -> None:
    """Check that the settings fit each other.

    Raises:
        UsageError: If not; one line that names the option to change.
    """
    sizes = cfg.model.anchor_sizes
    if cfg.arch is Arch.fpn and len(sizes) != PYRAMID_LEVELS:
        raise UsageError(
            f"model.anchor_sizes has {len(sizes)} sizes; arch=fpn needs one for each of its "
            f"{PYRAMID_LEVELS} levels, such as [32,64,128,256,512]"
        )
    if not sizes:
        raise UsageError("model.anchor_sizes must name a size or more, got []; leave it out")
    if cfg.task is DetectionTask.keypoints and not num_keypoints:
        raise UsageError(
            "task=keypoints, but no category of data.train names keypoints; give an annotation "
            "file that does (person_keypoints_train2017.json), or task=boxes"
        )


def region_size(cfg: DetectConfig) -> int:
    """Side of a region's features before the box head; larger for C4, where conv5 halves it."""
    return cfg.model.roi_size or (14 if cfg.arch is Arch.c4 else 7)


def _roi_align(cfg: DetectConfig, size: int) -> MultiScaleRoIAlign:
    maps = [str(level) for level in range(PYRAMID_LEVELS - 1 if cfg.arch is Arch.fpn else 1)]
    return MultiScaleRoIAlign(featmap_names=maps, output_size=size, sampling_ratio=2)


def _proposal_network(cfg: DetectConfig, channels: int) -> RegionProposalNetwork:
    sizes = cfg.model.anchor_sizes
    levels = tuple((s,) for s in sizes) if cfg.arch is Arch.fpn else (tuple(sizes),)
    anchors = AnchorGenerator(levels, (ASPECT_RATIOS,) * len(levels))
    # Candidates before non-maximum suppression: on each level of a pyramid as many as are kept in
    # total; on the one map of C4 and C5 six times as many, as published (12,000 for 2,000).
    factor = 1 if cfg.arch is Arch.fpn else 6
    kept = {"training": cfg.model.proposals, "testing": cfg.model.test_proposals}
    return RegionProposalNetwork(
        anchors,
        RPNHead(channels, anchors.num_anchors_per_location()[0]),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=cfg.model.rpn_samples,
        positive_fraction=0.5,
        pre_nms_top_n={mode: factor * count for mode, count in kept.items()},
        post_nms_top_n=kept,
        nms_thresh=0.7,
    )


def _add_task_heads(
    heads: RoIHeads,
    cfg: DetectConfig,
    channels: int,
    width: int,
    num_classes: int,
    num_keypoints: int,
) -> None:
    """Add the head of Mask R-CNN or Keypoint R-CNN (arXiv:1703.06870)."""
    if cfg.task is DetectionTask.masks:
        hidden = 4 * width  # 256 in the paper
        heads.mask_roi_pool = _roi_align(cfg, 14)
        heads.mask_head = MaskRCNNHeads(channels, (hidden,) * 4, 1)
        heads.mask_predictor = MaskRCNNPredictor(hidden, hidden, num_classes)
    elif cfg.task is DetectionTask.keypoints:
        hidden = 8 * width  # 512 in the paper
        heads.keypoint_roi_pool = _roi_align(cfg, 14)
        heads.keypoint_head = KeypointRCNNHeads(channels, (hidden,) * 8)
        heads.keypoint_predictor = KeypointRCNNPredictor(hidden, num_keypoints)
