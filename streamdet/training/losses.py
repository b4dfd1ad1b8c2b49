"""The four losses of Faster R-CNN, where some classes may be unlabelled.

Public data sets often label only some classes: a picture full of cars may carry person boxes only. There,
"no box" does not mean "no object". So a picture is divided into regions (one, or one per piece of a
mosaic), and each region says which classes are labelled throughout it:

* Box head: a proposal without a box is background *or* any unlabelled class; its loss is
  -log(p_background + sum of p over the unlabelled classes). With everything labelled it is plain cross-entropy.
* RPN, which knows no classes: where a class is missing, an anchor without a box counts as background only
  while the RPN itself takes it for background (objectness below 1/2); the others may be unlabelled objects.

Boxes to be ignored (COCO's `iscrowd`) make neither positives nor negatives.

All pictures of a batch are computed at once, on tensors padded to the longest list.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.utils.rnn import pad_sequence
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection._utils import Matcher
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.rpn import concat_box_prediction_layers

from streamdet.detector.graph.propose import ProposeInGraph
from streamdet.detector.graph.suppress import Suppress

NOTHING = -1
"""Label of a candidate from which nothing is learned."""
# Share of a candidate that must lie in an ignored box for it to be ignored; COCO's evaluator asks for
# the same intersection over the detection's area.
_IGNORE_OVERLAP = 0.5
_SMOOTH_L1_BETA = 1 / 9


@dataclass(frozen=True)
class Target:
    """The labels of one training picture; boxes are xyxy in pixels of the picture.

    Attributes:
        boxes: float32 [N, 4].
        labels: int64 [N], 1 to C.
        ignore: float32 [M, 4], areas in which nothing is learned.
        regions: float32 [R, 4], disjoint; together they hold every candidate's centre.
        labelled: bool [R, C + 1]; column 0 (background) is True.
    """

    boxes: Tensor
    labels: Tensor
    ignore: Tensor
    regions: Tensor
    labelled: Tensor


@dataclass(frozen=True)
class Targets:
    """The targets of a batch, filled up to the longest of each list; B pictures.

    Attributes:
        boxes: float32 [B, N, 4], N at least 1.
        labels: int64 [B, N], 0 where there is no box.
        ignore: float32 [B, M, 4], M at least 1; empty boxes ignore nothing.
        regions: float32 [B, R, 4]; empty regions hold nothing.
        labelled: bool [B, R, C + 1], True throughout for empty regions.
    """

    boxes: Tensor
    labels: Tensor
    ignore: Tensor
    regions: Tensor
    labelled: Tensor

    def to(self, device: torch.device) -> Targets:
        """The same on another device; does not wait if the memory is pinned."""
        return Targets(*(t.to(device, non_blocking=True) for t in self._tensors()))

    def pin_memory(self) -> Targets:
        """The same in memory from which a GPU can copy while the program continues."""
        return Targets(*(t.pin_memory() for t in self._tensors()))

    def _tensors(self) -> list[Tensor]:
        return [getattr(self, name) for name in self.__dataclass_fields__]


def pad_targets(targets: Sequence[Target]) -> Targets:
    """Puts the targets of a batch together."""

    def padded(tensors: list[Tensor], value: float = 0) -> Tensor:
        one = tensors[0].new_full((1, *tensors[0].shape[1:]), value)
        # A row more, so that there is at least one; it is taken away where another list has it.
        together = pad_sequence([*tensors, one], batch_first=True, padding_value=value)
        return together[:-1]

    return Targets(
        boxes=padded([t.boxes for t in targets]),
        labels=padded([t.labels for t in targets]),
        ignore=padded([t.ignore for t in targets]),
        regions=padded([t.regions for t in targets]),
        labelled=padded([t.labelled for t in targets], value=True),
    )


def detection_losses(
    model: FasterRCNN, images: Tensor, targets: Targets, suppress: Suppress | None = None
) -> dict[str, Tensor]:
    """The four losses for a batch of equally large pictures.

    Args:
        model: in training mode.
        images: float32 [B, 3, H, W], already normalised with the model's mean and deviation.
        targets: of B pictures.
        suppress: non-maximum suppression of many groups at once, which a GPU wants; torchvision's when None.

    Returns:
        Scalars by name: objectness, rpn_box, classifier, box.
    """
    features = model.backbone(images)
    feature_list = list(features.values())
    height, width = images.shape[-2:]
    anchors = model.rpn.anchor_generator(ImageList(images[:1], [(height, width)]), feature_list)[0]
    objectness, deltas = model.rpn.head(feature_list)
    proposals = _proposals(model, objectness, deltas, anchors, (height, width), suppress)
    batch = len(images)
    flat_objectness, flat_deltas = concat_box_prediction_layers(objectness, deltas)
    objectness_loss, rpn_box_loss = _rpn_losses(
        model, flat_objectness.float().reshape(batch, -1), flat_deltas.float().reshape(batch, -1, 4), anchors, targets
    )
    class_loss, box_loss = _box_head_losses(model, features, proposals, (height, width), targets)
    return {
        "objectness": objectness_loss,
        "rpn_box": rpn_box_loss,
        "classifier": class_loss,
        "box": box_loss,
    }


@torch.no_grad()
def _proposals(
    model: FasterRCNN,
    objectness: Sequence[Tensor],
    deltas: Sequence[Tensor],
    anchors: Tensor,
    image_size: tuple[int, int],
    suppress: Suppress | None,
) -> tuple[Tensor, Tensor]:
    """Proposals [B, P, 4] and which of them there are, bool [B, P]."""
    shapes = model.rpn.anchor_generator.num_anchors_per_location()
    per_level = [n * o.shape[2] * o.shape[3] for n, o in zip(shapes, objectness, strict=True)]
    objectness, deltas = [o.float() for o in objectness], [d.float() for d in deltas]
    if suppress is not None:
        levels = torch.split(anchors, per_level)
        slots = ProposeInGraph(model.rpn, levels, image_size, suppress)(objectness, deltas)
        return slots.boxes, slots.objectness >= 0
    batch = len(objectness[0])
    scores, flat_deltas = concat_box_prediction_layers(list(objectness), list(deltas))
    decoded = model.rpn.box_coder.decode(flat_deltas, [anchors] * batch).reshape(batch, -1, 4)
    found, likely = model.rpn.filter_proposals(decoded, scores, [image_size] * batch, per_level)
    return pad_sequence(found, batch_first=True), pad_sequence(likely, batch_first=True, padding_value=-1.0) >= 0


def _rpn_losses(model: FasterRCNN, objectness: Tensor, deltas: Tensor, anchors: Tensor,
                targets: Targets) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Objectness and box loss; objectness [B, A], deltas [B, A, 4], anchors [A, 4]."""
    anchors = anchors[None]
    found = match(targets, anchors, model.rpn.proposal_matcher)
    labels = (found >= 0).long()
    unknown = ~labelled_at(anchors, targets).all(dim=2) & (objectness.detach() > 0)
    unsure = found == model.rpn.proposal_matcher.BETWEEN_THRESHOLDS
    labels = labels.masked_fill((labels == 0) & (unsure | unknown | ignored(anchors, targets)), NOTHING)
    sampler = model.rpn.fg_bg_sampler
    index, counts = sample(labels, sampler.batch_size_per_image, sampler.positive_fraction)
    count = counts.sum().clamp(min=1)
    wanted = labels.gather(1, index)
    objectness_losses = functional.binary_cross_entropy_with_logits(
        objectness.gather(1, index), (wanted > 0).float(), reduction="none"
    )
    boxes = _chosen(targets.boxes, found.gather(1, index).clamp(min=0))
    goals = model.rpn.box_coder.encode_single(boxes.flatten(0, 1), _chosen(anchors, index).flatten(0, 1))
    box_loss = _box_loss(_chosen(deltas, index).flatten(0, 1), goals, (counts & (wanted > 0)).flatten())
    return (objectness_losses * counts).sum() / count, box_loss / count


