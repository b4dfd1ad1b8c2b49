"""The box head for regions whose channels lie side by side in memory, as RoIAlign here yields them."""

from __future__ import annotations

import math

from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection.faster_rcnn import TwoMLPHead

_REGION_PLACES = 49


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
            self._weight = _by_place(head.fc6.weight.detach())
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


def _by_place(weight: Tensor) -> Tensor:
    """The same weights for inputs ordered by place and then channel, instead of channel and then place."""
    side = math.isqrt(_REGION_PLACES)
    by_channel = weight.reshape(len(weight), -1, side, side)
    return by_channel.permute(0, 2, 3, 1).flatten(1).contiguous()
