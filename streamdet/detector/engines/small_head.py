"""A box head that needs less than half of the arithmetic, and was made to answer like that of a model.

Nearly all of a box head's arithmetic is its first matrix product. Here that is two smaller ones, one behind the other:
the truncated decomposition of Fast R-CNN (Girshick 2015, section 3.1), but of what the product yields for real regions
(Zhang et al. 2016, "Accelerating Very Deep Convolutional Networks", section 3.1) instead of the matrix. After that the
whole head is trained to say of real regions what the original says (Hinton et al. 2015).

The numbers between the two products vary by very different amounts, and in int8 they have one scale. So they are turned
by a random rotation, which the second product takes back: nothing else changes, and all vary by the same amount
(as in QuaRot, Ashkboos et al. 2024).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.faster_rcnn import TwoMLPHead

from streamdet.detector.engines.pytorch import by_place

SMALL_HEAD_PREFIX = "small_head."
"""Of the names of its tensors in a file."""

# Of the first product's results, how many numbers lie between the two products: the first share that is enough. With
# few pictures to learn from, a third is not.
_SHARES_BETWEEN = (1 / 3, 1 / 2)

# Training: regions of a step, how often each region is seen, AdamW's highest learning rate, and what the boxes count
# beside the classes. Chosen on the embedded weights.
_REGIONS_OF_STEP = 512
_EPOCHS = 14
_LEARNING_RATE = 5e-4
_WARM_UP_SHARE = 0.1
_DELTAS_WEIGHT = 0.5
_SEED = 0
# What fewer regions teach is not worth a try. The last part of them, of other pictures, is kept back: of those in
# which the original sees an object, scores may differ by so much in the mean: on their validation pictures, 0.024 cost
# the embedded weights nothing, 0.030 half a point of mean average precision.
_FEWEST_REGIONS = 2048
_KEPT_BACK_SHARE = 0.1
_OBJECT_SCORE = 0.5
_SCORE_DIFFERENCE = 0.025


class SmallHead(nn.Module):
    """The box head and its predictor, for regions whose channels come last.

    Args:
        inputs: numbers of a region: places times channels.
        between: numbers between the two products.
        hidden: features of a region.
        classes: with the background.

    Attributes:
        inputs: as given.
        classes: as given.
    """

    def __init__(self, inputs: int, between: int, hidden: int, classes: int) -> None:
        super().__init__()
        self.inputs = inputs
        self.classes = classes
        self.narrow = nn.Linear(inputs, between, bias=False)
        self.wide = nn.Linear(between, hidden)
        self.second = nn.Linear(hidden, hidden)
        self.output = nn.Linear(hidden, 5 * classes)

    def forward(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits and deltas of regions.

        Args:
            regions: float32 [regions, 7, 7, channels]; there may be none.

        Returns:
            float32 [regions, classes] and [regions, 4 * classes].
        """
        hidden = functional.relu(self.wide(self.narrow(regions.flatten(1))))
        output = self.output(functional.relu(self.second(hidden)))
        return output[:, : self.classes], output[:, self.classes :]


@dataclass(frozen=True)
class Answers:
    """What a box head says of regions of one picture, or of several.

    Attributes:
        regions: float16 or float32 [n, 7, 7, channels].
        scores: float32 [n, classes]; each row sums to 1.
        deltas: float32 [n, classes, 4].
    """

    regions: Tensor
    scores: Tensor
    deltas: Tensor

    @classmethod
    def joined(cls, several: Sequence[Self]) -> Self:
        """Those of several pictures, one behind the other."""
        regions, scores, deltas = (
            torch.cat([getattr(each, name) for each in several]) for name in ("regions", "scores", "deltas")
        )
        return cls(regions, scores, deltas)

    def __len__(self) -> int:
        return len(self.regions)

    def __getitem__(self, rows: Tensor | slice) -> Answers:
        return Answers(self.regions[rows], self.scores[rows], self.deltas[rows])


# ---- making one ----


def make_small_head(
    model: FasterRCNN, answers: Answers, on_progress: Callable[[int, int], None] | None = None
) -> SmallHead | None:
    """Makes the small head of a model; None where it would not be like the original.

    That is where the box head has convolutions, where there are few answers, or where it says something else of those
    that it was not trained on.

    Args:
        model: prepared by `pipeline.prepare_model`.
        answers: of its own box head, to regions of real pictures, of one picture after the other; some ten thousand.
        on_progress: called with the number of steps that are done, and of all.
    """
    if not isinstance(model.roi_heads.box_head, TwoMLPHead) or len(answers) < _FEWEST_REGIONS:
        return None
    count = round(len(answers) * (1 - _KEPT_BACK_SHARE))
    known, kept_back = answers[:count], answers[count:]
    for share in _SHARES_BETWEEN:
        small = decompose(model, known.regions, share)
        # Of few regions, training may learn too little.
        if score_difference(small, kept_back) > _SCORE_DIFFERENCE:
            small = _train(small, known, on_progress)
        if score_difference(small, kept_back) <= _SCORE_DIFFERENCE:
            return turned(small)
    return None


@torch.no_grad()
def turned(small: SmallHead) -> SmallHead:
    """The same head with a random rotation between its first two products; it answers the same, but for rounding."""
    other = copy.deepcopy(small)
    random = torch.randn(len(small.narrow.weight), len(small.narrow.weight), dtype=torch.float64,
                         generator=torch.Generator().manual_seed(_SEED))  # fmt: skip
    rotation = torch.linalg.qr(random).Q
    other.narrow.weight.copy_(rotation @ small.narrow.weight.double())
    other.wide.weight.copy_(small.wide.weight.double() @ rotation.T)
    return other


