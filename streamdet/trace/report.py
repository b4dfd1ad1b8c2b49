"""The data of a trace: the results of each stage, ready to be shown."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from streamdet.types import Detection

Rgb = NDArray[np.uint8]
"""uint8 [height, width, 3]."""


@dataclass(frozen=True)
class Datum:
    """An input or output of a stage.

    Attributes:
        name: what it is.
        axes: what the numbers of the shape count.
        shape: its sizes.
        dtype: such as "float32".
        bytes: its size in memory.
    """

    name: str
    axes: str
    shape: tuple[int, ...]
    dtype: str
    bytes: int


@dataclass(frozen=True, eq=False)
class Figure:
    """A picture that illustrates a stage.

    Attributes:
        picture: the pixels.
        caption: what it shows.
        scale: what the dark and the bright end of the colours mean; None where colours are the picture's own.
        small: whether several of its kind stand side by side.
    """

    picture: Rgb
    caption: str
    scale: tuple[str, str] | None = None
    small: bool = False


@dataclass(frozen=True, eq=False)
class Region:
    """One proposal, with the classifier's result.

    Attributes:
        crop: what the proposal shows.
        objectness: 0 to 1.
        scores: label and score of the likeliest classes, by falling score.
    """

    crop: Rgb
    objectness: float
    scores: tuple[tuple[str, float], ...]


@dataclass(frozen=True)
class Survivor:
    """One detection, and the boxes that it suppressed.

    Attributes:
        label: its class.
        score: its score, 0 to 1.
        suppressed_scores: of boxes of its class that overlap it, by falling score.
    """

    label: str
    score: float
    suppressed_scores: tuple[float, ...]


@dataclass(frozen=True)
class Stage:
    """One stage of the pipeline.

    Attributes:
        name: one of `streamdet.monitoring.metrics.STAGES`.
        title: what it does, in a few words.
        explanation: what it does, in a paragraph for people who have never seen it.
        milliseconds: what it took.
        inputs: what goes in.
        outputs: what comes out.
        figures: pictures of what comes out.
        regions: of `classify` only.
        survivors: of `postprocess` only.
    """

    name: str
    title: str
    explanation: str
    milliseconds: float
    inputs: tuple[Datum, ...]
    outputs: tuple[Datum, ...]
    figures: tuple[Figure, ...]
    regions: tuple[Region, ...] = ()
    survivors: tuple[Survivor, ...] = ()


@dataclass(frozen=True)
class Trace:
    """The trace of one picture through the detector.

    Attributes:
        source: where the picture came from, without secrets.
        width: of the picture, in pixels.
        height: of the picture, in pixels.
        architecture: the model.
        device: where it ran.
        score_threshold: what a detection's score had to exceed.
        stages: in the order of the data.
        detections: what was found.
    """

    source: str
    width: int
    height: int
    architecture: str
    device: str
    score_threshold: float
    stages: tuple[Stage, ...]
    detections: tuple[Detection, ...]

    @property
    def milliseconds(self) -> float:
        """All stages together."""
        return sum(stage.milliseconds for stage in self.stages)

    def to_dict(self) -> dict[str, Any]:
        """Everything except the pictures, for JSON."""
        return {
            "source": self.source,
            "frame": {"width": self.width, "height": self.height},
            "model": self.architecture,
            "device": self.device,
            "score_threshold": self.score_threshold,
            "milliseconds": round(self.milliseconds, 3),
            "stages": [_stage_to_dict(stage) for stage in self.stages],
            "detections": [{"label": d.label, "score": d.score, "box": d.box} for d in self.detections],
        }


def _stage_to_dict(stage: Stage) -> dict[str, Any]:
    row: dict[str, Any] = {
        "name": stage.name,
        "title": stage.title,
        "explanation": stage.explanation,
        "milliseconds": round(stage.milliseconds, 3),
        "inputs": [asdict(datum) for datum in stage.inputs],
        "outputs": [asdict(datum) for datum in stage.outputs],
        "figures": [figure.caption for figure in stage.figures],
    }
    if stage.regions:
        row["regions"] = [{"objectness": r.objectness, "scores": dict(r.scores)} for r in stage.regions]
    if stage.survivors:
        row["survivors"] = [asdict(survivor) for survivor in stage.survivors]
    return row
