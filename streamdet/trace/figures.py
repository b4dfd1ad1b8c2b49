"""The pictures of each stage."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from streamdet.detector.pipeline import StageOutputs
from streamdet.detector.stages.postprocess import Candidates
from streamdet.trace import draw
from streamdet.trace.draw import Values
from streamdet.trace.report import Figure, Rgb
from streamdet.types import Detection

_WIDTH_PIXELS, _HEIGHT_PIXELS = 768, 2048  # of large pictures, at most
_CHANNELS_SHOWN = 12
_LIKELIEST = 20
_REGIONS_SHOWN = 24
_TILE_PIXELS = 72
_LIMIT_DEVIATIONS = 2.5


def numbers(tensor: Tensor) -> Values:
    """The tensor as float32 numpy array."""
    return tensor.detach().float().cpu().numpy()


def shown_picture(frame: Rgb, outputs: StageOutputs) -> Rgb:
    """The frame at the size of the network's input."""
    height, width = outputs.batch.input_sizes[0]
    return draw.resize(frame, width, height)


def of_stages(
    frame: Rgb,
    outputs: StageOutputs,
    normalised: Tensor,
    candidates: Candidates,
    kept: Candidates,
    labels: tuple[str, ...],
) -> dict[str, tuple[Figure, ...]]:
    """Draws the results of each stage, for a batch of one frame.

    Args:
        frame: uint8 [height, width, 3].
        outputs: of the seven stages.
        normalised: float32 [1, 3, height, width], the batch as the network computes with it.
        candidates: boxes whose score passes, before suppression.
        kept: those left after it.
        labels: name of each class.
    """
    shown = shown_picture(frame, outputs)
    return {
        "input": _input(frame),
        "preprocess": _preprocess(normalised),
        "features": _features(shown, outputs),
        "proposals": _proposals(shown, outputs),
        "roi_pool": _roi_pool(shown, outputs),
        "classify": (),
        "postprocess": _postprocess(frame, shown, candidates, kept, outputs.detections[0], labels),
    }


def _scale(picture: Rgb, width: int = _WIDTH_PIXELS) -> float:
    """What makes a picture as large as it is shown."""
    return float(min(width / picture.shape[1], _HEIGHT_PIXELS / picture.shape[0]))


def _fit(frame: Rgb) -> Rgb:
    return draw.scaled(frame, scale) if (scale := _scale(frame)) < 1 else frame