@torch.no_grad()
def score_difference(small: SmallHead, answers: Answers) -> float:
    """How far scores of a small head are from the original's, 0 to 1; the mean over regions that show an object."""
    answers = answers[(answers.scores[:, 0] < 1 - _OBJECT_SCORE).nonzero().flatten()]
    logits, _ = small(answers.regions.float())
    difference = (logits.softmax(-1) - answers.scores).abs().amax(1)
    return float(difference.mean()) if len(answers) else 0.0


def _train(small: SmallHead, answers: Answers, on_progress: Callable[[int, int], None] | None) -> SmallHead:
    """Trains a small head, itself, and returns it."""
    small.requires_grad_(requires_grad=True)
    random = torch.Generator().manual_seed(_SEED)
    optimiser = torch.optim.AdamW(small.parameters(), lr=_LEARNING_RATE, weight_decay=0.0)
    steps = _EPOCHS * math.ceil(len(answers) / _REGIONS_OF_STEP)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=_LEARNING_RATE, total_steps=steps + 1, pct_start=_WARM_UP_SHARE
    )
    order = chain.from_iterable(
        torch.split(torch.randperm(len(answers), generator=random), _REGIONS_OF_STEP) for _ in range(_EPOCHS)
    )
    for step, rows in enumerate(order, start=1):
        optimiser.zero_grad()
        _distance(small, answers[rows]).backward()  # type: ignore[no-untyped-call] # torch's own
        optimiser.step()
        schedule.step()
        if on_progress:
            on_progress(step, steps)
    return small.requires_grad_(requires_grad=False).eval()


def _distance(small: SmallHead, answers: Answers) -> Tensor:
    """How far what a small head says is from the original: in the classes, and in the boxes of likely ones."""
    logits, deltas = small(answers.regions.float())
    classes = functional.kl_div(logits.log_softmax(-1), answers.scores, reduction="batchmean")
    difference = (torch.unflatten(deltas, 1, (-1, 4)) - answers.deltas).abs().sum(-1)
    boxes = (difference[:, 1:] * answers.scores[:, 1:]).sum(1).mean()
    distance: Tensor = classes + _DELTAS_WEIGHT * boxes
    return distance


@torch.no_grad()
def decompose(model: FasterRCNN, regions: Tensor, share: float = _SHARES_BETWEEN[0]) -> SmallHead:
    """The small head that comes nearest to a model's first matrix product on real regions, before any training.

    Args:
        model: prepared by `pipeline.prepare_model`; its box head is a `TwoMLPHead`.
        regions: float16 or float32 [n, 7, 7, channels].
        share: of the first product's results, how many numbers lie between the two products.
    """
    head, predictor = model.roi_heads.box_head, model.roi_heads.box_predictor
    weight = by_place(head.fc6.weight)
    hidden = len(weight)
    total, squares = torch.zeros(hidden, dtype=torch.float64), torch.zeros(hidden, hidden, dtype=torch.float64)
    for some in torch.split(regions.flatten(1), _REGIONS_OF_STEP):
        responses = functional.linear(some.float(), weight).double()
        total += responses.sum(0)
        squares += responses.T @ responses
    mean = total / len(regions)
    directions = torch.linalg.eigh(squares / len(regions) - torch.outer(mean, mean)).eigenvectors.flip(1)
    directions = directions[:, : math.ceil(share * hidden)]
    small = SmallHead(weight.shape[1], directions.shape[1], hidden, predictor.cls_score.out_features)
    small.narrow.weight.copy_(directions.T.float() @ weight)
    small.wide.weight.copy_(directions)
    small.wide.bias.copy_(head.fc6.bias.double() + mean - directions @ (directions.T @ mean))
    small.second.load_state_dict(head.fc7.state_dict())
    small.output.weight.copy_(torch.cat([predictor.cls_score.weight, predictor.bbox_pred.weight]))
    small.output.bias.copy_(torch.cat([predictor.cls_score.bias, predictor.bbox_pred.bias]))
    return small.requires_grad_(requires_grad=False).eval()


# ---- in a file ----


def small_head_to_tensors(small: SmallHead) -> dict[str, Tensor]:
    """The parameters in half precision, by name, for a safetensors file."""
    return {f"{SMALL_HEAD_PREFIX}{name}": value.half().contiguous() for name, value in small.state_dict().items()}


def small_head_from_tensors(tensors: Mapping[str, Tensor]) -> SmallHead | None:
    """The inverse of `small_head_to_tensors`; None if there is no such tensor.

    Raises:
        ValueError: a tensor is missing, has another shape or type than the others ask for, or is not finite.
    """
    state = {name.removeprefix(SMALL_HEAD_PREFIX): value for name, value in tensors.items()
             if name.startswith(SMALL_HEAD_PREFIX)}  # fmt: skip
    if not state:
        return None
    problem = "the small box head is not whole"
    weights = [state.get(f"{layer}.weight", torch.empty(0)) for layer in ("narrow", "wide", "output")]
    if any(weight.dim() != 2 for weight in weights):
        raise ValueError(problem)
    narrow, wide, output = weights
    with torch.device("meta"):  # no memory for shapes that the file may only claim
        small = SmallHead(narrow.shape[1], narrow.shape[0], wide.shape[0], output.shape[0] // 5)
    if any(value.dtype is not torch.float16 or not value.isfinite().all() for value in state.values()):
        raise ValueError(problem)
    try:
        small.load_state_dict({name: value.float() for name, value in state.items()}, assign=True)
    except RuntimeError:
        raise ValueError(problem) from None
    return small.requires_grad_(requires_grad=False).eval()
