"""Runs the detector on one picture and collects the results of each stage."""

from __future__ import annotations

import statistics

import torch
from torch import Tensor
from torchvision.models.detection import FasterRCNN
from torchvision.ops import box_iou

from streamdet.config import DetectorConfig
from streamdet.detector.pipeline import FasterRcnnDetector, StageOutputs, load_detector
from streamdet.detector.stages.postprocess import Candidates
from streamdet.detector.weights.architectures import outline_model
from streamdet.trace import draw, figures
from streamdet.trace.explain import TITLES, Facts, explain
from streamdet.trace.report import Datum, Region, Rgb, Stage, Survivor, Trace
from streamdet.types import Picture

_TIMED_RUNS = 5
_REGIONS_SHOWN = 12
_CLASSES_SHOWN = 3
_CROP_PIXELS = 96


def trace_picture(config: DetectorConfig, picture: Picture, source: str) -> Trace:
    """Runs the seven stages on one picture; the time of each is the median of a few runs.

    Args:
        config: weights, thresholds, device.
        picture: what to look at.
        source: where it came from; shown, so without secrets.

    Raises:
        DetectorError: weights, labels or device are wrong.
    """
    times: dict[str, list[float]] = {}
    detector = load_detector(config, lambda stage, seconds: times.setdefault(stage, []).append(seconds * 1000))
    outputs = detector.run([picture])  # the first run also allocates memory
    times.clear()
    for _ in range(_TIMED_RUNS):
        outputs = detector.run([picture])
    milliseconds = {stage: statistics.median(runs) for stage, runs in times.items()}
    return Trace(
        source=source,
        width=picture.width,
        height=picture.height,
        architecture=detector.architecture,
        device=str(detector.device),
        score_threshold=config.score_threshold,
        stages=_stages(detector, config, picture.to_rgb(), outputs, milliseconds),
        detections=tuple(outputs.detections[0]),
    )


@torch.inference_mode()
def _stages(
    detector: FasterRcnnDetector,
    config: DetectorConfig,
    frame: Rgb,
    outputs: StageOutputs,
    milliseconds: dict[str, float],
) -> tuple[Stage, ...]:
    labels = detector.class_labels
    model = outline_model(detector.architecture, len(labels)).eval()
    postprocess, settings = detector.postprocess, detector.settings
    candidates = postprocess.candidates(outputs.batch, outputs.proposals, outputs.classified, [settings])[0]
    kept = postprocess.select(candidates, settings, outputs.batch.input_sizes[0])
    words = explain(_facts(model, config, outputs, len(candidates.scores)))
    normalised = detector.normalised(outputs.batch)
    pictures = figures.of_stages(frame, outputs, normalised, candidates, kept, labels)
    data = _data(frame, outputs)
    regions = {"classify": _regions(figures.shown_picture(frame, outputs), outputs, labels)}
    survivors = {"postprocess": _survivors(candidates, kept, labels, model.roi_heads.nms_thresh)}
    return tuple(
        Stage(
            name=name,
            title=title,
            explanation=words[name],
            milliseconds=milliseconds[name],
            inputs=data[name][0],
            outputs=data[name][1],
            figures=pictures[name],
            regions=regions.get(name, ()),
            survivors=survivors.get(name, ()),
        )
        for name, title in TITLES.items()
    )


