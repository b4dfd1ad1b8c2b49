"""Stage 3, features: the backbone and its feature pyramid describe every place of the picture at several scales."""

from __future__ import annotations

from torch import Tensor

from streamdet.detector.engines import Dense
from streamdet.detector.stages.preprocess import Batch

FeatureMaps = dict[str, Tensor]
"""[batch, channels, height / stride, width / stride] of each level, the finest first; the RPN alone sees "pool"."""


class Features:
    """Runs the convolutions, where nearly all of the arithmetic is."""

    def __init__(self, dense: Dense) -> None:
        self._dense = dense

    def __call__(self, batch: Batch) -> FeatureMaps:
        """Computes the feature maps of a batch."""
        *levels, pool = self._dense.features(batch.tensor, batch.input_sizes)
        return {**{str(i): level for i, level in enumerate(levels)}, "pool": pool}
