"""Composes the seven stages into a detector."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ParamSpec, Self, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN

from streamdet.config import DetectorConfig
from streamdet.detector.canvases import Canvases
from streamdet.detector.device import choose_device, device_errors, use_threads
from streamdet.detector.engines import choose_precision, make_dense
from streamdet.detector.engines.openvino import OpenVinoDense
from streamdet.detector.engines.packing import fold_batch_norm
from streamdet.detector.engines.pytorch import TorchDense
from streamdet.detector.stages.classify import Classified, Classify
from streamdet.detector.stages.features import FeatureMaps, Features
from streamdet.detector.stages.input import read_pictures, read_small
from streamdet.detector.stages.postprocess import Postprocess
from streamdet.detector.stages.preprocess import COMMON_SIZE, Batch, Preprocess, Size
from streamdet.detector.stages.proposals import Proposals, make_propose
from streamdet.detector.stages.roi_pool import RoiPool
from streamdet.detector.trial import settle
from streamdet.detector.weights import Weights, load_embedded_int8, load_weights, make_model
from streamdet.detector.weights.thresholds import known_labels
from streamdet.errors import DetectorError
from streamdet.types import Detection, DetectionSettings, Picture

_P = ParamSpec("_P")
_T = TypeVar("_T")

OnStage = Callable[[str, float], None]
"""Called after each stage of a batch with its name, one of `streamdet.monitoring.metrics.STAGES`, and seconds."""


@dataclass(frozen=True)
class StageOutputs:
    """What each of the seven stages yields for one batch, in their order.

    `images` have the size of the frames; decoded ones that of the network's input in bf16 and int8 on a CPU.
    """

    images: list[Tensor]
    batch: Batch
    features: FeatureMaps
    proposals: Proposals
    regions: Tensor
    classified: Classified
    detections: list[list[Detection]]


class FasterRcnnDetector:
    """Faster R-CNN (Ren et al. 2015) with a feature pyramid, as seven stages.

    Its detections are those of torchvision's own `forward` with the same weights. To be used by one thread
    at a time.

    Args:
        weights: what to run.
        config: device, batch size, and the settings of pictures that have none of their own.
        on_stage: called with the time of each stage.

    Raises:
        DetectorError: the configuration names labels or a device that do not exist.

    Attributes:
        labels: that the weights know.
        settings: what counts as a detection according to the configuration.
        architecture: a key of `weights.architectures.ARCHITECTURES`.
        class_labels: name of each class of the classifier, [0] is the background.
        device: where it runs.
        frame_sizes: to expect, and to warm up for.
        canvases: that may be used; shared by all that were made `for_another_thread`.
        postprocess: the last stage, whose two halves can be called on their own.
    """

    def __init__(self, weights: Weights, config: DetectorConfig, on_stage: OnStage | None = None) -> None:
        self._config = config
        self._on_stage = on_stage
        self.frame_sizes: tuple[Size, ...] = (COMMON_SIZE,)
        self.canvases = Canvases()
        self.device = choose_device(config.device)
        self.architecture = weights.architecture
        self.class_labels = weights.labels
        self.labels = known_labels(weights.labels, config)
        self.settings = config.settings_for()
        model = prepare_model(weights, self.device)
        dense = make_dense(model, config, self.device, weights.exported)
        self._model = model
        # Pixels of 8 bits are as exact as what follows, unless it computes in fp32.
        precision = weights.exported.precision if weights.exported else choose_precision(config.precision)
        self._reads_small = self.device.type == "cpu" and precision != "fp32"
        _drop_dense(model)
        self._set_stages(dense)
        self.postprocess = Postprocess(model.roi_heads, weights.labels, self.device)
        self._most_proposals: int = model.rpn.post_nms_top_n()

    def _set_stages(self, dense: TorchDense | OpenVinoDense) -> None:
        self._dense = dense
        transform, to_bytes = self._model.transform, dense.takes_bytes
        self._preprocess = Preprocess(transform, self.device, self.canvases, to_bytes=to_bytes)
        self._features = Features(dense)
        self._propose = make_propose(self._model.rpn, dense)
        self._roi_pool = RoiPool(self._model.roi_heads.box_roi_pool)
        self._classify = Classify(dense)

    def for_another_thread(self) -> Self:
        """One with the same weights that can be used at the same time."""
        other = copy.copy(self)
        other._set_stages(self._dense.for_another_thread())  # noqa: SLF001 - of its own class
        return other

    def detect(self, pictures: Sequence[Picture], settings: Sequence[DetectionSettings] = ()) -> list[list[Detection]]:
        """Finds the objects in a batch of pictures, whose sizes may differ.

        On a CPU, pictures that need canvases of different sizes go one canvas after the other: larger batches gain
        little there, and no time is spent on the zeros beside smaller pictures.

        Args:
            pictures: the batch.
            settings: what counts as a detection in each picture; that of the configuration where there are none.

        Returns:
            for each picture its detections by falling score, boxes in its own pixels.

        Raises:
            MemoryError: the device has not enough memory; a smaller batch may pass.
            DeviceLostError: the CUDA context is gone.
        """
        settings = settings or [self.settings] * len(pictures)
        found: dict[int, list[Detection]] = {}
        for numbers in self._of_one_canvas(pictures):
            detections = self.run([pictures[n] for n in numbers], [settings[n] for n in numbers]).detections
            found.update(zip(numbers, detections, strict=True))
        return [found[number] for number in range(len(pictures))]

    def _of_one_canvas(self, pictures: Sequence[Picture]) -> list[list[int]]:
        """Which pictures make a batch, by their place in the sequence."""
        if not pictures:
            return []
        if self.device.type != "cpu":
            return [list(range(len(pictures)))]
        groups: dict[Size, list[int]] = {}
        for number, picture in enumerate(pictures):
            canvas = self._preprocess.canvas_size((picture.height, picture.width))
            groups.setdefault(canvas, []).append(number)
        return list(groups.values())

    @torch.inference_mode()
    def run(self, pictures: Sequence[Picture], settings: Sequence[DetectionSettings] = ()) -> StageOutputs:
        """Runs the seven stages and keeps what each yields; arguments and errors as `detect`, not empty."""
        settings = settings or [self.settings] * len(pictures)
        with device_errors():
            sizes = [(picture.height, picture.width) for picture in pictures]
            images = self._timed("input", self._read, pictures, sizes)
            batch = self._timed("preprocess", self._preprocess, images, sizes)
            features = self._timed("features", self._features, batch)
            proposals = self._timed("proposals", self._propose, batch, features)
            regions = self._timed("roi_pool", self._roi_pool, batch, features, proposals)
            classified = self._timed("classify", self._classify, regions)
            detections = self._timed("postprocess", self.postprocess, batch, proposals, classified, settings)
        return StageOutputs(images, batch, features, proposals, regions, classified, detections)

    def _read(self, pictures: Sequence[Picture], sizes: Sequence[Size]) -> list[Tensor]:
        if self._reads_small:
            return read_small(pictures, [self._preprocess.input_size(size) for size in sizes])
        return read_pictures(pictures, self.device)

    def normalised(self, batch: Batch) -> Tensor:
        """What the network computes with: float32 [batch, 3, height, width], zero mean and unit deviation."""
        return self._preprocess.normalised(batch)

    def canvas_size(self, frame_size: Size) -> Size:
        """Height and width of the canvas that frames of a size stand on; those with the same one need the same.

        Where it may not be used, a larger one is used in its place.
        """
        return self._preprocess.canvas_size(frame_size)

    def use_canvases_of(self, frame_sizes: Iterable[Size]) -> None:
        """Restricts the canvases to those of frames of these sizes; to be called before `for_another_thread`."""
        self.canvases = Canvases(map(self.canvas_size, frame_sizes))
        self._set_stages(self._dense)

    def prepare(self, frame_size: Size) -> None:
        """Lays out what frames of a size need, so that the first of them holds up no other; from any thread.

        Args:
            frame_size: height and width in pixels.
        """
        if self.device.type == "cpu":
            self._dense.prepare(self._preprocess.fit(self.canvas_size(frame_size)))

    def release(self, unused_seconds: float) -> None:
        """Gives back what was laid out for sizes that did not occur for so long; from any thread."""
        self._dense.release(unused_seconds)

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Runs the largest batch of each size, with as many proposals as there can be: memory runs out now or never.

        On a CPU only the largest size runs a whole batch, and the others, which need less memory, one frame each.

        Raises:
            DetectorError: there is not enough memory for `max_batch_size`, or the weights are useless.
        """
        count = self._config.largest_batch
        sizes = {self._preprocess.fit(self.canvas_size(size)): size for size in self.frame_sizes}
        on_stage, self._on_stage = self._on_stage, None
        try:
            self.check_weights()
            for canvas in sorted(sizes, key=math.prod, reverse=True):
                noise = np.random.default_rng(0).integers(0, 256, (*sizes[canvas], 3), dtype=np.uint8)
                outputs = self.run([ArrayPicture(noise)] * count)
                with device_errors():
                    height, width = outputs.batch.input_sizes[0]
                    box = torch.tensor([[0.0, 0.0, width, height]], device=self.device)
                    most = Proposals([box.expand(self._most_proposals, 4)] * count, [])
                    self._classify(self._roi_pool(outputs.batch, outputs.features, most))
                count = count if self.device.type != "cpu" else 1
        except MemoryError as error:
            size = self._config.largest_batch
            msg = f"not enough memory for batches of {size} on {self.device}; lower detector.max_batch_size"
            raise DetectorError(msg) from error
        finally:
            self._on_stage = on_stage

    @torch.inference_mode()
    def check_weights(self) -> None:
        """Looks at two pictures of noise, to find weights that yield no numbers or see nothing in any picture.

        Raises:
            DetectorError: the weights are useless.
        """
        random = np.random.default_rng(0)
        # Of a canvas that is laid out anyway.
        size = min(self.frame_sizes, key=math.prod)
        noise = [random.integers(0, 256, (*size, 3), dtype=np.uint8) for _ in range(2)]
        with device_errors():
            batch = self._preprocess(self._read([ArrayPicture(picture) for picture in noise], [size] * 2), [size] * 2)
            features = self._features(batch)
            logits_of_anchors, deltas = self._propose.likeliest(batch, features)
            height, width = batch.input_sizes[0]
            boxes = torch.tensor(
                [[0, 0, width / 2, height / 2], [width / 2, height / 2, width, height], [0, 0, width, height]],
                device=self.device,
            )
            regions = self._roi_pool(batch, features, Proposals([boxes, boxes], []))
            logits, moves = self._dense.box_head(regions)
        parts = {
            "the backbone": list(features.values()),
            "the proposal network": [logits_of_anchors, deltas],
            "the classifier": [logits, moves],
        }
        for part, outputs in parts.items():
            if not all(bool(torch.isfinite(output).all()) for output in outputs):
                msg = f"the weights cannot be used: {part} returns numbers that are infinite or NaN; train again"
                raise DetectorError(msg)
            if all(torch.equal(output[0], output[-1]) for output in outputs):
                msg = f"the weights cannot be used: {part} returns the same for every picture; train again"
                raise DetectorError(msg)

    def _timed(self, stage: str, work: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """Does the work of one stage; on CUDA, waits for it, so that the time is the stage's own."""
        start = time.perf_counter()
        result = work(*args, **kwargs)
        if self._on_stage is not None:
            if self.device.type == "cuda":
                torch.cuda.synchronize(self.device)
            self._on_stage(stage, time.perf_counter() - start)
        return result


@dataclass(frozen=True, eq=False)
class ArrayPicture:
    """A picture that is RGB already.

    Attributes:
        rgb: uint8 [height, width, 3], contiguous.
    """

    rgb: NDArray[np.uint8]

    @property
    def width(self) -> int:
        """Pixels."""
        return int(self.rgb.shape[1])

    @property
    def height(self) -> int:
        """Pixels."""
        return int(self.rgb.shape[0])

    def to_rgb(self) -> NDArray[np.uint8]:
        """The array itself."""
        return self.rgb


def load_detector(
    config: DetectorConfig, on_stage: OnStage | None = None, threads: int | None = None
) -> FasterRcnnDetector:
    """Loads the weights that the configuration names and makes a detector of them.

    What is "auto" in the configuration is settled by a trial, which takes its time where its answer is not known yet.

    Args:
        config: `[detector]` of the configuration.
        on_stage: called with the time of each stage of each batch.
        threads: CPU threads for one operation; torch's own choice unless given.

    Raises:
        DetectorError: weights, labels or device are wrong.
    """
    if threads is not None:
        use_threads(threads)
    choose_device(config.device)  # one that is not there is reported before anything is tried
    weights = load_weights(config)
    if "auto" not in {config.engine, config.precision}:
        # The caller decides how many pictures it detects at once: no trial only for that.
        config = config.model_copy(update={"max_batch_size": config.largest_batch})
    config, _ = settle(config, ("torch", "openvino"))
    return FasterRcnnDetector(weights_for(config, weights), config, on_stage)


def weights_for(config: DetectorConfig, weights: Weights) -> Weights:
    """The weights in the form that the engine and precision need: the embedded ones are there in int8, too.

    Args:
        config: with engine and precision settled.
        weights: that it names.
    """
    is_int8 = config.weights == "embedded" and config.engine == "openvino" and config.precision == "int8"
    return load_embedded_int8() if is_int8 else weights


def _drop_dense(model: FasterRCNN) -> None:
    """Lets go of the parameters that an engine has laid out in its own way."""
    model.backbone = nn.Identity()
    model.rpn.head = nn.Identity()
    model.roi_heads.box_head = nn.Identity()
    model.roi_heads.box_predictor = nn.Identity()


def prepare_model(weights: Weights, device: torch.device) -> FasterRCNN:
    """Builds the model for inference: batch normalisation folded, channels last in memory."""
    model = make_model(weights)
    if weights.exported is None:
        fold_batch_norm(model)
    return model.to(device=device, memory_format=torch.channels_last)
