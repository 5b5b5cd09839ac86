"""Open what a detector starts from: the data and a pretrained or random backbone."""

from functools import partial
from pathlib import Path

import torch
from torch import nn

from fastmoco.detection.annotations import SceneSet, check_same_classes
from fastmoco.detection.backbones import check_resnet
from fastmoco.detection.coco import read_coco
from fastmoco.detection.settings import (
    AnnotationFormat,
    DetectConfig,
    DetectionTask,
)
from fastmoco.detection.voc import read_voc
from fastmoco.errors import UsageError
from fastmoco.evaluate.frozen_encoder import FrozenEncoder, load_encoder
from fastmoco.evaluate.overlap import check_shared
from fastmoco.moco.resnet import ResNet
from fastmoco.weights.settings import RANDOM


def open_sets(cfg: DetectConfig) -> tuple[SceneSet, SceneSet]:
    """Open the training set and the test set.

    Raises:
        UsageError: If one is not given or cannot be used, or images are in both.
        AnnotationError: If an annotation or an image is missing or broken.
    """
    data, segment = cfg.data, cfg.task is DetectionTask.segment
    if data.train is None:
        raise UsageError(
            "data.train is not set; give data.train=VOCdevkit, or layout=coco data.train=FILE.json"
        )
    if cfg.layout is AnnotationFormat.voc:
        read = partial(read_voc, classes=tuple(data.classes), segment=segment)
        train = read(data.train, years=data.train_years, split=data.train_split)
        test = read(data.test or data.train, years=data.test_years, split=data.test_split)
    else:
        if data.test is None:
            raise UsageError("data.test is not set; give an annotation file, data.test=FILE.json")
        train = read_coco(data.train, images=data.train_images, option="data.train_images")
        test = read_coco(data.test, images=data.test_images, option="data.test_images")
    check_same_classes(train, test)
    known = {scene.image.resolve() for scene in train.scenes}
    shared = sum(scene.image.resolve() in known for scene in test.scenes)
    check_shared(shared, len(test.scenes), is_allowed=cfg.allow_overlap, option="allow_overlap")
    if not segment:
        train = train.to_learn_from(
            ignored_too=data.train_difficult and cfg.layout is AnnotationFormat.voc
        )
    return train, test


def open_backbone(run: Path, cfg: DetectConfig) -> tuple[ResNet, FrozenEncoder]:
    """Open the backbone to fine-tune, and its encoder for the normalization.

    Args:
        run: Run folder or checkpoint. It gives architecture, normalization, and unless others are
            named the weights.
        cfg: Source of the weights, and seed of random ones.

    Raises:
        UsageError: If the encoder is not a ResNet, or other weights do not fit it.
        CheckpointError: If the run's checkpoint is missing or damaged.
        OSError: If other weights are missing or cannot be downloaded.
    """
    encoder = load_encoder(run, weights=cfg.weights)
    resnet = check_resnet(encoder.backbone)
    if cfg.weights == RANDOM:
        torch.manual_seed(cfg.seed)
        initialize(resnet)
    return resnet, encoder


def initialize(resnet: ResNet) -> None:
    """Reset all weights in place: He initialization (fan out) and new batch norm."""
    for module in resnet.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
