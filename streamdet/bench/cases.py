"""The cases to compare: models, engines, precisions, batch sizes, workers; and which of them this machine supports.

Architectures without weights on this machine get calibrated random ones, which yield about as many boxes as trained
ones, because the time depends on the number of boxes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import av
import torch
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.ops import FrozenBatchNorm2d

from streamdet.assets import embedded_weights, sample_clip
from streamdet.config import DetectorConfig
from streamdet.detector.engines import openvino
from streamdet.detector.missing import cache_folders
from streamdet.detector.weights import Weights, load_embedded_int8, load_weights, load_weights_file
from streamdet.detector.weights.architectures import ARCHITECTURES, build_model, outline_model
from streamdet.detector.weights.state_dict import check_state, count_classes, read_state_dict
from streamdet.detector.weights.torchvision import PUBLISHED, coco_labels, published_weights
from streamdet.errors import DetectorError
from streamdet.training.bf16 import bf16_pays

EMBEDDED_LABELS = ("__background__", "person", "bicycle", "car", "motorcycle", "bus", "truck")

REFERENCE = "reference"
ENGINES = (REFERENCE, "torch", "graph", "openvino")
PRECISIONS = ("fp32", "bf16", "int8")
_HAS = {"torch": ("fp32", "bf16"), "graph": ("fp32", "bf16"), "openvino": ("fp32", "bf16", "int8")}
_NOT_ON = {"cpu": "graph", "cuda": "openvino"}

# What torchvision's RPN keeps of an ordinary street picture with its published weights.
_PROPOSALS = {"fasterrcnn_mobilenet_v3_large_320_fpn": 100, "fasterrcnn_mobilenet_v3_large_fpn": 300}
_FOUND_SHARE = 0.1

# What calibrated random weights are scaled to.
_FEATURE_FLOOR = 1e-3  # added to variances, so that a channel that is always 0 stays 0
_LOGIT_DEVIATION = 2.0
_RPN_DELTA_DEVIATION = 0.1
_BOX_DELTA_DEVIATION = 0.5
_RPN_BIASES = (-20.0, 0.0)
_BISECTIONS = 10


@dataclass(frozen=True)
class Model:
    """What is measured.

    Attributes:
        name: what it is called in the results.
        weights: the parameters.
        origin: "embedded", "published", "calibrated random" or "file".
        exported: the same as a file of `streamdet export`, to be compared; None where there is none.
    """

    name: str
    weights: Weights
    origin: str
    exported: Weights | None = None


@dataclass(frozen=True, order=True)
class Case:
    """One way to run a model.

    Attributes:
        engine: of `ENGINES`; "reference" is torchvision's own forward.
        precision: of `PRECISIONS`.
        batch: frames per batch.
        workers: batches at the same time, a thread each; the reference has one, which uses every core.
    """

    engine: str
    precision: str
    batch: int
    workers: int


def load_model(name: str) -> Model:
    """Finds weights without downloading any.

    Args:
        name: "embedded", an architecture of torchvision's (with or without "fasterrcnn_" before it), or a file.

    Raises:
        DetectorError: there is no such model, or the file is no good.
    """
    if name == "embedded":
        return Model(name, load_weights_file(embedded_weights()), "embedded")
    architecture = name if name in PUBLISHED else f"fasterrcnn_{name}"
    if architecture in PUBLISHED:
        return _published(architecture)
    path = Path(name).expanduser()
    if not path.is_file():
        known = ", ".join(("embedded", *PUBLISHED))
        msg = f"--model {name}: no such model or file; there are {known}, or give the path of a weights file"
        raise DetectorError(msg)
    if path.suffix in {".pth", ".pt"}:
        return Model(path.name, load_weights(_config(str(path), _architecture_of(path))), "file")
    weights = load_weights_file(path)
    if weights.exported is not None:
        msg = f"--model {path}: a file of `streamdet export`; give it with --exported, and what it is of with --model"
        raise DetectorError(msg)
    return Model(path.name, weights, "file")


def load_exported(path: Path) -> Weights:
    """Reads a file of `streamdet export`.

    Raises:
        DetectorError: it is none.
    """
    weights = load_weights_file(path)
    if weights.exported is None:
        msg = f"--exported {path}: not a file of `streamdet export`; give other weights with --model"
        raise DetectorError(msg)
    return weights


def _published(architecture: str) -> Model:
    """Torchvision's weights if they have been downloaded before, otherwise random ones with similar results."""
    file_name = published_weights(architecture).url.rpartition("/")[2]
    if any((folder / file_name).is_file() for folder in cache_folders()):
        return Model(architecture, load_weights(_config("coco", architecture)), "published")
    transform = outline_model(architecture, 2).transform
    weights = calibrated_weights(
        architecture,
        labels=coco_labels(),
        sizes=(transform.min_size[-1], transform.max_size),
        proposals=_PROPOSALS.get(architecture),
        found_share=_FOUND_SHARE,
    )
    return Model(architecture, weights, "calibrated random")


def _config(weights: str, architecture: str) -> DetectorConfig:
    # Unchecked: a configuration may not name every architecture that a file may have.
    return DetectorConfig.model_construct(weights=weights, model=architecture)  # type: ignore[arg-type]


def _architecture_of(path: Path) -> str:
    """The architecture whose names and shapes a state dict has.

    Raises:
        DetectorError: none of them.
    """
    state = read_state_dict(path)
    classes = count_classes(path, state)
    for architecture in ARCHITECTURES:
        try:
            check_state(path, architecture, classes, state)
        except DetectorError:
            continue
        return architecture
    msg = f"{path} fits none of {', '.join(ARCHITECTURES)}"
    raise DetectorError(msg)


def with_int8(model: Model, engines: tuple[str, ...], precisions: tuple[str, ...], device: torch.device) -> Model:
    """Adds the int8 file that the daemon makes of the embedded weights by itself, where it may.

    Args:
        model: any.
        engines: that were asked for; empty for all.
        precisions: likewise.
        device: where it runs.
    """
    is_wanted = "openvino" in (engines or ENGINES) and "int8" in (precisions or PRECISIONS)
    if is_wanted and model.origin == "embedded" and device.type == "cpu" and openvino.is_installed():
        return replace(model, exported=load_embedded_int8())
    return model


def ways(engines: tuple[str, ...], precisions: tuple[str, ...], device: torch.device) -> list[tuple[str, str]]:
    """Engines and precisions to try, fp32 first; the reference always, because all others are compared with it.

    Args:
        engines: that were asked for; empty for all.
        precisions: likewise; empty for all that need no export and are fast on this hardware.
        device: where it runs.
    """
    # int8 has to be exported, with frames of one's own; bf16 is slower than fp32 on many CPUs.
    fast = precisions or (("fp32", "bf16") if bf16_pays(device) else ("fp32",))
    chosen = [engine for engine in engines or ENGINES if engine not in {REFERENCE, _NOT_ON[device.type]}]
    pairs = [(engine, precision) for engine in chosen for precision in _HAS[engine] if precision in fast]
    return [(REFERENCE, "fp32"), *pairs]


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
        architecture: a key of `weights.architectures.ARCHITECTURES`.
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
    """Finds, by bisection, the bias of the objectness with which this number of proposals is kept."""
    bias = model.rpn.head.cls_logits.bias
    lower, upper = _RPN_BIASES
    for _ in range(_BISECTIONS):
        middle = (lower + upper) / 2
        bias.fill_(middle)
        lower, upper = (middle, upper) if count() < wanted else (lower, middle)


@contextmanager
def _normalising(model: nn.Module) -> Iterator[None]:
    """While it is active, every batch normalisation uses the statistics of its input."""
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
