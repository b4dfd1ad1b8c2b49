"""The architectures: torchvision's own Faster R-CNNs, and the small one that ships inside.

Every architecture is assembled from torchvision's classes, so a state dict of torchvision's fits and
torchvision's `forward` is the reference that our own path is measured against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torchvision.models import mobilenet_v2
from torchvision.models.detection import (
    FasterRCNN,
    fasterrcnn_mobilenet_v3_large_320_fpn,
    fasterrcnn_mobilenet_v3_large_fpn,
    fasterrcnn_resnet50_fpn,
    fasterrcnn_resnet50_fpn_v2,
)
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
from torchvision.ops import FrozenBatchNorm2d, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from streamdet.errors import DetectorError

EMBEDDED_ARCHITECTURE = "fasterrcnn_mobilenet_v2_fpn"

_FPN_CHANNELS = 128
_HEAD_CHANNELS = 384
# Two sizes an octave apart on each of the levels of stride 8, 16, 32 and 64. The smallest, 12 px, is a
# person of 28 px height seen from a high camera.
_ANCHOR_SIZES = ((12, 20), (32, 52), (84, 136), (200, 300))
_ASPECT_RATIOS = (0.5, 1.0, 2.0)


def _mobilenet_v2_fpn(num_classes: int) -> FasterRCNN:
    """MobileNetV2 (Sandler et al. 2018) with an FPN on strides 8, 16 and 32, about 5 M parameters."""
    features = mobilenet_v2(norm_layer=FrozenBatchNorm2d).features[:18]
    # Indices of the last block of stride 8, 16 and 32, and their channels.
    backbone = BackboneWithFPN(
        features,
        return_layers={"6": "0", "13": "1", "17": "2"},
        in_channels_list=[32, 96, 320],
        out_channels=_FPN_CHANNELS,
        extra_blocks=LastLevelMaxPool(),
        norm_layer=nn.BatchNorm2d,
    )
    return FasterRCNN(
        backbone,
        rpn_anchor_generator=AnchorGenerator(_ANCHOR_SIZES, (_ASPECT_RATIOS,) * len(_ANCHOR_SIZES)),
        box_roi_pool=MultiScaleRoIAlign(["0", "1", "2"], output_size=7, sampling_ratio=1),
        box_head=TwoMLPHead(_FPN_CHANNELS * 7 * 7, _HEAD_CHANNELS),
        box_predictor=FastRCNNPredictor(_HEAD_CHANNELS, num_classes),
        min_size=320,
        max_size=512,
        rpn_pre_nms_top_n_train=1000,
        rpn_post_nms_top_n_train=500,
        rpn_pre_nms_top_n_test=500,
        rpn_post_nms_top_n_test=200,
        box_batch_size_per_image=128,
        box_positive_fraction=0.4,
    )


def _torchvision(builder: Callable[..., FasterRCNN]) -> Callable[[int], FasterRCNN]:
    def build(num_classes: int) -> FasterRCNN:
        return builder(weights=None, weights_backbone=None, num_classes=num_classes)

    return build


ARCHITECTURES: dict[str, Callable[[int], FasterRCNN]] = {
    EMBEDDED_ARCHITECTURE: _mobilenet_v2_fpn,
    "fasterrcnn_mobilenet_v3_large_320_fpn": _torchvision(fasterrcnn_mobilenet_v3_large_320_fpn),
    "fasterrcnn_mobilenet_v3_large_fpn": _torchvision(fasterrcnn_mobilenet_v3_large_fpn),
    "fasterrcnn_resnet50_fpn": _torchvision(fasterrcnn_resnet50_fpn),
    "fasterrcnn_resnet50_fpn_v2": _torchvision(fasterrcnn_resnet50_fpn_v2),
}


def build_model(architecture: str, num_classes: int) -> FasterRCNN:
    """Assembles an untrained model.

    Args:
        architecture: a key of `ARCHITECTURES`.
        num_classes: number of classes with the background, which is class 0.

    Raises:
        DetectorError: the architecture is not known.
    """
    if architecture not in ARCHITECTURES:
        known = ", ".join(ARCHITECTURES)
        msg = f"unknown model {architecture!r}; known are {known}"
        raise DetectorError(msg)
    return ARCHITECTURES[architecture](num_classes)


def outline_model(architecture: str, num_classes: int, device: str = "meta") -> FasterRCNN:
    """Assembles a model whose parameters are undefined, in a hundredth of the time.

    Args:
        architecture: a key of `ARCHITECTURES`.
        num_classes: number of classes with the background.
        device: "meta" for tensors that have shapes but no memory; "cpu" for a model to load parameters into.

    Raises:
        DetectorError: the architecture is not known.
    """
    with _WithoutRandomNumbers(), torch.device(device):
        return build_model(architecture, num_classes)


class _WithoutRandomNumbers(TorchFunctionMode):
    """Leaves parameters as they were allocated.

    Drawing random numbers takes most of the time that it takes to build a model. Those of the device "meta" are drawn
    by Python code of torch that imports its compiler, and Triton: 160 MB that stay for the life of the process.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:  # noqa: ANN401 - of whatever function
        del types
        kwargs = kwargs or {}
        if func in {Tensor.normal_, Tensor.uniform_} or getattr(func, "__module__", "") == nn.init.__name__:
            return kwargs["tensor"] if "tensor" in kwargs else args[0]
        return func(*args, **kwargs)