def _box_head_losses(
    model: FasterRCNN,
    features: dict[str, Tensor],
    proposals: tuple[Tensor, Tensor],
    image_size: tuple[int, int],
    targets: Targets,
) -> tuple[Tensor, Tensor]:
    rois, labels, boxes, labelled = _sample_proposals(model, *proposals, targets)
    heads = model.roi_heads
    pooled = heads.box_roi_pool(features, list(rois), [image_size] * len(rois))
    logits, deltas = heads.box_predictor(heads.box_head(pooled))
    labels = labels.flatten()
    counts, foreground = labels != NOTHING, labels > 0
    labels = labels.clamp(min=0)
    count = counts.sum().clamp(min=1)
    class_losses = torch.where(
        foreground,
        functional.cross_entropy(logits.float(), labels, reduction="none"),
        background_loss(logits, labelled.flatten(0, 1)),
    )
    goals = heads.box_coder.encode_single(boxes.flatten(0, 1), rois.flatten(0, 1))
    own_class = labels[:, None, None].expand(-1, 1, 4)
    of_class = deltas.unflatten(1, (-1, 4)).gather(1, own_class)[:, 0]
    return (class_losses * counts).sum() / count, _box_loss(of_class, goals, foreground) / count


def _sample_proposals(
    model: FasterRCNN, proposals: Tensor, there: Tensor, targets: Targets
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Chooses proposals to learn from, S of each picture; the boxes of the targets are proposals, too.

    Args:
        model: gives thresholds and numbers.
        proposals: float32 [B, P, 4].
        there: bool [B, P]: other places are empty.
        targets: of B pictures.

    Returns:
        Proposals [B, S, 4], labels [B, S] (`NOTHING` for background), the box that each stands for [B, S, 4],
        labelled classes [B, S, C + 1].
    """
    heads = model.roi_heads
    proposals = torch.cat((proposals, targets.boxes), 1)
    there = torch.cat((there, targets.labels > 0), 1)
    found = match(targets, proposals, heads.proposal_matcher)
    labels = torch.where(found >= 0, targets.labels.gather(1, found.clamp(min=0)), 0)
    nothing = (found == heads.proposal_matcher.BETWEEN_THRESHOLDS) | ((labels == 0) & ignored(proposals, targets))
    labels = labels.masked_fill(nothing | ~there, NOTHING)
    size = heads.fg_bg_sampler.batch_size_per_image
    index, counts = sample(labels, size, heads.fg_bg_sampler.positive_fraction)
    # Those that count come first, and are not more than `size`.
    counts, order = counts.to(torch.uint8).sort(dim=1, descending=True, stable=True)
    index, counts = index.gather(1, order)[:, :size], counts[:, :size]
    chosen = _chosen(proposals, index)
    boxes = _chosen(targets.boxes, found.gather(1, index).clamp(min=0))
    return chosen, labels.gather(1, index).masked_fill(counts == 0, NOTHING), boxes, labelled_at(chosen, targets)


def background_loss(logits: Tensor, labelled: Tensor) -> Tensor:
    """-log P(background or unlabelled class) of each row.

    Args:
        logits: float [K, C + 1].
        labelled: bool [K, C + 1].
    """
    log_p = functional.log_softmax(logits.float(), dim=1)
    possible = ~labelled
    possible[:, 0] = True
    return -torch.logsumexp(log_p.masked_fill(~possible, -torch.inf), dim=1)


def _box_loss(deltas: Tensor, goals: Tensor, counts: Tensor) -> Tensor:
    """Sum of the smooth L1 losses of the boxes [K, 4] that count, bool [K]; other goals may be infinite."""
    goals = torch.where(counts[:, None], goals, 0)
    losses = functional.smooth_l1_loss(deltas.float(), goals, beta=_SMOOTH_L1_BETA, reduction="none")
    return (losses.sum(dim=1) * counts).sum()


def match(targets: Targets, candidates: Tensor, matcher: Matcher) -> Tensor:
    """The box that each candidate is matched to, by torchvision's matchers.

    Args:
        targets: of B pictures.
        candidates: float32 [B or 1, K, 4].
        matcher: gives the thresholds, and whether each box gets the candidate that fits it best, however badly.

    Returns:
        int64 [B, K]: index of a box, or one of the matcher's two constants for none.
    """
    there = (targets.labels > 0)[:, :, None]
    overlap = _overlaps(targets.boxes, candidates).masked_fill(~there, -1.0)
    best, index = overlap.max(dim=1)
    found = index.masked_fill(best < matcher.high_threshold, matcher.BETWEEN_THRESHOLDS)
    found = found.masked_fill(best < matcher.low_threshold, matcher.BELOW_LOW_THRESHOLD)
    if matcher.allow_low_quality_matches:
        forced = ((overlap == overlap.amax(dim=2, keepdim=True)) & there).any(dim=1)
        found = torch.where(forced, index, found)
    return found


def ignored(candidates: Tensor, targets: Targets) -> Tensor:
    """Which candidates [B or 1, K, 4] lie mostly inside a box that is to be ignored; bool [B, K]."""
    inside = _common(targets.ignore, candidates).amax(dim=1)
    return inside / _area(candidates).clamp(min=1e-6) > _IGNORE_OVERLAP


def labelled_at(candidates: Tensor, targets: Targets) -> Tensor:
    """The classes labelled where the centre of each candidate [B or 1, K, 4] is: bool [B, K, C + 1].

    Where no region is, those that are labelled in all of them.
    """
    centre = ((candidates[..., :2] + candidates[..., 2:]) / 2)[:, :, None]
    regions = targets.regions[:, None]
    inside = ((centre >= regions[..., :2]) & (centre < regions[..., 2:])).all(dim=-1)  # [B, K, R]
    there = (inside.float() @ targets.labelled.float()) > 0
    return torch.where(inside.any(dim=-1, keepdim=True), there, targets.labelled.all(dim=1)[:, None])


def sample(labels: Tensor, count: int, positive_share: float) -> tuple[Tensor, Tensor]:
    """Chooses candidates at random, as torchvision's `BalancedPositiveNegativeSampler` does.

    Args:
        labels: int64 [B, K]: above 0 for objects, 0 for background, `NOTHING` for what is never chosen.
        count: at most this number in each picture.
        positive_share: at most this part of them are objects.

    Returns:
        int64 [B, S], which candidates, and bool [B, S], which of these count. S is fixed by the arguments.
    """
    chance = torch.rand(labels.shape, device=labels.device)
    size = labels.shape[1]
    positives, positive = chance.masked_fill(labels <= 0, -1.0).topk(min(int(count * positive_share), size))
    negatives, negative = chance.masked_fill(labels != 0, -1.0).topk(min(count, size))
    is_positive = positives >= 0
    room = count - is_positive.sum(dim=1, keepdim=True)
    is_negative = (negatives >= 0) & (torch.arange(negatives.shape[1], device=labels.device) < room)
    return torch.cat((positive, negative), 1), torch.cat((is_positive, is_negative), 1)


def _common(ones: Tensor, others: Tensor) -> Tensor:
    """Areas that boxes share: [B, K, 4] and [B, L, 4] give [B, K, L]."""
    x1, y1, x2, y2 = ones[:, :, None].unbind(-1)
    u1, v1, u2, v2 = others[:, None].unbind(-1)
    width = torch.minimum(x2, u2) - torch.maximum(x1, u1)
    height = torch.minimum(y2, v2) - torch.maximum(y1, v1)
    return width.clamp(min=0) * height.clamp(min=0)


def _area(boxes: Tensor) -> Tensor:
    return (boxes[..., 2] - boxes[..., 0]) * (boxes[..., 3] - boxes[..., 1])


def _overlaps(ones: Tensor, others: Tensor) -> Tensor:
    """Intersection over union, as `torchvision.ops.box_iou`, [B, K, L]."""
    common = _common(ones, others)
    return common / (_area(ones)[:, :, None] + _area(others)[:, None] - common).clamp(min=1e-9)


def _chosen(boxes: Tensor, index: Tensor) -> Tensor:
    """Boxes [B or 1, K, 4] by index [B, S]: [B, S, 4]."""
    return boxes.expand(len(index), -1, -1).gather(1, index[..., None].expand(-1, -1, 4))
