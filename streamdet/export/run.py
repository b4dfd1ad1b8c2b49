"""Exports a detector: converts it, quantises it, and reports the change in speed and detections."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace

from streamdet.config import DetectorConfig
from streamdet.detector.agreement import Agreement, measure_agreement
from streamdet.detector.device import choose_device
from streamdet.detector.engines.quantise import export_fp32, observe, quantise
from streamdet.detector.engines.small_head import make_small_head
from streamdet.detector.pipeline import FasterRcnnDetector, prepare_model
from streamdet.detector.weights import Weights, weights_to_bytes
from streamdet.errors import DetectorError
from streamdet.types import Detection, Picture

OnProgress = Callable[[int, int], None]
Bar = Callable[[str], AbstractContextManager[OnProgress]]

# Every so manieth frame is kept back to compare on.
HELD_BACK_EVERY = 5
# Detections as a user sees them.
SCORE_THRESHOLD = 0.5
_WARM_UP_ROUNDS = 3  # the first compiles, or lays out weights


@dataclass(frozen=True)
class Report:
    """The result of an export.

    Attributes:
        precision: of the file.
        architecture: of the model.
        bytes_before: of the weights as they were given, in float32.
        bytes_after: of the file.
        calibration_frames: that the ranges of values were taken from; 0 for fp32.
        small_head: whether its box head was made smaller.
        milliseconds_before: of one frame, median, with the same number of threads: in torch, fp32;
        milliseconds_openvino: in OpenVINO, fp32;
        milliseconds_after: and of the file. None where no frames were given.
        agreement: with fp32, on frames that were kept back; None where no frames were given.
    """

    precision: str
    architecture: str
    bytes_before: int
    bytes_after: int
    calibration_frames: int
    small_head: bool
    milliseconds_before: float | None
    milliseconds_openvino: float | None
    milliseconds_after: float | None
    agreement: Agreement | None

    def to_dict(self) -> dict[str, object]:
        """For programs."""
        values = asdict(self)
        if self.agreement is not None:
            values["agreement"]["kept_share"] = self.agreement.kept_share
        return values


def export(weights: Weights, pictures: Sequence[Picture], *, int8: bool, bar: Bar) -> tuple[bytes, Report]:
    """Makes the file's content.

    Args:
        weights: what to export.
        pictures: to calibrate with, and to compare on; there may be none for fp32.
        int8: quantise.
        bar: shows how far it is.

    Raises:
        DetectorError: the weights are an export already, or the extra is not installed.
    """
    if weights.exported is not None:
        msg = "the weights are an export already; give the weights that it was made of"
        raise DetectorError(msg)
    device = choose_device("cpu")
    held_back = list(pictures[HELD_BACK_EVERY - 1 :: HELD_BACK_EVERY])
    calibration = [p for number, p in enumerate(pictures, start=1) if number % HELD_BACK_EVERY]
    if int8:
        original = FasterRcnnDetector(weights, _config("openvino"))
        with bar("looking at the frames") as on_progress:
            observed = observe(original, calibration, on_progress)
        model = prepare_model(weights, device)
        with bar("making the box head small") as on_progress:
            small_head = make_small_head(model, observed.answers, on_progress)
        exported = quantise(model, observed, small_head)
    else:
        exported = export_fp32(prepare_model(weights, device))
    made = replace(weights, state={}, exported=exported)
    content = weights_to_bytes(made)
    times, agreement = _compare(weights, made, held_back, bar) if held_back else ([None] * 3, None)
    return content, Report(
        precision=exported.precision,
        architecture=weights.architecture,
        bytes_before=sum(t.numel() * t.element_size() for t in weights.state.values()),
        bytes_after=len(content),
        calibration_frames=len(calibration) if int8 else 0,
        small_head=exported.small_head is not None,
        milliseconds_before=times[0],
        milliseconds_openvino=times[1],
        milliseconds_after=times[2],
        agreement=agreement,
    )


def _config(engine: str) -> DetectorConfig:
    values = {"engine": engine, "device": "cpu", "score_threshold": SCORE_THRESHOLD, "max_batch_size": 1}
    return DetectorConfig.model_validate(values | ({"precision": "fp32"} if engine == "torch" else {}))


def _compare(
    weights: Weights, made: Weights, pictures: Sequence[Picture], bar: Bar
) -> tuple[list[float | None], Agreement]:
    """Milliseconds per frame in torch, OpenVINO and the export, in alternating rounds; and what the export keeps."""
    fp32 = _config("openvino").model_copy(update={"precision": "fp32"})
    detectors = [
        FasterRcnnDetector(weights, _config("torch")),
        FasterRcnnDetector(weights, fp32),
        FasterRcnnDetector(made, _config("openvino")),
    ]
    seconds: list[list[float]] = [[] for _ in detectors]
    found: list[list[list[Detection]]] = [[] for _ in detectors]
    rounds = [*[pictures[0]] * _WARM_UP_ROUNDS, *pictures]
    with bar("comparing") as on_progress:
        for number, picture in enumerate(rounds, start=1):
            for detector, times, results in zip(detectors, seconds, found, strict=True):
                began = time.perf_counter()
                results.extend(detector.detect([picture]))
                times.append(time.perf_counter() - began)
            on_progress(number, len(rounds))
    medians: list[float | None] = [round(1000 * statistics.median(times[_WARM_UP_ROUNDS:]), 3) for times in seconds]
    return medians, measure_agreement(found[1][_WARM_UP_ROUNDS:], found[2][_WARM_UP_ROUNDS:])
