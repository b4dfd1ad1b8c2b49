"""The region proposal network's last steps as operations of OpenVINO, behind its convolutions in one model.

Operations of torch on some hundred boxes take longer to start than to compute, the more so as the network before
them has taken their code out of the caches. OpenVINO knows all shapes beforehand, and takes a fifth of the time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor
from torchvision.models.detection.rpn import RegionProposalNetwork

from streamdet.detector.anchors import Anchors, make_anchors
from streamdet.detector.boxes import float_not_above
from streamdet.detector.engines.opset import make_graph, operations

if TYPE_CHECKING:
    import openvino

_AXIS = 0
_REJECTED, _ACCEPTED = -1.0, -0.5  # scores are 0 to 1


@dataclass(frozen=True)
class Proposed:
    """What such a model says about one picture.

    Attributes:
        logits: float32 [n], of the likeliest anchors of each level, before suppression.
        deltas: float32 [n, 4], of the same.
        boxes: float32 [k, 4], xyxy in pixels of the batch, by falling objectness.
        objectness: float32 [k], 0 to 1.
    """

    logits: Tensor
    deltas: Tensor
    boxes: Tensor
    objectness: Tensor


def with_proposals(model: openvino.Model, rpn: RegionProposalNetwork) -> openvino.Model:
    """Lets a model of the features and the RPN's head propose as torchvision's `RegionProposalNetwork.forward` does.

    Args:
        model: as `openvino.convert_features` makes it, of one fixed shape, for one picture; is used up.
        rpn: gives anchors, thresholds and capacities; its deltas have no weights, as torchvision's never have.

    Returns:
        a model with the level maps and then the four parts of `Proposed` as outputs. Its second input, `limits`, is
        where boxes are cut off: float32 [4], width, height, width and height in pixels of the picture within the batch.

    Raises:
        ValueError: the outputs do not fit each other.
    """
    ops = operations()
    outputs = [result.input_value(0) for result in model.get_results()]
    count = len(outputs) // 3
    levels, objectness, deltas = outputs[:count], outputs[count : 2 * count], outputs[2 * count :]
    _, height, width, _ = model.inputs[0].shape
    sizes = [tuple(level.shape)[1:-1] for level in levels]
    shapes = rpn.anchor_generator.num_anchors_per_location()
    for parts, numbers in ((objectness, 1), (deltas, 4)):
        wanted = [(1, *size, number * numbers) for size, number in zip(sizes, shapes, strict=True)]
        if [tuple(part.shape) for part in parts] != wanted:
            msg = (
                f"its outputs are {[list(part.shape) for part in parts]} instead of {[list(shape) for shape in wanted]}"
            )
            raise ValueError(msg)
    anchors = make_anchors(rpn, (height, width), sizes)
    limits = ops.parameter([4], np.float32, name="limits")
    logits, moves, places = _likeliest(objectness, deltas, anchors)
    boxes = _clip(_decode(moves, places, rpn.box_coder.bbox_xform_clip), limits)
    scores = ops.sigmoid(logits)
    first, last = _corners(boxes)
    sides = ops.subtract(last, first)
    enough = ops.reduce_logical_and(ops.greater_equal(sides, np.float32(rpn.min_size)), 1)
    passes = ops.logical_and(enough, ops.greater_equal(scores, np.float32(rpn.score_thresh)))
    # Boxes of different levels do not suppress each other: each level has a place of its own, as in torchvision.
    shift = anchors.level_of_best[:, None].numpy() * np.float32(max(height, width) + 1)
    chosen = ops.non_max_suppression(
        ops.unsqueeze(ops.add(boxes, shift.astype(np.float32)), _AXIS),
        ops.unsqueeze(ops.unsqueeze(ops.select(passes, scores, np.float32(_REJECTED)), _AXIS), _AXIS),
        np.int64(rpn.post_nms_top_n()),
        # OpenVINO suppresses from this overlap on, torchvision above it.
        np.nextafter(np.float32(float_not_above(rpn.nms_thresh)), np.float32(np.inf)),
        np.float32(_ACCEPTED),
        box_encoding="corner",
        output_type="i32",
    )
    # Of each chosen box: batch, class, index. Of equal scores the lower index comes first.
    rows = ops.gather(chosen.output(0), np.int64(2), np.int64(1))
    kept = [ops.gather(part, rows, np.int64(_AXIS)) for part in (boxes, scores)]
    results = [ops.result(part) for part in (*levels, logits, moves, *kept)]
    return make_graph(results, [*model.get_parameters(), limits], model)


def _likeliest(
    objectness: list[openvino.Output], deltas: list[openvino.Output], anchors: Anchors
) -> tuple[openvino.Node, openvino.Node, openvino.Node]:
    """The likeliest anchors of each level: logits [n], deltas [n, 4], places [n, 4], level by level."""
    ops = operations()
    best: list[tuple[openvino.Output, ...]] = []
    of_levels = zip(objectness, deltas, anchors.of_levels, anchors.counts_of_best, strict=True)
    for level_objectness, level_deltas, places, most in of_levels:
        number = math.prod(level_objectness.shape)
        flat = ops.reshape(level_objectness, [number], special_zero=False)
        found = ops.topk(flat, np.int64(most), _AXIS, "max", "value", index_element_type="i32")
        rows = ops.reshape(level_deltas, [number, 4], special_zero=False)
        moved, stand = (ops.gather(part, found.output(1), np.int64(_AXIS)) for part in (rows, places.numpy()))
        best.append((found.output(0), moved.output(0), stand.output(0)))
    logits, moves, stands = (ops.concat(list(parts), _AXIS) for parts in zip(*best, strict=True))
    return logits, moves, stands


def _decode(deltas: openvino.Node, places: openvino.Node, most_stretch: float) -> openvino.Node:
    """Moves and stretches boxes [n, 4], as `boxes.decode` does."""
    ops = operations()
    half = np.float32(0.5)
    (first, last), (moves, stretches) = _corners(places), _corners(deltas)
    sizes = ops.subtract(last, first)
    centres = ops.add(ops.multiply(moves, sizes), ops.add(first, ops.multiply(sizes, half)))
    halves = ops.multiply(ops.multiply(ops.exp(ops.minimum(stretches, np.float32(most_stretch))), sizes), half)
    return ops.concat([ops.subtract(centres, halves), ops.add(centres, halves)], 1)


def _clip(boxes: openvino.Node, limits: openvino.Node) -> openvino.Node:
    ops = operations()
    return ops.minimum(ops.maximum(boxes, np.float32(0)), limits)


def _corners(boxes: openvino.Node) -> tuple[openvino.Output, openvino.Output]:
    """The first two columns of four and the last two: of the upper left corners, and of the lower right ones."""
    halves = operations().split(boxes, np.int64(1), 2)
    return halves.output(0), halves.output(1)
