"""Semantic segmentation by a fully convolutional network (FCN-16s of arXiv:1911.05722, appendix).

conv5 is dilated and keeps conv4's resolution. The head has two 3 x 3 convolutions of 256 channels
(for a width of 64) with dilation 6, batch norm and ReLU, and a 1 x 1 convolution to the classes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastmoco.detection.backbones import Body, conv3x3, dilate, norm_layer, set_batch_norm
from fastmoco.detection.masks import UNKNOWN
from fastmoco.detection.settings import DetectConfig
from fastmoco.moco.resnet import ResNet
from fastmoco.ranks import Ranks


class Segmenter(nn.Module):
    """A ResNet and a head that predicts the class of each pixel."""

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        resnet: ResNet,
        cfg: DetectConfig,
        *,
        num_classes: int,
        mean: Sequence[float],
        std: Sequence[float],
        ranks: Ranks,
    ) -> None:
        """Build it; new layers are initialized from torch's global generator.

        Args:
            resnet: The backbone; its layers are reused and changed in place.
            cfg: Batch norm and the head's dilation.
            num_classes: Number of classes, background included.
            mean: Channel mean in 0..1.
            std: Channel standard deviation in 0..1.
            ranks: Ranks that share batch norm's statistics.
        """
        super().__init__()
        set_batch_norm(resnet, cfg.batch_norm, ranks)
        norm, hidden = norm_layer(cfg.batch_norm, ranks), 4 * resnet.conv1.out_channels
        dilate(resnet.layer4)
        self.body = Body(resnet, 4)
        self.head = nn.Sequential(
            conv3x3(self.body.out_channels, hidden, norm, cfg.model.dilation),
            conv3x3(hidden, hidden, norm, cfg.model.dilation),
            nn.Conv2d(hidden, num_classes, 1),
        )
        self.register_buffer("mean", torch.tensor(mean)[:, None, None])
        self.register_buffer("std", torch.tensor(std)[:, None, None])

    def logits(self, images: Tensor) -> Tensor:
        """Logits ``(N, num_classes, H, W)`` of images ``(N, 3, H, W)`` in 0..1."""
        coarse = self.head(self.body((images - self.mean) / self.std))
        return F.interpolate(coarse, images.shape[-2:], mode="bilinear", align_corners=False)

    def forward(self, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict[str, Tensor]:
        """Mean cross-entropy over the pixels of known class in a batch of equally large crops.

        A batch without such pixels has loss 0.
        """
        classes = torch.stack([target["classes"] for target in targets])
        logits = self.logits(torch.stack(images))
        total = F.cross_entropy(logits, classes, ignore_index=UNKNOWN, reduction="sum")
        return {"loss_classes": total / (classes != UNKNOWN).sum().clamp(min=1)}

    @torch.no_grad()
    def predict(self, image: Tensor, size: tuple[int, int]) -> dict[str, Tensor]:
        """Predict the class of each pixel of one image.

        Args:
            image: ``(3, h, w)`` float in 0..1.
            size: Height and width of the image; images are tested at their original size.

        Returns:
            ``classes`` ``(h, w)`` int64.
        """
        assert image.shape[1:] == size
        return {"classes": self.logits(image[None])[0].argmax(0)}
