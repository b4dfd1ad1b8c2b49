"""The convolutions and matrix products, where nearly all of the arithmetic is, behind one interface for all engines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self, runtime_checkable

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN

from streamdet.config import DetectorConfig
from streamdet.detector.engines.openvino import ExportedDense, OpenVinoDense, Precision
from streamdet.detector.engines.packing import Epilogue
from streamdet.detector.engines.proposing import Proposed
from streamdet.detector.engines.pytorch import TorchDense
from streamdet.detector.stages.preprocess import Size
from streamdet.errors import DetectorError


class Dense(Protocol):
    """The parts of Faster R-CNN that are dense arithmetic; to be used by one thread at a time.

    Tensors lie on the device of the images. What comes out is float32, whatever the precision within, except that an
    engine may yield level maps of its own precision for the stages behind it to go on with.
    """

    @property
    def takes_bytes(self) -> bool:
        """Whether images are pixels of 0 to 255, which the engine normalises; otherwise they are normalised already."""

    def features(self, images: Tensor, input_sizes: Sequence[Size] = ()) -> list[Tensor]:
        """Describes the pictures at several scales.

        Args:
            images: float32, or uint8 where it `takes_bytes`, [batch, 3, height, width], channels last in memory;
                height and width are multiples of 32.
            input_sizes: height and width of each picture within `images`; of `images` unless given.

        Returns:
            [batch, channels, height / stride, width / stride] of each level, the finest first; the last one, made
            for the largest objects, is for proposals alone.
        """

    def box_head(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Says what each region shows, and where exactly it lies.

        Args:
            regions: float32 [regions, channels, 7, 7], channels last in memory; there may be none.

        Returns:
            class logits, float32 [regions, classes], and deltas, float32 [regions, classes * 4].
        """

    def prepare(self, size: Size) -> None:
        """Lays out what pictures of a size need, so that the first of them need not wait; from any thread.

        Args:
            size: height and width in pixels, multiples of 32.
        """

    def release(self, unused_seconds: float) -> None:
        """Releases what was laid out for sizes that did not occur for so long; from any thread."""

    def for_another_thread(self) -> Self:
        """One that shares the weights with this one, and can be used at the same time."""


class RpnDense(Dense, Protocol):
    """An engine that runs the head of the region proposal network, and leaves what follows to others."""

    def rpn_head(self, levels: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """Says where an object may be.

        Args:
            levels: what `features` returned.

        Returns:
            of each level objectness, float32 [batch, shapes, height, width], logits; and deltas,
            float32 [batch, shapes * 4, height, width].
        """


@runtime_checkable
class ProposingDense(Dense, Protocol):
    """An engine that proposes itself."""

    def propose(self, levels: Sequence[Tensor]) -> list[Proposed]:
        """Says where an object may be, for each picture.

        Args:
            levels: what `features` returned last.
        """


def make_dense(
    model: FasterRCNN,
    config: DetectorConfig,
    device: torch.device,
    exported: ExportedDense | None = None,
    epilogue: Epilogue | None = None,
) -> TorchDense | OpenVinoDense:
    """Makes the engine of a configuration run a model; "auto" is torch, in fp32.

    Args:
        model: prepared by `pipeline.prepare_model`, on the device.
        config: `engine` and `precision` are used.
        device: where it runs.
        exported: the dense parts, where the weights are a file of `streamdet export`.
        epilogue: for convolutions in torch; see `TorchDense`.

    Raises:
        DetectorError: the engine is not installed, or has no such precision.
    """
    if exported is not None or config.engine == "openvino":
        return _openvino_dense(model, config, device, exported)
    return TorchDense(model, choose_precision(config.precision), epilogue)


def _openvino_dense(
    model: FasterRCNN,
    config: DetectorConfig,
    device: torch.device,
    exported: ExportedDense | None,
) -> OpenVinoDense:
    problem = None
    if device.type != "cpu":
        problem = f'device: engine = "openvino" runs on the CPU alone, not on {device}; use "cpu"'
    elif exported is not None and config.engine not in {"auto", "openvino"}:
        problem = f'engine: the weights are an OpenVINO file; use "auto" or "openvino", not "{config.engine}"'
    elif exported is not None and config.precision not in {"auto", exported.precision}:
        problem = f'precision: the weights were exported in {exported.precision}; use "auto", not "{config.precision}"'
    if problem:
        msg = f"detector.{problem}"
        raise DetectorError(msg)
    if exported is not None:
        return OpenVinoDense.of_export(exported, model)
    return OpenVinoDense.of_model(model, choose_precision(config.precision))


def choose_precision(precision: str) -> Precision:
    """What "auto" means where no trial has settled it (`streamdet.detector.trial`): fp32, which is exact.

    Args:
        precision: "auto", or what is returned.
    """
    chosen: dict[str, Precision] = {"auto": "fp32", "fp32": "fp32", "bf16": "bf16", "int8": "int8"}
    return chosen[precision]
