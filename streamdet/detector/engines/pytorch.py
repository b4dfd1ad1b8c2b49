"""The dense parts of the detector in torch, laid out for a fast run once, at the start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Self, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from streamdet.detector.device import compute_exactly
from streamdet.detector.engines.packing import (
    Epilogue,
    EpilogueConvolution,
    MakeConvolution,
    PackedConvolution,
    can_pack,
    pack,
)
from streamdet.detector.stages.preprocess import Size
from streamdet.errors import DetectorError

_REGION_PLACES = 49
_M = TypeVar("_M", bound=nn.Module)


class TorchDense:
    """Runs torchvision's own modules in torch.

    Args:
        model: prepared by `pipeline.prepare_model`.
        precision: fp32 or bf16.
        epilogue: adds biases and the like in one pass, where there is something faster than torch's operators.
    """

    takes_bytes = False

    def __init__(self, model: FasterRCNN, precision: str = "fp32", epilogue: Epilogue | None = None) -> None:
        if precision == "int8":
            msg = 'detector.precision: engine = "torch" has no "int8"; use "auto", "fp32" or "bf16"'
            raise DetectorError(msg)
        self._dtype = torch.bfloat16 if precision == "bf16" else torch.float32
        model = model.to(self._dtype)
        on_cpu = next(model.parameters()).device.type == "cpu"
        if not on_cpu and self._dtype == torch.float32:
            compute_exactly()
        self._make: MakeConvolution | None = None
        if epilogue is not None:
            self._make = partial(EpilogueConvolution, apply=epilogue)
        elif on_cpu and can_pack(self._dtype):
            self._make = PackedConvolution
        self._backbone = self._pack(model.backbone)
        self._rpn_convolutions = self._pack(model.rpn.head.conv)
        self._shapes = model.rpn.head.cls_logits.out_channels
        self._rpn_output = self._pack(nn.Sequential(_side_by_side(model.rpn.head.cls_logits, model.rpn.head.bbox_pred)))
        head = model.roi_heads.box_head
        # Convolutions are packed, as everywhere.
        self._box_head = ChannelsLastHead(head if isinstance(head, TwoMLPHead) else self._pack(head))
        predictor = model.roi_heads.box_predictor
        self._classes = predictor.cls_score.out_features
        self._box_output = _stacked(predictor.cls_score, predictor.bbox_pred)

    def features(self, images: Tensor, input_sizes: Sequence[Size] = ()) -> list[Tensor]:  # noqa: ARG002 - of the protocol
        """See `Dense`."""
        return list(self._backbone(images.to(self._dtype)).values())

    def rpn_head(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """See `RpnDense`."""
        outputs = [self._rpn_output(self._rpn_convolutions(level)).float() for level in levels]
        return [t[:, : self._shapes] for t in outputs], [t[:, self._shapes :] for t in outputs]

    def box_head(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """See `Dense`."""
        by_place = regions.to(self._dtype).permute(0, 2, 3, 1)
        output = self._box_output(self._box_head(by_place)).float()
        return output[:, : self._classes], output[:, self._classes :]

    def prepare(self, size: Size) -> None:
        """Does nothing: torch takes every size as it comes."""

    def release(self, unused_seconds: float) -> None:
        """Does nothing."""

    def for_another_thread(self) -> Self:
        """Itself: modules of torch keep nothing between calls."""
        return self

    def _pack(self, module: nn.Module) -> nn.Module:
        return module if self._make is None else pack(module, self._make)


class ChannelsLastHead(nn.Module):
    """torchvision's `TwoMLPHead` or convolutions; no transposed copy of the regions is made for the former.

    Args:
        head: of torchvision's Faster R-CNN.
    """

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self._head = None if isinstance(head, TwoMLPHead) else head
        if isinstance(head, TwoMLPHead):
            self._second = head.fc7
            self._weight = by_place(head.fc6.weight.detach())
            self._bias = head.fc6.bias

    def forward(self, regions: Tensor) -> Tensor:
        """Describes regions.

        Args:
            regions: [regions, 7, 7, channels], contiguous.

        Returns:
            [regions, features].
        """
        if self._head is not None:
            described: Tensor = self._head(regions.permute(0, 3, 1, 2))
            return described
        hidden = functional.linear(regions.flatten(1), self._weight, self._bias).relu_()
        result: Tensor = self._second(hidden).relu_()
        return result


def by_place(weight: Tensor) -> Tensor:
    """The same weights for inputs ordered by place and then channel, instead of channel and then place.

    Args:
        weight: [features, channels * 7 * 7], of a box head's first matrix product.
    """
    side = math.isqrt(_REGION_PLACES)
    by_channel = weight.reshape(len(weight), -1, side, side)
    return by_channel.permute(0, 2, 3, 1).flatten(1).contiguous()


def _side_by_side(first: nn.Conv2d, second: nn.Conv2d) -> nn.Conv2d:
    """One convolution of 1x1 that yields the channels of both."""
    both = nn.Conv2d(first.in_channels, first.out_channels + second.out_channels, 1)
    return _with_parameters_of(both, first, second).to(memory_format=torch.channels_last)


def _stacked(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """One matrix product that yields the features of both."""
    both = nn.Linear(first.in_features, first.out_features + second.out_features)
    return _with_parameters_of(both, first, second)


def _with_parameters_of(both: _M, first: nn.Module, second: nn.Module) -> _M:
    for name in ("weight", "bias"):
        joined = torch.cat([getattr(first, name).detach(), getattr(second, name).detach()])
        setattr(both, name, nn.Parameter(joined, requires_grad=False))
    return both