def _facts(model: FasterRCNN, config: DetectorConfig, outputs: StageOutputs, candidates: int) -> Facts:
    batch, rpn = outputs.batch, model.rpn
    levels = list(outputs.features.values())
    shapes = rpn.anchor_generator.num_anchors_per_location()
    return Facts(
        frame=_size(batch.frame_sizes[0]),
        shown=_size(batch.input_sizes[0]),
        padded=_size(tuple(batch.tensor.shape[-2:])),
        channels=levels[0].shape[1],
        strides=tuple(batch.tensor.shape[-1] // level.shape[-1] for level in levels),
        anchors=sum(n * level.shape[-2] * level.shape[-1] for n, level in zip(shapes, levels, strict=True)),
        anchors_each=shapes[0],
        per_level=rpn.pre_nms_top_n(),
        proposal_overlap=rpn.nms_thresh,
        proposals=len(outputs.proposals.boxes[0]),
        most_proposals=rpn.post_nms_top_n(),
        classes=outputs.classified.scores.shape[1] - 1,
        threshold=config.score_threshold,
        candidates=candidates,
        overlap=model.roi_heads.nms_thresh,
        detections=len(outputs.detections[0]),
    )


def _size(size: tuple[int, ...]) -> str:
    return f"{size[1]}x{size[0]}"


def _data(frame: Rgb, outputs: StageOutputs) -> dict[str, tuple[tuple[Datum, ...], tuple[Datum, ...]]]:
    """The inputs and outputs of each stage."""
    colours = Datum("picture", "height, width, colour", frame.shape, str(frame.dtype), frame.nbytes)
    image = _datum("image", "colour, height, width", outputs.images[0])
    batch = _datum("batch", "frame, colour, height, width", outputs.batch.tensor)
    maps = tuple(
        _datum(f"feature map {i}", "frame, channel, height, width", level)
        for i, level in enumerate(outputs.features.values(), 1)
    )
    boxes = _datum("proposals", "box, x1 y1 x2 y2", outputs.proposals.boxes[0])
    objectness = _datum("objectness", "box", outputs.proposals.objectness[0])
    regions = _datum("regions", "region, channel, height, width", outputs.regions)
    scores = _datum("scores", "region, class", outputs.classified.scores)
    deltas = _datum("box corrections", "region, class, 4", outputs.classified.deltas)
    found = len(outputs.detections[0])
    detections = Datum("detections", "object, (box 4, score, class)", (found, 6), "float32", found * 6 * 4)
    return {
        "input": ((colours,), (image,)),
        "preprocess": ((image,), (batch,)),
        "features": ((batch,), maps),
        "proposals": (maps, (boxes, objectness)),
        "roi_pool": ((*maps, boxes), (regions,)),
        "classify": ((regions,), (scores, deltas)),
        "postprocess": ((boxes, scores, deltas), (detections,)),
    }


def _datum(name: str, axes: str, tensor: Tensor) -> Datum:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Datum(name, axes, tuple(tensor.shape), dtype, tensor.numel() * tensor.element_size())


def _regions(shown: Rgb, outputs: StageOutputs, labels: tuple[str, ...]) -> tuple[Region, ...]:
    """The proposals of highest objectness, with their likeliest classes."""
    boxes, objectness = outputs.proposals.boxes[0][:_REGIONS_SHOWN], outputs.proposals.objectness[0]
    rows = []
    for i, box in enumerate(boxes.tolist()):
        best, classes = outputs.classified.scores[i].topk(min(_CLASSES_SHOWN, len(labels)))
        names = ["background" if class_ == 0 else labels[class_] for class_ in classes.tolist()]
        scores = tuple(zip(names, best.tolist(), strict=True))
        rows.append(Region(draw.letterbox(draw.crop(shown, box), _CROP_PIXELS), float(objectness[i]), scores))
    return tuple(rows)


def _survivors(
    candidates: Candidates, kept: Candidates, labels: tuple[str, ...], overlap: float
) -> tuple[Survivor, ...]:
    """For each box that was kept, the scores of those that it suppressed as the first that overlaps them."""
    if not len(kept.scores):
        return ()
    gone = (box_iou(candidates.boxes, kept.boxes) > overlap) & (candidates.classes[:, None] == kept.classes)
    gone &= candidates.scores[:, None] < kept.scores
    first = gone.int().argmax(1)
    rows = []
    for i, (class_, score) in enumerate(zip(kept.classes.tolist(), kept.scores.tolist(), strict=True)):
        mine = candidates.scores[gone.any(1) & (first == i)].sort(descending=True).values
        rows.append(Survivor(labels[class_], score, tuple(mine.tolist())))
    return tuple(rows)
