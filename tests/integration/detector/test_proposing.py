"""OpenVINO proposes what torch proposes from the same output of the network, and what is broken is noticed."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models.detection.rpn import RegionProposalNetwork

from streamdet.detector.engines.openvino import core, is_installed, load_openvino
from streamdet.detector.engines.proposing import Proposed, with_proposals
from streamdet.detector.stages.preprocess import Batch, Size
from streamdet.detector.stages.proposals import ProposeInTorch
from streamdet.detector.weights.architectures import EMBEDDED_ARCHITECTURE, outline_model

pytestmark = [pytest.mark.skipif(not is_installed(), reason="needs the extra, streamdet[openvino]"), pytest.mark.slow]

CANVAS = (192, 320)
SHOWN = (180, 301)
STRIDES = (8, 16, 32, 64)
SHAPES = 6
CHANNELS = 4


@dataclass
class Said:
    """What a network may say about one picture; it is the engine of `ProposeInTorch`, too."""

    levels: list[Tensor] = field(default_factory=list)
    objectness: list[Tensor] = field(default_factory=list)
    deltas: list[Tensor] = field(default_factory=list)

    def rpn_head(self, levels: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        assert [level.shape for level in levels] == [level.shape for level in self.levels]
        return self.objectness, self.deltas


def said(seed: int = 0, *, deltas: float = 0.5) -> Said:
    """Random numbers, deltas of such a deviation; no two logits are so close that rounding decides their order."""
    random = torch.Generator().manual_seed(seed)
    sizes = [tuple(-(-side // stride) for side in CANVAS) for stride in STRIDES]
    counts = [SHAPES * height * width for height, width in sizes]
    logits = torch.linspace(-2, 2, sum(counts))[torch.randperm(sum(counts), generator=random)]
    return Said(
        [torch.randn(1, CHANNELS, *size, generator=random) for size in sizes],
        [part.reshape(1, SHAPES, *size) for part, size in zip(torch.split(logits, counts), sizes, strict=True)],
        [deltas * torch.randn(1, 4 * SHAPES, *size, generator=random) for size in sizes],
    )


class Saying(nn.Module):
    """A network that says the same about every picture."""

    def __init__(self, parts: list[Tensor]) -> None:
        super().__init__()
        self._parts = [part.permute(0, 2, 3, 1).contiguous() for part in parts]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        nothing = images[:, :1, :1, :1] * 0
        return tuple(part + nothing for part in self._parts)


def rpn_of(**settings: float) -> RegionProposalNetwork:
    rpn = outline_model(EMBEDDED_ARCHITECTURE, 7).eval().rpn
    for name, value in settings.items():
        if name.endswith("_top_n"):
            getattr(rpn, f"_{name}")["testing"] = value
        else:
            setattr(rpn, name, value)
    return rpn


def in_openvino(what: Said, rpn: RegionProposalNetwork, shown: Size = SHOWN) -> Proposed:
    image = torch.zeros(1, *CANVAS, 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates tracing, which OpenVINO reads
        traced = torch.jit.trace(Saying([*what.levels, *what.objectness, *what.deltas]), image)
        model = load_openvino().convert_model(traced, example_input=image)
    model.reshape(list(image.shape))
    compiled = core().compile_model(with_proposals(model, rpn), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    height, width = shown
    found = compiled([image.numpy(), torch.tensor([width, height] * 2, dtype=torch.float32).numpy()])
    return Proposed(*(torch.tensor(found[port]) for port in range(len(STRIDES), len(STRIDES) + 4)))


def in_torch(what: Said, rpn: RegionProposalNetwork, shown: Size = SHOWN) -> tuple[Tensor, Tensor]:
    batch = Batch(torch.zeros(1, 3, *CANVAS), [shown], [shown])
    features = {str(number): level for number, level in enumerate(what.levels)}
    proposals = ProposeInTorch(rpn, what)(batch, features)  # type: ignore[arg-type] # it only asks for this
    return proposals.boxes[0], proposals.objectness[0]


def assert_same(found: Proposed, wanted: tuple[Tensor, Tensor]) -> None:
    boxes, scores = wanted
    torch.testing.assert_close(found.objectness, scores, rtol=0, atol=1e-6)
    torch.testing.assert_close(found.boxes, boxes, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"post_nms_top_n": 1},
        {"post_nms_top_n": 100_000},
        {"pre_nms_top_n": 10},
        {"pre_nms_top_n": 100_000, "post_nms_top_n": 100_000},
        {"nms_thresh": 0.3},
        {"min_size": 20.0},
        {"score_thresh": 0.8},
        {"score_thresh": 1.1},
    ],
    ids=str,
)
def test_proposals_are_those_of_torch(settings: dict[str, float]) -> None:
    rpn = rpn_of(**settings)
    for seed in range(3):
        what = said(seed)
        wanted = in_torch(what, rpn)
        assert_same(in_openvino(what, rpn), wanted)
        assert (len(wanted[0]) > 0) == (settings.get("score_thresh", 0) < 1)


def test_boxes_end_where_the_picture_ends() -> None:
    what, rpn = said(deltas=3), rpn_of()
    for shown in (SHOWN, CANVAS, (1, CANVAS[1])):
        found = in_openvino(what, rpn, shown)
        assert_same(found, in_torch(what, rpn, shown))
        height, width = shown
        assert found.boxes[:, 2].max() == width
        assert found.boxes[:, 3].max() == height


def test_of_equal_scores_the_finer_level_comes_first() -> None:
    what, rpn = said(deltas=0), rpn_of(pre_nms_top_n=1, post_nms_top_n=100)
    for level in what.objectness:
        level[:] = torch.arange(level.numel()).reshape(level.shape) / level.numel() + 20  # where a sigmoid is 1
    found, (boxes, scores) = in_openvino(what, rpn), in_torch(what, rpn)
    assert len(scores) > 1
    assert bool((scores == 1).all())
    torch.testing.assert_close(found.boxes, boxes)


# Of two anchors of one place, 12x12 and 20x20 pixels; as float32 it is a little more than 0.36.
OVERLAP = float(np.float32(144 / 400))


@pytest.mark.parametrize(("threshold", "kept"), [(OVERLAP, 2), (0.36, 1), (0.37, 2)])
def test_boxes_that_overlap_as_much_as_they_may_are_both_kept(threshold: float, kept: int) -> None:
    what, rpn = said(deltas=0), rpn_of(nms_thresh=threshold, score_thresh=0.5)
    for level in what.objectness:
        level[:] = -5
    what.objectness[0][0, 2:4, 12, 20] = torch.tensor([5.0, 4])
    found, wanted = in_openvino(what, rpn), in_torch(what, rpn)
    assert_same(found, wanted)
    assert len(found.boxes) == kept


@pytest.mark.parametrize("part", ["objectness", "deltas"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_numbers_that_are_none_are_seen(part: str, number: float) -> None:
    what = said()
    for level in getattr(what, part):
        level[:] = number
    found = in_openvino(what, rpn_of())
    assert not torch.isfinite(found.logits if part == "objectness" else found.deltas).any()


@pytest.mark.parametrize(
    ("part", "shape"),
    [("objectness", (1, SHAPES, 3, 3)), ("objectness", (1, 5, 24, 40)), ("deltas", (1, 4 * SHAPES, 40, 24))],
)
def test_outputs_that_do_not_fit_are_refused(part: str, shape: tuple[int, ...]) -> None:
    what = said()
    getattr(what, part)[0] = torch.zeros(shape)
    with pytest.raises(ValueError, match=r"its outputs are .* instead of"):
        in_openvino(what, rpn_of())
