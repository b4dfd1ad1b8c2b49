"""Converts the dense parts of a Faster R-CNN from torch to OpenVINO."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from streamdet.detector.engines.box_head import ChannelsLastHead
from streamdet.detector.engines.openvino_runtime import load_openvino

if TYPE_CHECKING:
    import openvino

_EXAMPLE_PIXELS = 128  # any size does; the converted model takes all
_POOLED_PIXELS = 7


def convert_features(model: FasterRCNN) -> openvino.Model:
    """Makes one OpenVINO model of the backbone, the feature pyramid and the head of the RPN.

    Its input is float32 [batch, height, width, 3]; its outputs are the level maps, then the objectness of each level,
    then the deltas of each level, all float32 [batch, height / stride, width / stride, channels].

    Args:
        model: prepared by `pipeline.prepare_model`, on the CPU.
    """
    example = torch.zeros(1, _EXAMPLE_PIXELS, _EXAMPLE_PIXELS, 3)
    return _convert(_FeaturesAndRpnHead(model.backbone, model.rpn.head), example)


def convert_box_head(model: FasterRCNN) -> openvino.Model:
    """Makes an OpenVINO model of the box head and its predictor.

    Its input is float32 [regions, 7, 7, channels]; its outputs are class logits and deltas.
    """
    channels: int = model.backbone.out_channels
    example = torch.zeros(2, _POOLED_PIXELS, _POOLED_PIXELS, channels)
    converted = _convert(BoxHead(model), example)
    converted.reshape([-1, *example.shape[1:]])
    return converted


class _FeaturesAndRpnHead(nn.Module):
    """As one graph: the maps need not leave the layout that convolutions like best.

    Channels come last at both ends, as they lie in the memory of the stages before and after.
    """

    def __init__(self, backbone: nn.Module, rpn_head: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.rpn_head = rpn_head

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        levels = list(self.backbone(images.permute(0, 3, 1, 2)).values())
        objectness, deltas = self.rpn_head(levels)
        return tuple(t.permute(0, 2, 3, 1) for t in (*levels, *objectness, *deltas))


class BoxHead(nn.Module):
    """The box head and its predictor in torch, for regions whose channels come last.

    Args:
        model: prepared by `pipeline.prepare_model`.
    """

    def __init__(self, model: FasterRCNN) -> None:
        super().__init__()
        self._head = ChannelsLastHead(model.roi_heads.box_head)
        self._predictor = model.roi_heads.box_predictor

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits and deltas of regions, float32 [regions, 7, 7, channels]."""
        logits, deltas = self._predictor(self._head(regions))
        return logits, deltas


@torch.no_grad()
def _convert(module: nn.Module, example: Tensor) -> openvino.Model:
    with warnings.catch_warnings():
        # OpenVINO reads what torch traced; torch deprecates tracing, and says so at every module.
        warnings.simplefilter("ignore")
        traced = torch.jit.trace(module.eval(), example, check_trace=False)  # type: ignore[no-untyped-call] # torch's own
        model: openvino.Model = load_openvino().convert_model(traced, example_input=example)
    return model