def _input(frame: Rgb) -> tuple[Figure, ...]:
    planes = np.moveaxis(draw.scaled(frame, _scale(frame, _WIDTH_PIXELS // 2)), -1, 0)
    greys = [np.repeat(plane[..., None], 3, axis=-1) for plane in planes]
    captions = ("How much red each pixel holds: black is 0, white is 255.", "How much green.", "How much blue.")
    return tuple(Figure(grey, caption, small=True) for grey, caption in zip(greys, captions, strict=True))


def _preprocess(normalised: Tensor) -> tuple[Figure, ...]:
    planes = [draw.signed(plane, _LIMIT_DEVIATIONS) for plane in numbers(normalised[0])]
    key = "White is 0, red is above, blue below. Plain white at the right or lower edge: the zeros that fill it up."
    captions = (f"Red, normalised. {key}", "Green, normalised.", "Blue, normalised.")
    return tuple(Figure(plane, caption, small=True) for plane, caption in zip(planes, captions, strict=True))


def _features(shown: Rgb, outputs: StageOutputs) -> tuple[Figure, ...]:
    padded_height, padded_width = outputs.batch.tensor.shape[-2:]
    canvas = np.zeros((padded_height, padded_width, 3), np.uint8)
    canvas[: shown.shape[0], : shown.shape[1]] = shown
    figures = []
    for level in outputs.features.values():
        maps = numbers(level[0])
        stride = padded_width // maps.shape[2]
        over = draw.heat_over(canvas, _unusual(maps))[: shown.shape[0], : shown.shape[1]]
        caption = (
            f"Stride {stride}: {maps.shape[2]}x{maps.shape[1]} cells. Bright: numbers far from the picture's usual."
        )
        figures.append(Figure(over, caption, ("usual", "special"), small=True))
    finest = numbers(next(iter(outputs.features.values()))[0])
    liveliest = np.argsort(-finest.std((1, 2)))[:_CHANNELS_SHOWN]
    tiles = [draw.heat(finest[i], *np.quantile(finest[i], (0.02, 0.98)).tolist()) for i in liveliest]
    width = max(96, finest.shape[2])
    caption = f"The {_CHANNELS_SHOWN} of {len(finest)} channels of the finest map that vary most, scaled one by one."
    figures.append(
        Figure(draw.mosaic([draw.scaled(tile, width / tile.shape[1]) for tile in tiles], 4), caption, ("low", "high"))
    )
    return tuple(figures)


def _unusual(maps: Values) -> Values:
    """Distance of each cell's values from their channel's median, in mean absolute deviations: [height, width].

    Plain strength would show what every picture has, such as lawn, brighter than people.
    """
    usual = np.median(maps, axis=(1, 2), keepdims=True)
    deviation = np.abs(maps - usual).mean((1, 2), keepdims=True) + 1e-6
    return np.asarray(np.sqrt((((maps - usual) / deviation) ** 2).mean(0)), np.float32)


def _proposals(shown: Rgb, outputs: StageOutputs) -> tuple[Figure, ...]:
    boxes, objectness = numbers(outputs.proposals.boxes[0]), numbers(outputs.proposals.objectness[0])
    scale = _scale(shown)
    canvas = draw.scaled(shown, scale)
    few = min(_LIKELIEST, len(boxes))
    every = draw.boxes_by_value(canvas, boxes * scale, objectness)
    best = draw.boxes_by_value(canvas, boxes[:few] * scale, objectness[:few])
    ends = ("objectness 0%", "100%")
    return (
        Figure(every, f"All {len(boxes)} proposals, coloured by objectness.", ends),
        Figure(best, f"The {few} likeliest alone.", ends),
    )


def _roi_pool(shown: Rgb, outputs: StageOutputs) -> tuple[Figure, ...]:
    boxes = numbers(outputs.proposals.boxes[0][:_REGIONS_SHOWN])
    if not len(boxes):
        return ()
    strength = np.sqrt((numbers(outputs.regions[: len(boxes)]) ** 2).mean(1))
    high = float(np.quantile(strength, 0.995))
    tiles = []
    for box, values in zip(boxes, strength, strict=True):
        tiles.append(draw.letterbox(draw.crop(shown, box.tolist()), _TILE_PIXELS))
        pooled = draw.heat(values, 0, high)
        tiles.append(draw.resize(pooled, _TILE_PIXELS, _TILE_PIXELS, smooth=False))
    caption = (
        f"The {len(boxes)} likeliest proposals: at the left what each shows, at the right its 7x7 pooled features "
        "(strength over all channels; a box of any shape becomes a square)."
    )
    return (Figure(draw.mosaic(tiles, 8), caption, ("little", "much")),)


def _postprocess(
    frame: Rgb,
    shown: Rgb,
    candidates: Candidates,
    kept: Candidates,
    found: list[Detection],
    labels: tuple[str, ...],
) -> tuple[Figure, ...]:
    scale = _scale(shown)
    canvas = draw.scaled(shown, scale)
    before, after = (
        draw.boxes_by_class(canvas, numbers(boxes.boxes) * scale, boxes.classes.tolist())
        for boxes in (candidates, kept)
    )
    return (
        Figure(before, f"Before NMS: {len(candidates.scores)} boxes whose score passes.", small=True),
        Figure(after, f"After NMS: {len(kept.scores)}.", small=True),
        Figure(_fit(draw.detections(frame, found, labels)), "The detections, as subscribers receive them."),
    )
