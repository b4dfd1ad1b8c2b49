"""Untrained weights that behave like trained ones: for architectures whose published weights are not at hand.

Speed depends on what a detector finds: how many proposals survive, how many boxes are worth a second look. With
plain random weights all scores are alike and either nothing or everything survives. Here every layer is scaled by
what it yields for a real frame, until the counts are those of life.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import av
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.ops import FrozenBatchNorm2d

from streamdet.assets import sample_clip
from streamdet.detector.weights import Weights
from streamdet.detector.weights.architectures import build_model

EMBEDDED_LABELS = ("__background__", "person", "bicycle", "car", "motorcycle", "bus", "truck")

_FEATURE_FLOOR = 1e-3  # added to variances, so that a channel that is always 0 stays 0
_LOGIT_DEVIATION = 2.0
_RPN_DELTA_DEVIATION = 0.1
_BOX_DELTA_DEVIATION = 0.5
_RPN_BIASES = (-20.0, 0.0)
_BISECTIONS = 10


@torch.no_grad()
def calibrated_weights(
    architecture: str,
    seed: int = 0,
    labels: tuple[str, ...] = EMBEDDED_LABELS,
    sizes: tuple[int, int] = (160, 320),
    proposals: int | None = None,
    found_share: float | None = None,
) -> Weights:
    """Makes seeded random weights whose features have unit deviation, whose scores spread, whose boxes move a little.

    Args:
        architecture: a key of `models.ARCHITECTURES`.
        seed: of the random numbers; the same on every machine.
        labels: name of each class, [0] the background.
        sizes: shorter and longer side of the input, in pixels; also what is calibrated with.
        proposals: how many the RPN keeps, for architectures whose RPN drops low scores; None for what comes.
        found_share: share of the proposals that the classifier takes for some object with a score above 0.05;
            None leaves background and objects alike, so that nearly all are taken for something.
    """
    generator_state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = build_model(architecture, len(labels)).eval()
    torch.set_rng_state(generator_state)
    state = model.state_dict()
    model.transform.min_size, model.transform.max_size = (sizes[0],), sizes[1]
    with _normalising(model):
        images, _ = model.transform([_real_frame()])
        features = model.backbone(images.tensors)
        _scale_rpn(model, list(features.values()))
        if proposals is not None:
            _shift_rpn(model, lambda: len(model.rpn(images, features)[0][0]), proposals)
        boxes, _ = model.rpn(images, features)
        regions = model.roi_heads.box_head(model.roi_heads.box_roi_pool(features, boxes, images.image_sizes))
    logits, deltas = model.roi_heads.box_predictor(regions)
    state["roi_heads.box_predictor.cls_score.weight"] *= _LOGIT_DEVIATION / logits.std()
    state["roi_heads.box_predictor.bbox_pred.weight"] *= _BOX_DELTA_DEVIATION / deltas.std()
    if found_share is not None:
        logits, _ = model.roi_heads.box_predictor(regions)
        state["roi_heads.box_predictor.cls_score.bias"][0] += background_bias(logits, found_share)
    return Weights(architecture, state, labels, tuple(range(len(labels))), *sizes)


def background_bias(logits: Tensor, found_share: float, score: float = 0.05) -> float:
    """What must be added to the background's logit so that this share of the rows has an object above the score.

    Args:
        logits: float [proposals, classes], [:, 0] the background.
        found_share: 0 to 1.
        score: that an object must exceed.
    """
    objects = logits[:, 1:]
    # An object's score is above s when exp(background + bias) < exp(best) / s - the sum over the objects.
    room = (objects.amax(1).double().exp() / score - objects.double().exp().sum(1)).clamp(min=1e-9)
    limits = room.log() - logits[:, 0]
    return float(limits.quantile(1 - found_share))


def _scale_rpn(model: FasterRCNN, levels: list[Tensor]) -> None:
    logits, deltas = (torch.cat([t.flatten() for t in level]) for level in model.rpn.head(levels))
    model.rpn.head.cls_logits.weight *= _LOGIT_DEVIATION / logits.std()
    model.rpn.head.bbox_pred.weight *= _RPN_DELTA_DEVIATION / deltas.std()


def _shift_rpn(model: FasterRCNN, count: Callable[[], int], wanted: int) -> None:
    """Finds, by bisection, the bias of the objectness with which so many proposals are kept."""
    bias = model.rpn.head.cls_logits.bias
    lower, upper = _RPN_BIASES
    for _ in range(_BISECTIONS):
        middle = (lower + upper) / 2
        bias.fill_(middle)
        lower, upper = (middle, upper) if count() < wanted else (lower, middle)


@contextmanager
def _normalising(model: nn.Module) -> Iterator[None]:
    """Within it, every batch normalisation takes the statistics of what it is given."""
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d | FrozenBatchNorm2d)]
    hooks = [norm.register_forward_pre_hook(_normalise_by) for norm in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _normalise_by(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    norm.running_mean.copy_(inputs[0].mean((0, 2, 3)))  # type: ignore[operator] # a tensor, of both kinds
    norm.running_var.copy_(inputs[0].var((0, 2, 3)) + _FEATURE_FLOOR)  # type: ignore[operator]


def _real_frame() -> Tensor:
    """The sample clip's first frame, stretched as cameras are: float32 [3, 576, 1024], 0 to 1."""
    with av.open(str(sample_clip())) as container:
        frame = next(container.decode(video=0))
        rgb = frame.reformat(width=1024, format="rgb24").to_ndarray()
    return torch.from_numpy(rgb).permute(2, 0, 1) / 255
